"""What a replica of a deployment gives on each kind of host: the planner's own layouts, one for each number of devices.

Each is what ``autolaunch plan MODEL --data-parallel 1 --gpus N`` ranks first, of weights at least as near the original
as those of the best of all numbers: packing more replicas onto a host never costs accuracy that the planner would not
give up itself. A number of devices on which the model only just runs, at a fraction of the output a device that others
give, is left out: nobody who asks for a replica means that one. A thousand equal hosts are planned once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from selector.asked import PlanRequest
from selector.contract import Candidate, Rejection
from selector.facts import ModelFacts
from selector.fleet.asked import FleetDeployment
from selector.fleet.kinds import HostKind, only, several, without_memory
from selector.hardware import HardwareReport, Host
from selector.main_memory import of_first_node
from selector.plan import nearest_rejections
from selector.search import Facts, decide

#: Hosts that one replica spans at most; tried only where none serves it alone.
MOST_SPANNED = 4
#: Of the most output a device that a replica on the same host gives, the least that one has to.
LEAST_SHARE = 0.25


class Wanted(NamedTuple):
    """A deployment, its model, and what the planner is asked for a replica of it."""

    deployment: FleetDeployment
    model: ModelFacts
    request: PlanRequest


class Way(NamedTuple):
    """One way of serving a deployment on a kind of host: on so many devices of a lot, or on whole hosts."""

    deployment: int
    lot: int
    slots: int
    hosts: int
    candidate: Candidate


class Ways(NamedTuple):
    """All ways on one kind of host, and of deployments without any the refusal that came nearest."""

    found: tuple[Way, ...]
    refused: dict[int, Rejection]


class _Answer(NamedTuple):
    """The planner's first choice for each number of devices, of weights no further from the original than its best.

    ``quality`` is that of the best; ``nearest`` the refusal that came nearest.
    """

    best: dict[int, Candidate]
    quality: float
    nearest: Rejection | None

    def alike(self, other: _Answer) -> bool:
        """Whether replicas are the same, whatever else is told of them."""
        return {slots: served(each) for slots, each in self.best.items()} == {
            slots: served(each) for slots, each in other.best.items()
        }


class _Ground(NamedTuple):
    """A lot wherever it is: hosts that have it by their main memory, and what is planned for each.

    ``share`` is that of the host's devices which are of the lot.
    """

    report: HardwareReport
    share: float
    hosts: dict[int, Host]
    answers: dict[tuple[PlanRequest, int], _Answer]


class Options:
    """The ways of serving deployments on kinds of host; what was planned once is known, of whichever kind.

    A plan depends on a lot's devices and, where weights may lie there, on main memory. Of the hosts that differ in main
    memory alone those with the least and the most are planned first: where both serve the same ways, so do all between,
    which have as much as the least.
    """

    def __init__(self, wanted: tuple[Wanted, ...], facts: Facts, found: Iterable[HostKind]) -> None:
        self._wanted, self._facts = wanted, facts
        self._grounds: dict[tuple[bytes, float], _Ground] = {}
        self._spanned: dict[tuple[bytes, int, PlanRequest], Candidate | None] = {}
        for kind in found:
            for grounds in self._lots(kind):
                for ground in grounds.values():
                    ground.hosts.setdefault(_usable(kind.report), kind.report.host)

    def on(self, kind: HostKind) -> Ways:
        """The ways on one of the kinds."""
        found: list[Way] = []
        refused: dict[int, Rejection] = {}
        known: dict[PlanRequest, tuple[list[Way], Rejection | None]] = {}
        lots = self._lots(kind)
        for place, each in enumerate(self._wanted):
            key = each.request
            if key not in known:
                known[key] = self._ways(kind, lots, each)
            ways, nearest = known[key]
            found += [way._replace(deployment=place) for way in ways]
            if not ways and nearest is not None:
                refused[place] = nearest
        return Ways(tuple(found), refused)

    def _lots(self, kind: HostKind) -> list[dict[bool, _Ground]]:
        """Each lot as the planner sees it, and, where islands differ, as it would be without the larger ones."""
        made: list[dict[bool, _Ground]] = []
        for lot in kind.lots:
            share = len(lot.devices) / max(1, len(kind.report.accelerators))
            made.append({})
            for evened in (True, False) if lot.uneven else (False,):
                report = only(kind.report, lot, evened=evened)
                key = (msgspec.json.encode(report), share)
                made[-1][evened] = self._grounds.setdefault(key, _Ground(report, share, {}, {}))
        return made

    def _ways(
        self, kind: HostKind, lots: list[dict[bool, _Ground]], each: Wanted
    ) -> tuple[list[Way], Rejection | None]:
        found: list[Way] = []
        nearest: list[Rejection] = []
        for place, (lot, grounds) in enumerate(zip(kind.lots, lots, strict=True)):
            answers = {evened: self._answer(ground, each, _usable(kind.report)) for evened, ground in grounds.items()}
            least = max(answer.quality for answer in answers.values())
            best: dict[int, Candidate] = {}
            for evened, answer in answers.items():
                nearest += [] if answer.nearest is None else [answer.nearest]
                best |= {
                    slots: candidate
                    for slots, candidate in answer.best.items()
                    if lot.takes(slots, evened=evened) and quality(each, candidate) >= least
                }
            found += [Way(0, place, slots, 1, candidate) for slots, candidate in _undominated(best)]
        if not found and len(kind.lots) == 1 and kind.lots[0].devices:
            found += self._spanning(kind, each)
        return found, min(nearest_rejections(tuple(nearest)), key=_shortage, default=None)

    def _answer(self, ground: _Ground, each: Wanted, memory_bytes: int) -> _Answer:
        levels = sorted(ground.hosts)
        low, high = 0, len(levels) - 1
        while True:
            least, most = (self._planned(ground, each, levels[end]) for end in (low, high))
            if least.alike(most) or memory_bytes == levels[low]:
                return least
            if high - low == 1 or memory_bytes == levels[high]:
                return most
            middle = (low + high) // 2
            low, high = (middle, high) if memory_bytes >= levels[middle] else (low, middle)

    def _planned(self, ground: _Ground, each: Wanted, memory_bytes: int) -> _Answer:
        """What the planner lays out on a lot, by the devices of one replica."""
        known = ground.answers.get((each.request, memory_bytes))
        if known is not None:
            return known
        report = msgspec.structs.replace(ground.report, host=ground.hosts[memory_bytes])
        request = _one(each.request)
        if report.accelerators:  # not the processor beside them, which no replica of a fleet is on
            every = tuple(device.index for device in report.accelerators)
            request = msgspec.structs.replace(request, pins=msgspec.structs.replace(request.pins, gpus=every))
        decision = decide(each.model, report, request, self._facts)
        best: dict[int, Candidate] = {}
        least = quality(each, decision.ranked[0]) if decision.ranked else 0.0
        devices = len(report.accelerators)
        for candidate in decision.ranked:
            taken = len(candidate.parallel.devices) or (0 if devices else 1)
            if not taken or taken in best or quality(each, candidate) < least:
                continue
            # Replicas side by side share main memory by their devices.
            share = taken * ground.share / devices if devices else 1.0
            if memory_bytes < 0 or candidate.memory.host_bytes <= memory_bytes * share:
                best[taken] = candidate
        found = _Answer(best, least, min(nearest_rejections(decision.rejected), key=_shortage, default=None))
        ground.answers[each.request, memory_bytes] = found
        return found

    def _spanning(self, kind: HostKind, each: Wanted) -> list[Way]:
        """The fewest whole hosts of one group that serve a replica together."""
        most = min(MOST_SPANNED, max(group.size for group in kind.groups))
        # Main memory of several hosts is not used.
        one = without_memory(kind.report)
        told = msgspec.json.encode(one)
        for hosts in range(2, most + 1):
            key = (told, hosts, each.request)
            if key not in self._spanned:
                report = several(one, hosts)
                devices = len(report.accelerators)
                self._spanned[key] = next(
                    (
                        candidate
                        for candidate in decide(each.model, report, _one(each.request), self._facts).ranked
                        if candidate.parallel.nodes == hosts and len(candidate.parallel.devices) == devices
                    ),
                    None,
                )
            candidate = self._spanned[key]
            if candidate is not None:
                return [Way(0, 0, kind.lots[0].slots, hosts, candidate)]
        return []


def served(candidate: Candidate) -> tuple[object, ...]:
    """What counts of a replica in a fleet's plan."""
    checkpoint, parallel, speed = candidate.checkpoint, candidate.parallel, candidate.speed
    return (
        (checkpoint.repo, checkpoint.format, checkpoint.quantization, candidate.engine.name, candidate.engine.version),
        (parallel.tensor, parallel.pipeline, parallel.expert),
        (candidate.limits.context_tokens, candidate.limits.max_sequences),
        (speed.decode_tokens_per_second, speed.throughput_tokens_per_second),
    )


