"""The packing as numbers: what a host of each kind has room for, what each option takes and gives.

Hosts of a kind are interchangeable, so a packing is how many hosts of each kind carry which filling; nothing grows with
the number of hosts. All figures are whole numbers: sums have no order, and equal plans are equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from selector.fleet.asked import FleetObjective

#: Weights and tokens a second are counted in thousandths.
THOUSANDTHS = 1000


class Bin(NamedTuple):
    """A kind of host: how many there are, the slots of one, and whether a slot is a device (0: the processor alone)."""

    hosts: int
    slots: int
    devices_per_slot: int = 1


class Option(NamedTuple):
    """A replica of a deployment on a kind of host: the slots it takes of each of its ``hosts``.

    With several hosts it takes them whole. ``rate`` is output in thousandths of a token a second.
    """

    deployment: int
    bin: int
    slots: int
    rate: int
    hosts: int = 1


class Demand(NamedTuple):
    """Replicas of a deployment: at least, at most (``None``: no bound), and its weight in thousandths."""

    weight: int
    minimum: int
    most: int | None


class Problem(NamedTuple):
    bins: tuple[Bin, ...]
    demands: tuple[Demand, ...]
    options: tuple[Option, ...]
    objective: FleetObjective

    def devices(self, option: Option) -> int:
        """Devices of one replica."""
        return option.slots * option.hosts * self.bins[option.bin].devices_per_slot

    def value(self, option: Option) -> int:
        """What a replica gives: weighted output, in millionths."""
        return self.demands[option.deployment].weight * option.rate

    def wanted(self, deployment: int) -> int | None:
        """How many replicas are of use; for the objective ``replicas`` the minimum where no maximum was given."""
        each = self.demands[deployment]
        return each.minimum if each.most is None and self.objective == "replicas" else each.most


#: What one host carries, or several that one replica spans: options by number, in order. Empty is an idle host.
Filling = tuple[int, ...]


class Packing(NamedTuple):
    """How many hosts of each kind carry which filling: ``{(bin, filling): times}``.

    A filling whose one option spans ``n`` hosts stands for ``n`` of them each time.
    """

    units: dict[tuple[int, Filling], int]

    def replicas(self, problem: Problem) -> list[int]:
        """How many of each deployment there are."""
        found = [0] * len(problem.demands)
        for option, times in self.options():
            found[problem.options[option].deployment] += times
        return found

    def options(self) -> Iterable[tuple[int, int]]:
        """Every option that is used, with how often; one may come more than once."""
        for (_, filling), times in self.units.items():
            for option in filling:
                yield option, times


class Figures(NamedTuple):
    """A packing's terms, in the units of the problem: weighted lacks, devices, weighted output."""

    lacking: int
    wanted_lacking: int
    devices: int
    output: int

    def order(self, objective: FleetObjective) -> tuple[int, ...]:
        """The key by which packings compare: the lower the better."""
        if objective == "throughput":
            return (self.lacking, -self.output)
        return (self.lacking, self.wanted_lacking, self.devices, -self.output)


def figures(problem: Problem, packing: Packing) -> Figures:
    """What a packing comes to."""
    counts = packing.replicas(problem)
    lacking = wanted = 0
    for place, (demand, count) in enumerate(zip(problem.demands, counts, strict=True)):
        lacking += demand.weight * max(0, demand.minimum - count)
        wanted += demand.weight * max(0, (problem.wanted(place) or 0) - count)
    return Figures(
        lacking,
        wanted if problem.objective == "replicas" else 0,
        sum(problem.devices(problem.options[option]) * times for option, times in packing.options()),
        sum(problem.value(problem.options[option]) * times for option, times in packing.options()),
    )


def faults(problem: Problem, packing: Packing) -> tuple[str, ...]:
    """What a packing does that cannot be; nothing, for a sound one."""
    found = []
    used = [0] * len(problem.bins)
    for (place, filling), times in packing.units.items():
        options = [problem.options[each] for each in filling]
        hosts = options[0].hosts if options else 1
        used[place] += hosts * times
        if any(each.bin != place for each in options):
            found.append(f"a filling of kind {place} has an option of another")
        if hosts > 1 and len(options) > 1:
            found.append(f"hosts that one replica spans carry {len(options)} on kind {place}")
        if sum(each.slots for each in options) > problem.bins[place].slots:
            found.append(f"a host of kind {place} is filled beyond its {problem.bins[place].slots} slots")
        if times < 1:
            found.append(f"a filling is used {times} times")
    found += [
        f"{hosts} hosts of kind {place} are used, and there are {each.hosts}"
        for place, (hosts, each) in enumerate(zip(used, problem.bins, strict=True))
        if hosts > each.hosts
    ]
    for place, count in enumerate(packing.replicas(problem)):
        most = problem.wanted(place)
        if most is not None and count > most:
            found.append(f"deployment {place} has {count} replicas, more than {most}")
    return tuple(found)
