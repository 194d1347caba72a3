"""From hosts and deployments to the FleetPlan that a reader gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from selector.contract import Rejection
from selector.fleet import bound, exact, heuristic
from selector.fleet.asked import FleetMethod, FleetObjective, HostGroup
from selector.fleet.contract import FleetPlan, HardwareUse, Placement, Replica, Served, Term
from selector.fleet.kinds import HostKind, Lot, kinds, told_apart
from selector.fleet.options import Options, Wanted, Way, Ways, quality, served
from selector.fleet.problem import THOUSANDTHS, Bin, Demand, Figures, Option, Packing, Problem, figures
from selector.fleet.seats import Seat, seats
from selector.hardware import HardwareReport
from selector.search import Facts

#: Where HiGHS is installed, the nodes of its search tree that it may take unasked (most fleets take one), and the
#: kinds of host times options beyond which it is not tried.
EXACT_NODES = 2_000
EXACT_SIZE = 2_000_000
_MILLIONTHS = THOUSANDTHS * THOUSANDTHS


class _Yard(NamedTuple):
    """The problem, and what its numbers stand for: of a bin the kind, the lot and the hosts, of an option the way."""

    problem: Problem
    kinds: tuple[HostKind, ...]
    bins: list[tuple[int, Lot, tuple[HostGroup, ...]]]
    ways: list[Way]
    refused: dict[int, tuple[str, Rejection]]


def fleet_plan(
    objective: FleetObjective,
    hosts: Iterable[tuple[HostGroup, HardwareReport]],
    wanted: Iterable[Wanted],
    facts: Facts,
    *,
    method: FleetMethod | None = None,
) -> FleetPlan:
    """Which deployments go where. Pure: the same arguments, in any order, give the same plan.

    Args:
        hosts: every group with the report of one of its hosts.
        wanted: every deployment, names unique.
        method: how the packing is found; ``None`` takes the exact solution where HiGHS is installed and finds it within
            :data:`EXACT_NODES`, and the heuristic otherwise.

    Raises:
        NoSolver: ``exact`` was asked for, and HiGHS is not installed.
        Unsolved: ``exact`` was asked for, and the hosts can be cut in too many ways.
    """
    ordered = tuple(sorted(wanted, key=lambda each: each.deployment.name))
    yard = _yard(objective, kinds(hosts, facts.accelerator_for), ordered, facts)
    problem = yard.problem
    packing, bounds, used = _packed(problem, method)
    reached = figures(problem, packing)
    terms = _terms(problem, reached, bounds)
    main = terms[-1] if objective == "throughput" else terms[-2]
    names = [tuple(name for group in groups for name in group.hosts()) for _, _, groups in yard.bins]
    taken = list(seats(packing, problem.options, [lot for _, lot, _ in yard.bins], names))
    replicas, placements = _places(yard, ordered, taken)
    hardware = _use(yard, taken)
    return FleetPlan(
        objective=objective,
        method=used,
        feasible=reached.lacking == 0,
        value=main.value,
        bound=main.value if main.bound is None else main.bound,
        gap=main.gap,
        terms=terms,
        hosts=sum(each.hosts for each in hardware),
        devices=sum(each.devices for each in hardware),
        deployments=_served(yard, ordered, packing),
        replicas=replicas,
        placements=placements,
        hardware=hardware,
    )


def _packed(problem: Problem, method: FleetMethod | None) -> tuple[Packing, tuple[int | None, ...], FleetMethod]:
    small = len(problem.bins) * len(problem.options) <= EXACT_SIZE
    if method == "exact" or (method is None and small and exact.installed()):
        try:
            packing, bounds = exact.solved(problem, most_nodes=None if method == "exact" else EXACT_NODES)
        except exact.Unsolved:
            if method == "exact":
                raise
        else:
            return packing, bounds, "exact"
    packing = heuristic.packed(problem)
    return packing, bound.bounds(problem, figures(problem, packing)), "heuristic"


# --- the problem ------------------------------------------------------------------------------------


def _yard(objective: FleetObjective, found: tuple[HostKind, ...], wanted: tuple[Wanted, ...], facts: Facts) -> _Yard:
    found, every = _merged(found, Options(wanted, facts, found))
    bins: list[tuple[int, Lot, tuple[HostGroup, ...]]] = []
    sizes: list[Bin] = []
    options: list[Option] = []
    ways: list[Way] = []
    refused: dict[int, tuple[str, Rejection]] = {}
    for number, kind in enumerate(found):
        on = every[number]
        for place, why in on.refused.items():
            if place not in refused or _nearer(why, refused[place][1]):
                refused[place] = (kind.label, why)
        # What spans hosts stays in one group; otherwise it does not matter which group a host is of.
        split = any(way.hosts > 1 for way in on.found) and len(kind.groups) > 1
        for groups in [(group,) for group in kind.groups] if split else [kind.groups]:
            hosts = sum(each.size for each in groups)
            for place, lot in enumerate(kind.lots):
                for way in on.found:
                    if way.lot == place and way.hosts <= hosts:
                        rate = way.candidate.speed.throughput_tokens_per_second or 0.0
                        milli = round(rate * THOUSANDTHS)
                        options.append(Option(way.deployment, len(bins), way.slots, milli, way.hosts))
                        ways.append(way)
                bins.append((number, lot, groups))
                sizes.append(Bin(hosts, lot.slots, 1 if lot.devices else 0))
    demands = tuple(
        Demand(
            max(1, round(each.deployment.weight * THOUSANDTHS)),
            each.deployment.minimum_replicas,
            each.deployment.maximum_replicas,
        )
        for each in wanted
    )
    return _Yard(Problem(tuple(sizes), demands, tuple(options), objective), found, bins, ways, refused)


def _merged(found: tuple[HostKind, ...], planner: Options) -> tuple[tuple[HostKind, ...], list[Ways]]:
    """Kinds with the ways of each; those that differ in nothing that a deployment makes use of are one."""
    merged: dict[tuple[object, ...], tuple[list[HostKind], Ways]] = {}
    for kind in found:
        ways = planner.on(kind)
        told = tuple((way.deployment, way.lot, way.slots, way.hosts, served(way.candidate)) for way in ways.found)
        merged.setdefault((kind.label, kind.lots, told), ([], ways))[0].append(kind)
    kept = told_apart(
        kinds[0]._replace(groups=tuple(sorted((group for each in kinds for group in each.groups), key=_name)))
        for kinds, _ in merged.values()
    )
    return kept, [ways for _, ways in merged.values()]


def _name(group: HostGroup) -> str:
    return group.name


def _nearer(one: Rejection, other: Rejection) -> bool:
    def share(each: Rejection) -> float:
        needed, usable = each.numbers.get("needed_bytes"), each.numbers.get("usable_bytes")
        return needed / usable if needed and usable else float("inf")

    return share(one) < share(other)


# --- the answer -------------------------------------------------------------------------------------


def _terms(problem: Problem, reached: Figures, bounds: tuple[int | None, ...]) -> tuple[Term, ...]:
    """The terms of the objective, in order; replicas are counted by their deployments' weights."""
    rows: list[Term] = [_term("lacking_replicas", reached.lacking, bounds[0], THOUSANDTHS)]
    if problem.objective == "replicas":
        rows += [
            _term("wanted_lacking_replicas", reached.wanted_lacking, bounds[1], THOUSANDTHS),
            _term("devices", reached.devices, bounds[2], 1),
        ]
    rows.append(_term("weighted_throughput_tokens_per_second", reached.output, bounds[3], _MILLIONTHS))
    return tuple(rows)