def quality(wanted: Wanted, candidate: Candidate) -> float:
    """How near the original the weights of a candidate are."""
    checkpoint = candidate.checkpoint
    return next(
        known.quality
        for known in wanted.model.checkpoints
        if checkpoint.repo in (known.repo, known.modelscope) and checkpoint.quantization == known.quantization
    )


def _usable(report: HardwareReport) -> int:
    """Bytes of main memory that replicas may take; -1 where nobody knows."""
    memory = of_first_node(report)
    known = report.host.memory_available_bytes if memory is None else memory.free_bytes
    return -1 if known is None else known


def _one(request: PlanRequest) -> PlanRequest:
    """The request for a single replica."""
    return msgspec.structs.replace(request, pins=msgspec.structs.replace(request.pins, data_parallel=1))


def _undominated(best: dict[int, Candidate]) -> list[tuple[int, Candidate]]:
    """Without those that take more devices and give no more, or that give hardly anything for theirs."""
    rates = {slots: each.speed.throughput_tokens_per_second or 0.0 for slots, each in best.items()}
    each_device = max((rate / slots for slots, rate in rates.items()), default=0.0)
    found: list[tuple[int, Candidate]] = []
    most = -1.0
    for slots, candidate in sorted(best.items()):
        gives = rates[slots]
        if gives > most and gives >= LEAST_SHARE * each_device * slots:
            found.append((slots, candidate))
            most = gives
    return found


def _shortage(each: Rejection) -> float:
    needed, usable = each.numbers.get("needed_bytes"), each.numbers.get("usable_bytes")
    return needed / usable if needed and usable else float("inf")
