"""Laws of the fleet's packing, over problems that nobody listed: sound, near the best, and within its bound."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.fleet import bound, exact, heuristic
from selector.fleet.asked import FLEET_OBJECTIVES, FleetDeployment, HostGroup
from selector.fleet.options import Wanted
from selector.fleet.plan import fleet_plan
from selector.fleet.problem import Bin, Demand, Option, Problem, faults, figures
from selector.machines import report_from_spec

#: What scripts/bench_fleet holds over many more.
GAP = 0.05
CATALOG = Catalog()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small ones of the nasty sort: odd sizes, few places, options over two hosts, minimums beyond the room."""
    bins = tuple(
        Bin(draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4, 6, 8]))) for _ in range(draw(st.integers(1, 3)))
    )
    demands, options = [], []
    for deployment in range(draw(st.integers(1, 4))):
        least = draw(st.integers(0, 3))
        most = draw(st.sampled_from([None, max(1, least), least + 2]))
        demands.append(Demand(draw(st.sampled_from([500, 1000, 10_000])), least, most))
        places = draw(st.sets(st.integers(0, len(bins) - 1), min_size=1))
        for place in sorted(places):
            sizes = draw(st.sets(st.integers(1, bins[place].slots), max_size=3))
            options += [
                Option(deployment, place, size, draw(st.integers(0, 3_000_000)) * size) for size in sorted(sizes)
            ]
            if bins[place].hosts > 1 and draw(st.integers(0, 4)) == 0:
                options.append(Option(deployment, place, bins[place].slots, draw(st.integers(0, 30_000_000)), 2))
    return Problem(bins, tuple(demands), tuple(options), draw(st.sampled_from(FLEET_OBJECTIVES)))


@pytest.mark.timeout(240)  # a fifth of a second an example, on a machine with nothing else to do
@settings(max_examples=20, deadline=None)
@given(problems())
def test_a_packing_is_sound_and_near_the_best_and_no_better_than_its_bound(problem: Problem) -> None:
    found = heuristic.packed(problem)
    assert faults(problem, found) == ()
    reached, best = figures(problem, found), exact.solved(problem)
    ideal = figures(problem, best.packing)
    assert faults(problem, best.packing) == ()
    assert (reached.lacking, reached.wanted_lacking) == (ideal.lacking, ideal.wanted_lacking)
    lacking, wanted_lacking, devices, output = bound.bounds(problem, reached)
    assert lacking <= ideal.lacking
    assert wanted_lacking <= ideal.wanted_lacking
    if problem.objective == "replicas":
        assert devices is not None
        assert devices <= ideal.devices <= reached.devices <= ideal.devices * (1 + GAP)
    else:
        assert output is not None
        assert reached.output >= ideal.output * (1 - GAP)
        assert max(reached.output, ideal.output * (1 - exact.TOLERANCE) - 1) <= output