def _term(name: str, value: int, best: int | None, unit: int) -> Term:
    gap = None if best is None or (best == 0 and value) else abs(value - best) / best if best else 0.0
    return Term(
        name=name,  # type: ignore[arg-type]  # the callers' are the literals
        value=value / unit,
        bound=None if best is None else best / unit,
        gap=gap,
    )


def _places(
    yard: _Yard, wanted: tuple[Wanted, ...], taken: list[Seat]
) -> tuple[tuple[Replica, ...], tuple[Placement, ...]]:
    """The ways that are used, and where. Groups of one kind that are told apart in the problem are one way here."""
    rows: dict[tuple[int, int, int, int], list[Seat]] = {}
    for seat in taken:
        way = yard.ways[seat.option]
        kind = yard.bins[yard.problem.options[seat.option].bin][0]
        rows.setdefault((way.deployment, kind, way.lot, way.slots * way.hosts), []).append(seat)
    replicas: list[Replica] = []
    placements: list[Placement] = []
    for (deployment, kind, _, _), found in sorted(rows.items()):
        way = yard.ways[found[0].option]
        places: dict[tuple[int, ...], list[tuple[str, ...]]] = {}
        for seat in found:
            places.setdefault(seat.devices, []).append(seat.hosts)
        placements += [
            Placement(replica=len(replicas), devices=devices, on=tuple(on)) for devices, on in sorted(places.items())
        ]
        replicas.append(_replica(wanted[deployment], yard.kinds[kind], way, len(found)))
    return tuple(replicas), tuple(placements)


