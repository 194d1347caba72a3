"""The best that any packing could reach: a bound by prices, and what the prices say of a good packing.

Every deployment gets a price: what a replica beyond its maximum costs, and what one below its minimum is worth. At any
prices hosts decide alone, each for its best filling, and the sum over them is no less than the best packing's (weak
duality, Lagrange). The prices are bettered by subgradient steps (Held, Wolfe and Crowder, "Validation of subgradient
optimization", 1974; Polyak's step length), and the fillings that come up on the way, averaged, tend to the solution of
the relaxed problem (Barahona and Anbil, "The volume algorithm", 2000): :mod:`selector.fleet.heuristic` rounds it.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd
from typing import NamedTuple

from selector.fleet.problem import Figures, Filling, Problem

STEPS = 1000
#: Of many kinds of host fewer steps are made: so many hosts are filled in all, if that is not less than a few steps.
_FILLED = 40_000
_FEW_STEPS = 200
#: Steps without a better bound after which they are halved.
_PATIENCE = 20
#: The share of a new answer in the average.
_FRESH = 0.05
#: A bound that is so near to what was reached is near enough, as a share.
_CLOSE = 2e-4
#: Sums of floats are off by less than this share.
_ROUNDING = 1e-9


class Terms(NamedTuple):
    """What is to be made most of: the sum of ``values`` over replicas, under ``caps`` and ``floors`` of deployments.

    A floor may be missed, weighted with the deployments' weights, by ``slack`` in all.
    """

    values: tuple[float, ...]
    caps: tuple[int | None, ...]
    floors: tuple[int, ...]
    slack: int = 0


class Relaxed(NamedTuple):
    """A bound, what every option is worth at its prices, and the share of each kind's hosts that carried each filling.

    ``worth`` is in the units of the terms' values, less the price of its deployment's maximum, and with that of its
    minimum. The shares are averaged over the way to the bound.
    """

    bound: float
    worth: tuple[float, ...]
    shares: tuple[dict[Filling, float], ...]


def main_terms(problem: Problem, reached: Figures) -> Terms:
    """The term that decides between packings which lack as little as ``reached``: output, or the devices saved."""
    caps = tuple(problem.wanted(place) for place in range(len(problem.demands)))
    if problem.objective == "throughput":
        floors = tuple(each.minimum for each in problem.demands)
        return Terms(tuple(float(problem.value(each)) for each in problem.options), caps, floors, reached.lacking)
    floors = tuple(each or 0 for each in caps)
    devices = tuple(-float(problem.devices(each)) for each in problem.options)
    return Terms(devices, caps, floors, reached.wanted_lacking)


def bounds(problem: Problem, reached: Figures) -> tuple[int, int, int | None, int | None]:
    """The best that each of :class:`Figures` could be in a packing that does as well as ``reached`` in those before.

    What nobody looked for is ``None``: devices where they do not count, output where it only decides between equals.
    """
    lacking, wanted_lacking = bounds_of_lacks(problem, reached)
    terms = main_terms(problem, reached)
    if problem.objective == "throughput":
        found = relaxed(problem, terms, float(reached.output))
        return lacking, wanted_lacking, None, max(int(found.bound), reached.output)
    found = relaxed(problem, terms, float(-reached.devices))
    return lacking, wanted_lacking, min(max(0, ceil(-found.bound)), reached.devices), None


def bounds_of_lacks(problem: Problem, reached: Figures) -> tuple[int, int]:
    """The least that any packing lacks of the minimums, and the least of what is wanted for one as good in those."""
    wanted = tuple(problem.wanted(place) or 0 for place in range(len(problem.demands)))
    wanted_lacking = _least_lack(problem, wanted, reached.wanted_lacking) if problem.objective == "replicas" else 0
    return least_lacking(problem, reached), wanted_lacking


def least_lacking(problem: Problem, reached: Figures) -> int:
    """The least that any packing could be short of the minimums, weighted."""
    return _least_lack(problem, tuple(each.minimum for each in problem.demands), reached.lacking)


@lru_cache(maxsize=16)  # asked of one problem several times, and every time the same
def _least_lack(problem: Problem, floors: tuple[int, ...], reached: int) -> int:
    """The least weighted lack that any packing could have."""
    if reached == 0:
        return 0
    weights = [each.weight for each in problem.demands]
    alone = _lack_alone(problem, floors)
    if alone >= reached:
        return reached
    asked = sum(weight * floor for weight, floor in zip(weights, floors, strict=True))
    terms = Terms(tuple(float(weights[each.deployment]) for each in problem.options), floors, (0,) * len(floors))
    found = relaxed(problem, terms, float(asked - reached))
    step = gcd(*weights)  # lacks are whole replicas
    return min(reached, max(alone, ceil((asked - found.bound) / step) * step))


def _lack_alone(problem: Problem, floors: tuple[int, ...]) -> int:
    """What deployments lack even where each has all hosts to itself."""
    most: list[dict[int, int]] = [{} for _ in floors]
    for option in problem.options:
        each = problem.bins[option.bin]
        room = each.hosts // option.hosts if option.hosts > 1 else each.hosts * (each.slots // option.slots)
        found = most[option.deployment]
        found[option.bin] = max(room, found.get(option.bin, 0))
    return sum(
        demand.weight * max(0, floor - sum(rooms.values()))
        for demand, floor, rooms in zip(problem.demands, floors, most, strict=True)
    )


def relaxed(problem: Problem, terms: Terms, reached: float, steps: int = STEPS) -> Relaxed:
    """The bound, by at most ``steps`` steps; ``reached`` is what some packing comes to."""
    steps = min(steps, max(_FEW_STEPS, _FILLED // max(1, len(problem.bins))))
    weights = [each.weight for each in problem.demands]
    deployments = range(len(weights))
    over, under = [0.0] * len(weights), [0.0] * len(weights)
    center = (over, under)
    counts, missed = [0.0] * len(weights), [0.0] * len(weights)
    cheap = _Fills(problem)
    shares: list[dict[Filling, float]] = [{} for _ in problem.bins]
    best, prices = float("inf"), [0.0] * len(problem.options)
    length, waited = 1.0, 0
    for step in range(steps):
        worth = [
            value - over[option.deployment] + under[option.deployment]
            for value, option in zip(terms.values, problem.options, strict=True)
        ]
        fresh = max(_FRESH, 1 / (step + 1))
        total, now = 0.0, [0.0] * len(weights)
        for place, each in enumerate(problem.bins):
            gives, filling, used = cheap.best(place, worth)
            total += each.hosts * gives
            for number in filling:
                now[problem.options[number].deployment] += each.hosts / used
            _mix(shares[place], filling, fresh)
        spared = _missed(under, terms, weights)
        for place, cap in enumerate(terms.caps):
            total += (over[place] * cap if cap is not None else 0.0) + under[place] * (
                spared[place] - terms.floors[place]
            )
        counts = [(1 - fresh) * old + fresh * new for old, new in zip(counts, now, strict=True)]
        missed = [(1 - fresh) * old + fresh * new for old, new in zip(missed, spared, strict=True)]
        if total < best:
            better = best - total > 1e-6 * abs(total)
            best, prices, center, waited = total, worth, (over, under), 0 if better else waited + 1
            length = min(2.0, length * 1.1) if better else length
        else:
            waited += 1
        if waited >= _PATIENCE:
            length, waited = length * 0.6, 0
        ups = [0.0 if terms.caps[each] is None else counts[each] - (terms.caps[each] or 0) for each in deployments]
        downs = [terms.floors[each] - counts[each] - missed[each] for each in deployments]
        moved = sum(up * up for up, price in zip(ups, center[0], strict=True) if up > 0 or price > 0)
        moved += sum(down * down for down, price in zip(downs, center[1], strict=True) if down > 0 or price > 0)
        if moved <= 0 or best - reached <= _CLOSE * abs(reached) or length < 1e-5:
            break
        stride = length * max(best - reached, abs(best) * 1e-5) / moved
        over = [max(0.0, price + stride * up) for price, up in zip(center[0], ups, strict=True)]
        under = [max(0.0, price + stride * down) for price, down in zip(center[1], downs, strict=True)]
    return Relaxed(best + abs(best) * _ROUNDING, tuple(prices), tuple(shares))


def _mix(shares: dict[Filling, float], filling: Filling, fresh: float) -> None:
    for known in shares:
        shares[known] *= 1 - fresh
    shares[filling] = shares.get(filling, 0.0) + fresh


def _missed(under: list[float], terms: Terms, weights: list[int]) -> list[float]:
    """The floors that are missed where that is worth most, as far as ``slack`` goes."""
    missed = [0.0] * len(under)
    left = float(terms.slack)
    for place in sorted(range(len(under)), key=lambda each: (-under[each] / weights[each], each)):
        if left <= 0:
            break
        missed[place] = min(float(terms.floors[place]), left / weights[place])
        left -= missed[place] * weights[place]
    return missed


class _Fills:
    """The best filling of a host where every replica has a fixed worth: a knapsack without bounds."""

    def __init__(self, problem: Problem) -> None:
        self._bins = problem.bins
        #: Of each kind of host, the options that take so many slots of one host.
        self._singles: list[dict[int, list[int]]] = [{} for _ in problem.bins]
        self._spanning: list[list[tuple[int, int]]] = [[] for _ in problem.bins]
        for number, option in enumerate(problem.options):
            if option.hosts == 1:
                self._singles[option.bin].setdefault(option.slots, []).append(number)
            elif option.hosts <= problem.bins[option.bin].hosts:
                self._spanning[option.bin].append((number, option.hosts))

    def best(self, place: int, worth: list[float]) -> tuple[float, Filling, int]:
        """The worth of a host, what it carries, and over how many hosts that goes."""
        slots = self._bins[place].slots
        of = worth.__getitem__
        firsts = [(size, max(numbers, key=of)) for size, numbers in self._singles[place].items()]
        sizes = [(size, number, worth[number]) for size, number in firsts if worth[number] > 0]
        best, last = [0.0] * (slots + 1), [(1, -1)] * (slots + 1)
        for room in range(1, slots + 1):
            most, kept = best[room - 1], (1, -1)
            for size, number, gives in sizes:
                if size <= room and best[room - size] + gives > most:
                    most, kept = best[room - size] + gives, (size, number)
            best[room], last[room] = most, kept
        found: list[int] = []
        gives, room = best[slots], slots
        while room > 0:
            size, number = last[room]
            room -= size
            if number >= 0:
                found.append(number)
        filling, over = tuple(sorted(found)), 1
        for number, hosts in self._spanning[place]:
            if worth[number] / hosts > gives:
                gives, filling, over = worth[number] / hosts, (number,), hosts
        return gives, filling, over