@pytest.mark.timeout(180)  # four seconds, on a machine with nothing else to do
def test_a_replica_is_not_lacking_where_hosts_filled_otherwise_have_room_for_it() -> None:
    sizes = {
        0: ((0, 1), (0, 4)),
        1: ((0, 6), (1, 2), (1, 3), (1, 8)),
        2: ((0, 6), (1, 2), (1, 7)),
        3: ((0, 1), (0, 2), (0, 5), (1, 3), (1, 6)),
        4: ((0, 2), (0, 7)),
        5: ((0, 6), (1, 1), (1, 5), (1, 10)),
        6: ((1, 2), (1, 3)),
        7: ((0, 5), (0, 6)),
        8: ((0, 3), (0, 4), (0, 6), (1, 9)),
        9: ((0, 2), (0, 6), (0, 7), (1, 9)),
    }
    asked = [(1, 1), (2, 4), (1, 2), (5, 5), (5, 7), (0, 1), (0, None), (2, 2), (2, 4), (5, 5)]
    problem = Problem(
        (Bin(1, 7), Bin(4, 10)),
        tuple(Demand(500 if place in (2, 3, 8) else 1000, *each) for place, each in enumerate(asked)),
        tuple(Option(each, place, size, size * 1000) for each, found in sizes.items() for place, size in found),
        "replicas",
    )
    best, reached = figures(problem, exact.solved(problem).packing), figures(problem, heuristic.packed(problem))
    assert (reached.lacking, reached.wanted_lacking) == (best.lacking, best.wanted_lacking)
    assert reached.devices <= best.devices * 1.05


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(0, 2))
def test_one_more_host_never_makes_the_best_plan_worse(problem: Problem, place: int) -> None:
    place %= len(problem.bins)
    more = tuple(
        each._replace(hosts=each.hosts + 1) if number == place else each for number, each in enumerate(problem.bins)
    )
    before = figures(problem, exact.solved(problem).packing)
    after = figures(problem, exact.solved(problem._replace(bins=more)).packing)
    slack = round(before.output * exact.TOLERANCE) + 1
    *first, output = before.order(problem.objective)
    *then, more_output = after.order(problem.objective)
    assert (then, more_output - slack) <= (first, output)


MACHINES = st.sampled_from(["8xh100", "4xh200", "4xl40s", "2xrtx4090", "8xmi300x", "1xh200", "cpu-64gb"])
DEPLOYMENTS = st.builds(
    FleetDeployment,
    name=st.just(""),
    model=st.sampled_from(["glm-4.6", "glm-4.5v", "glm-4.5-air", "glm-tiny"]),
    objective=st.sampled_from(["balanced", "throughput"]),
    minimum_replicas=st.integers(0, 3),
    maximum_replicas=st.sampled_from([None, 3, 5]),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(MACHINES, st.integers(1, 3)), min_size=1, max_size=3),
    st.lists(DEPLOYMENTS, min_size=1, max_size=3),
    st.sampled_from(FLEET_OBJECTIVES),
    st.sampled_from(["exact", "heuristic"]),
)
def test_every_replica_has_devices_that_are_there_and_its_own(
    machines: list[tuple[str, int]], asked: list[FleetDeployment], objective: str, method: str
) -> None:
    groups = [
        (HostGroup(name=f"g{place}", hardware=name, count=count), report_from_spec(name, CATALOG))
        for place, (name, count) in enumerate(machines)
    ]
    wanted = [
        Wanted(
            msgspec.structs.replace(each, name=f"d{place}"),
            CATALOG.model(each.model),
            PlanRequest(model=each.model, objective=each.objective),
        )
        for place, each in enumerate(asked)
    ]
    plan = fleet_plan(objective, groups, wanted, CATALOG, method=method)  # type: ignore[arg-type]  # drawn literals
    there = {host: {each.index for each in report.accelerators} for group, report in groups for host in group.hosts()}
    taken: dict[str, set[int]] = {}
    counts = dict.fromkeys((each.name for each in plan.deployments), 0)
    for placement in plan.placements:
        replica = plan.replicas[placement.replica]
        for hosts in placement.on:
            counts[replica.deployment] += 1
            assert len(hosts) == replica.hosts
            assert len(placement.devices) * len(hosts) == replica.devices
            for host in hosts:
                assert set(placement.devices) <= there[host]
                assert taken.get(host, set()).isdisjoint(placement.devices)
                assert placement.devices or host not in taken  # a processor serves one
                taken.setdefault(host, set()).update(placement.devices)
    for each in plan.deployments:
        assert each.replicas == counts[each.name]
        assert each.maximum_replicas is None or each.replicas <= each.maximum_replicas
        assert each.lacking_replicas == max(0, each.minimum_replicas - each.replicas)
        assert (each.reason is None) == (each.lacking_replicas == 0)
    idle = sum(len(each) for each in there.values()) - sum(len(each) for each in taken.values())
    assert sum(each.idle_devices for each in plan.hardware) == idle
    assert plan.feasible == all(each.lacking_replicas == 0 for each in plan.deployments)