def _replica(wanted: Wanted, kind: HostKind, way: Way, times: int) -> Replica:
    each = way.candidate
    return Replica(
        deployment=wanted.deployment.name,
        hardware=kind.label,
        devices=len(each.parallel.devices),
        hosts=way.hosts,
        replicas=times,
        repo=each.checkpoint.repo,
        format=each.checkpoint.format,
        quantization=each.checkpoint.quantization,
        engine=each.engine.name,
        engine_version=each.engine.version,
        tensor=each.parallel.tensor,
        pipeline=each.parallel.pipeline,
        expert=each.parallel.expert,
        context_tokens=each.limits.context_tokens,
        max_sequences=each.limits.max_sequences,
        decode_tokens_per_second=each.speed.decode_tokens_per_second,
        throughput_tokens_per_second=each.speed.throughput_tokens_per_second,
    )


def _served(yard: _Yard, wanted: tuple[Wanted, ...], packing: Packing) -> tuple[Served, ...]:
    problem = yard.problem
    counts = packing.replicas(problem)
    devices, rates = [0] * len(counts), [0] * len(counts)
    for number, times in packing.options():
        option = problem.options[number]
        devices[option.deployment] += problem.devices(option) * times
        rates[option.deployment] += option.rate * times
    return tuple(
        Served(
            name=each.deployment.name,
            model=each.model.id,
            weight=each.deployment.weight,
            minimum_replicas=each.deployment.minimum_replicas,
            maximum_replicas=each.deployment.maximum_replicas,
            replicas=counts[place],
            lacking_replicas=max(0, each.deployment.minimum_replicas - counts[place]),
            devices=devices[place],
            throughput_tokens_per_second=rates[place] / THOUSANDTHS,
            reason=_reason(yard, place) if counts[place] < each.deployment.minimum_replicas else None,
            less_accurate=_less_accurate(yard, place, each, packing),
        )
        for place, each in enumerate(wanted)
    )


def _less_accurate(yard: _Yard, deployment: int, wanted: Wanted, packing: Packing) -> str | None:
    """That replicas have weights further from the original than the fleet could serve elsewhere; it was not asked for.

    On one kind of host the planner weighs accuracy itself (:mod:`selector.fleet.options`); between kinds, output does.
    """
    own = [number for number, way in enumerate(yard.ways) if way.deployment == deployment]
    of = {number: quality(wanted, yard.ways[number].candidate) for number in own}
    best = max(own, key=lambda number: of[number], default=None)
    lower: dict[tuple[int, str], int] = {}
    for number, times in packing.options():
        if best is not None and number in of and of[number] < of[best]:
            key = (yard.bins[yard.problem.options[number].bin][0], yard.ways[number].candidate.checkpoint.quantization)
            lower[key] = lower.get(key, 0) + times
    if best is None or not lower:
        return None
    told = " and ".join(
        f"{times:,} replica{'' if times == 1 else 's'} on {yard.kinds[kind].label} with {quantization}"
        for (kind, quantization), times in sorted(lower.items())
    )
    kind = yard.kinds[yard.bins[yard.problem.options[best].bin][0]].label
    return f"{told}, where {kind} would serve {yard.ways[best].candidate.checkpoint.quantization}"


def _reason(yard: _Yard, deployment: int) -> str:
    """Why there are not as many replicas as were asked for, and what one more would take."""
    options = [(yard.problem.devices(each), number) for number, each in enumerate(yard.problem.options)]
    own = sorted(each for each in options if yard.problem.options[each[1]].deployment == deployment)
    if own:
        devices, number = own[0]
        option = yard.problem.options[number]
        label = yard.kinds[yard.bins[option.bin][0]].label
        takes = "the processor of a host" if devices == 0 else f"{devices} device{'s' if devices > 1 else ''}"
        where = label if option.hosts == 1 else f"{option.hosts} hosts {label}"
        return f"the hosts that hold it are taken; one more replica takes {takes} of {where}, at the least"
    if deployment not in yard.refused:
        return "no host of the fleet can be planned for"
    label, nearest = yard.refused[deployment]
    return f"no host holds it; what comes nearest, on {label}: {nearest.repo} with {nearest.engine}: {nearest.message}"


def _use(yard: _Yard, taken: list[Seat]) -> tuple[HardwareUse, ...]:
    used: list[dict[str, int]] = [{} for _ in yard.kinds]
    for seat in taken:
        kind = yard.bins[yard.problem.options[seat.option].bin][0]
        for host in seat.hosts:
            used[kind][host] = used[kind].get(host, 0) + len(seat.devices)
    return tuple(
        HardwareUse(
            hardware=kind.label,
            groups=tuple(group.name for group in kind.groups),
            hosts=kind.hosts,
            idle_hosts=kind.hosts - len(used[place]),
            devices=kind.hosts * len(kind.report.accelerators),
            idle_devices=kind.hosts * len(kind.report.accelerators) - sum(used[place].values()),
        )
        for place, kind in enumerate(yard.kinds)
    )
