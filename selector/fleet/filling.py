"""The best filling of one host, given how many replicas every deployment has already. Exact, by dynamic programming.

The worth of a replica is what it gives (:func:`Worth.of`) and a bonus for each replica that a deployment still lacks,
so large that no output outweighs it. Given the counts, deployments compete only for the host's slots: first the best
use of ``c`` slots by one deployment (over the number of replicas, since the bonus counts them), then the best division
of the slots among the deployments.
"""

from __future__ import annotations

from typing import NamedTuple

from selector.fleet.problem import Filling, Option, Problem

#: The worth of the next replicas of a deployment beside what they give: as many entries as it may still have.
Bonuses = tuple[int, ...]
#: More replicas than there are devices anywhere.
_MANY = 1 << 62


class Worth(NamedTuple):
    """The objective as one whole number: each term outweighs all that follow together.

    ``values`` are those of the options, ``lack`` and ``want`` a deployment's bonus for a replica below the minimum and
    below what is wanted, a unit of weight; ``device`` what one costs.
    """

    values: tuple[int, ...]
    lack: int
    want: int
    device: int = 0

    @classmethod
    def of(cls, problem: Problem) -> Worth:
        slots = sum(each.hosts * max(1, each.slots) for each in problem.bins)
        most = slots * max((problem.value(each) for each in problem.options), default=0) + 1
        if problem.objective == "throughput":
            return cls(tuple(problem.value(each) for each in problem.options), most, 0)
        device = most
        want = device * (slots + 1) + most
        weights = sum(each.weight * (problem.wanted(place) or 0) for place, each in enumerate(problem.demands))
        values = tuple(problem.value(each) - device * problem.devices(each) for each in problem.options)
        return cls(values, want * (weights + 1) + want, want, device)


class Filler:
    """Fills hosts of a problem. What it has worked out once it knows again."""

    def __init__(self, problem: Problem, worth: Worth) -> None:
        self.problem, self.worth = problem, worth
        self._wanted = [problem.wanted(place) for place in range(len(problem.demands))]
        #: Of each kind of host, the options that take slots of one host, by deployment.
        self._singles: list[dict[int, list[int]]] = [{} for _ in problem.bins]
        #: Of each kind of host, the options that span several.
        self.spanning: list[list[int]] = [[] for _ in problem.bins]
        for number, option in enumerate(problem.options):
            if option.hosts > 1:
                self.spanning[option.bin].append(number)
            else:
                self._singles[option.bin].setdefault(option.deployment, []).append(number)
        self._bonuses: dict[tuple[int, int, int], Bonuses] = {}
        self._uses: dict[tuple[int, int, Bonuses], list[tuple[int, Filling]]] = {}
        self._filled: dict[tuple[int, int, tuple[int, ...]], tuple[int, Filling]] = {}
        self._sums: dict[Filling, tuple[int, tuple[tuple[int, int], ...]]] = {}
        bounds = [
            (each.minimum, _MANY if wanted is None else wanted)
            for each, wanted in zip(problem.demands, self._wanted, strict=True)
        ]
        #: Of each kind of host, its deployments with the least and the most replicas of each.
        self._asked = [tuple((each, *bounds[each]) for each in singles) for singles in self._singles]

    def bonuses(self, deployment: int, count: int, most: int) -> Bonuses:
        """What each further replica is worth beside its output, up to ``most`` of them and to what is wanted."""
        demand, wanted = self.problem.demands[deployment], self._wanted[deployment]
        key = (deployment, min(count, demand.minimum if wanted is None else wanted), most)
        known = self._bonuses.get(key)
        if known is not None:
            return known
        room = most if wanted is None else max(0, min(most, wanted - count))
        want = self.worth.want * demand.weight
        lacking = min(room, max(0, demand.minimum - count))
        found = (self.worth.lack * demand.weight + want,) * lacking + (want,) * (room - lacking)
        self._bonuses[key] = found
        return found

    def best(self, place: int, counts: list[int], taken: int = 0) -> tuple[int, Filling]:
        """What a host of a kind, with so many slots ``taken``, is worth at best, and its filling."""
        slots = self.problem.bins[place].slots
        singles = self._singles[place]
        # Counts that make no difference to this host are one key.
        told = tuple(
            [
                max(count, least - slots)
                if (count := counts[each]) < least
                else least
                if most - count >= slots
                else count
                for each, least, most in self._asked[place]
            ]
        )
        key = (place, slots - taken, told)
        known = self._filled.get(key)
        if known is None:
            bonuses = {each: self.bonuses(each, counts[each], slots) for each in singles}
            known = self._filled[key] = self._divided(place, slots - taken, bonuses)
        return known

    def gain(self, filling: Filling, counts: list[int]) -> int | None:
        """What a filling adds to ``counts``; ``None`` where a deployment would have more than it may."""
        known = self._sums.get(filling)
        if known is None:
            added: dict[int, int] = {}
            for number in filling:
                deployment = self.problem.options[number].deployment
                added[deployment] = added.get(deployment, 0) + 1
            known = self._sums[filling] = (sum(self.worth.values[each] for each in filling), tuple(added.items()))
        total = known[0]
        for deployment, more in known[1]:
            bonuses = self.bonuses(deployment, counts[deployment], more)
            if len(bonuses) < more:
                return None
            total += sum(bonuses)
        return total

    def _divided(self, place: int, slots: int, bonuses: dict[int, Bonuses]) -> tuple[int, Filling]:
        best: list[tuple[int, Filling]] = [(0, ())] * (slots + 1)
        for deployment, options in self._singles[place].items():
            if not bonuses[deployment]:
                continue
            uses = self._use(place, deployment, options, bonuses[deployment])
            taking = [each for each in range(1, slots + 1) if uses[each][1] and uses[each] is not uses[each - 1]]
            if not taking:
                continue
            further = list(best)
            for room in range(slots, 0, -1):
                worth, chosen = best[room]
                for taken in taking:
                    if taken > room:
                        break
                    other = best[room - taken]
                    if other[0] + uses[taken][0] > worth:
                        worth, chosen = other[0] + uses[taken][0], (*other[1], *uses[taken][1])
                further[room] = (worth, chosen)
            best = further
        worth, chosen = best[slots]
        return worth, tuple(sorted(chosen))

    def _use(self, place: int, deployment: int, options: list[int], bonuses: Bonuses) -> list[tuple[int, Filling]]:
        """What one deployment makes at best of none, one and more slots of a host."""
        slots = self.problem.bins[place].slots
        known = self._uses.get((place, deployment, bonuses))
        if known is not None:
            return known
        best: list[tuple[int, Filling]] = [(0, ())] * (slots + 1)
        so_many: list[tuple[int, Filling] | None] = [(0, ())] * (slots + 1)
        for bonus in bonuses:
            more: list[tuple[int, Filling] | None] = [None] * (slots + 1)
            for room in range(1, slots + 1):
                for number in options:
                    taken = self._option(number).slots
                    before = so_many[room - taken] if taken <= room else None
                    if before is None:
                        continue
                    worth = before[0] + self.worth.values[number] + bonus
                    kept = more[room]
                    if kept is None or worth > kept[0]:
                        more[room] = (worth, (*before[1], number))
            for room, each in enumerate(more):
                if each is not None and each[0] > best[room][0]:
                    best[room] = each
            so_many = more
        for room in range(1, slots + 1):  # an unused slot costs nothing
            if best[room - 1][0] >= best[room][0]:
                best[room] = best[room - 1]
        self._uses[place, deployment, bonuses] = best
        return best

    def _option(self, number: int) -> Option:
        return self.problem.options[number]
