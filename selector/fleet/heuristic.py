"""A good packing without a solver, for any number of hosts, and the same one every time.

Four starts, each a packing in itself: the relaxed problem's solution (:mod:`selector.fleet.bound`) rounded down, with
the hosts that are left filled one after the other by :mod:`selector.fleet.filling`; and all hosts filled so, the ones
with the fewest uses first, with the most first, and at the relaxed problem's prices. Each is bettered by a search over
neighbours (:mod:`selector.fleet.search`). It ends where the bound says that hardly anything is left to win, where a
pass finds nothing, or when its tries are spent. Where replicas are lacking then that may not have to, neighbours are
tried for their sake alone, whatever output that costs, and what comes of it is bettered as before.

What it is worth is measured against the exact solution by ``scripts/bench_fleet`` and held by a test; every plan tells
the gap that is proven for it.
"""

from __future__ import annotations

import random
from math import ceil

from selector.fleet.bound import Relaxed, bounds_of_lacks, least_lacking, main_terms, relaxed
from selector.fleet.filling import Filler, Worth
from selector.fleet.problem import Packing, Problem, figures
from selector.fleet.search import Effort, Fleet

_ROUNDS = 8
#: The search ends where no packing can be better by more than this share.
_NEAR = 0.003
#: Of so many starts the neighbours that are drawn are tried.
_DEEPENED = 2
#: Hosts that are filled for the sake of replicas that are lacking, how often at new costs, and how many of them.
_REPAIR = 1_500
_REPAIRS = 40
_COSTS = 3
_COST = 1000
_SEED = 87


def packed(problem: Problem) -> Packing:
    """The best of the starts, bettered."""
    worth = Worth.of(problem)
    filler = Filler(problem, worth)
    uses = [
        len({each.deployment for each in problem.options if each.bin == place}) for place in range(len(problem.bins))
    ]
    scarce = sorted(range(len(problem.bins)), key=lambda place: (uses[place], place))
    first = Fleet(filler, (), Effort()).filled(scarce)
    reached = figures(problem, first.packing())
    loose = relaxed(
        problem,
        main_terms(problem, reached),
        float(reached.output if problem.objective == "throughput" else -reached.devices),
    )
    enough = _enough(problem, worth, loose, least_lacking(problem, reached))
    guides = tuple(Filler(problem, each) for each in _guides(problem, worth, loose))
    effort = Effort()
    starts: list[Fleet] = []
    for shares, order, guided in (
        (loose.shares, scarce, True),
        (None, scarce, False),
        (None, scarce[::-1], False),
        (None, scarce, True),
    ):
        fleet = Fleet(filler, guides, effort)
        if shares is not None:
            fleet.rounded(shares)
        if guided:
            fleet.filled(order, guided=True)
        starts.append(fleet.filled(order))
        fleet.bettered(enough)
        if fleet.worth >= enough:
            return fleet.packing()
    starts.sort(key=lambda each: -each.worth)  # the sort is stable: the first of equals
    for start in starts[:_DEEPENED]:
        start.bettered(enough, rounds=_ROUNDS)
    best = max(starts[:_DEEPENED], key=lambda each: each.worth)
    repaired = _repaired(problem, best.packing())
    if repaired is None:
        return best.packing()
    fleet = Fleet(filler, guides, Effort()).taken(repaired).filled(scarce)
    fleet.bettered(enough, rounds=_ROUNDS)
    return max(best, fleet, key=lambda each: each.worth).packing()


def _repaired(problem: Problem, packing: Packing) -> Packing | None:
    """A packing that lacks fewer replicas, whatever else it gives; ``None`` where none was found, or none can be.

    Replicas are worth only what they make up of the lack, and are tried at costs that are drawn: of packings that lack
    as much one is as good as another, so that the search may wander among them.
    """
    reached = figures(problem, packing)
    lacking, wanted_lacking = bounds_of_lacks(problem, reached)
    if (reached.lacking, reached.wanted_lacking) == (lacking, wanted_lacking):
        return None
    chance = random.Random(_SEED)  # noqa: S311  # not for secrets: the same draws every time
    slots = sum(each.hosts * each.slots for each in problem.bins)
    unit = 4 * _COST * slots
    asked = sum(each.weight * (problem.wanted(place) or 0) for place, each in enumerate(problem.demands))
    want = unit if problem.objective == "replicas" else 0
    lack = want * (asked + 1) + unit
    blank = Filler(problem, Worth((0,) * len(problem.options), lack, want))
    enough: int | None = None
    best, found = 0, packing
    for _ in range(_REPAIRS):
        costs = [[-round(each.slots * each.hosts * _COST * 4 ** chance.uniform(-1, 1)) for each in problem.options]]
        costs += [[round(cost * chance.uniform(0.5, 1)) for cost in costs[0]] for _ in range(_COSTS - 1)]
        guides = tuple(Filler(problem, Worth(tuple(each), lack, want)) for each in costs)
        effort = Effort(_REPAIR)
        fleet = Fleet(blank, guides, effort).taken(found)
        if enough is None:
            best = fleet.worth
            enough = best + lack * (reached.lacking - lacking) + want * (reached.wanted_lacking - wanted_lacking)
        while fleet.worth < enough and effort.left > 0:
            fleet.wandered(chance, enough)
        found = fleet.packing()
        if fleet.worth >= enough:
            break
    return found if fleet.worth > best else None


def _guides(problem: Problem, worth: Worth, loose: Relaxed) -> tuple[Worth, ...]:
    """What options are worth at the prices of the relaxed problem."""
    if problem.objective == "throughput":
        priced = tuple(round(each) for each in loose.worth)
        return Worth(priced, 0, 0), Worth(priced, worth.lack, 0)
    scale = worth.lack  # devices are few: in whole numbers their prices would be lost
    return (Worth(tuple(round(each * scale) for each in loose.worth), 0, 0),)


def _enough(problem: Problem, worth: Worth, loose: Relaxed, lacking: int) -> int:
    """A worth that no packing exceeds by more than a little; ``lacking`` is the least that any packing lacks."""
    total = -worth.lack * lacking
    for place, each in enumerate(problem.demands):
        total += (worth.lack * each.minimum + worth.want * (problem.wanted(place) or 0)) * each.weight
    if problem.objective == "throughput":
        return total + int(loose.bound * (1 - _NEAR))
    return total - worth.device * max(0, ceil(-loose.bound))
