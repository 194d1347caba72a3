"""The fleet's parts: kinds of host, the best filling of one, the packing, seats, and the plan of small fleets."""

from __future__ import annotations

import sys
from itertools import product

import msgspec
import pytest

from autolaunch import api
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.fleet import bound, exact, heuristic
from selector.fleet.asked import FleetDeployment, FleetObjective, HostGroup
from selector.fleet.contract import FleetPlan
from selector.fleet.filling import Filler, Worth
from selector.fleet.kinds import Lot, kinds
from selector.fleet.options import Options, Wanted
from selector.fleet.plan import fleet_plan
from selector.fleet.problem import Bin, Demand, Filling, Option, Packing, Problem, faults, figures
from selector.fleet.seats import seats
from selector.hardware import NetworkPort
from selector.machines import report_from_spec
from selector.request import Pins
from tests.fakes.clusters import cluster, port


def planned(
    catalog: Catalog,
    hosts: dict[str, tuple[str, int]],
    *deployments: FleetDeployment,
    objective: FleetObjective = "throughput",
) -> FleetPlan:
    groups = [
        (HostGroup(name=name, hardware=hardware, count=count), report_from_spec(hardware, catalog))
        for name, (hardware, count) in hosts.items()
    ]
    wanted = [
        Wanted(
            each,
            catalog.model(each.model),
            PlanRequest(
                model=each.model, objective=each.objective, context_tokens=each.context_tokens, pins=each.pinned
            ),
        )
        for each in deployments
    ]
    return fleet_plan(objective, groups, wanted, catalog, method="heuristic")


# --- one host ---------------------------------------------------------------------------------------

SMALL = Problem(
    bins=(Bin(1, 4), Bin(1, 3)),
    demands=(Demand(1000, 1, 2), Demand(500, 0, None), Demand(2000, 1, 1)),
    options=(
        Option(0, 0, 1, 100),
        Option(0, 0, 2, 260),
        Option(1, 0, 1, 90),
        Option(1, 0, 3, 500),
        Option(2, 0, 2, 70),
        Option(2, 1, 3, 10),
        Option(1, 1, 2, 30),
    ),
    objective="throughput",
)


@pytest.mark.parametrize("counts", list(product(range(3), range(2), range(2))))
@pytest.mark.parametrize("objective", ["throughput", "replicas"])
def test_the_filling_of_one_host_is_the_best_of_all(counts: tuple[int, ...], objective: FleetObjective) -> None:
    problem = SMALL._replace(objective=objective)
    filler = Filler(problem, Worth.of(problem))

    def fillings(room: int, first: int, made: Filling) -> list[Filling]:
        found = [made]
        for number in range(first, len(problem.options)):
            option = problem.options[number]
            if option.bin == 0 and option.slots <= room:
                found += fillings(room - option.slots, number, (*made, number))
        return found

    worths = {each: filler.gain(each, list(counts)) for each in fillings(4, 0, ())}
    best = max(worth for worth in worths.values() if worth is not None)
    worth, filling = filler.best(0, list(counts))
    assert worth == best == worths[filling]


# --- packings ---------------------------------------------------------------------------------------


def test_a_minimum_comes_before_any_output() -> None:
    problem = Problem(
        (Bin(1, 8),),
        (Demand(1000, 1, None), Demand(1000, 0, None)),
        (Option(0, 0, 8, 1), Option(1, 0, 8, 10**9)),
        "throughput",
    )
    assert heuristic.packed(problem).units == {(0, (0,)): 1}


def test_what_fits_one_kind_alone_is_not_crowded_out_of_it() -> None:
    problem = Problem(
        (Bin(1, 8), Bin(1, 8)),
        (Demand(1000, 1, 1), Demand(1000, 1, 1)),
        (Option(0, 0, 8, 900), Option(0, 1, 8, 100), Option(1, 0, 8, 100)),
        "throughput",
    )
    assert heuristic.packed(problem).units == {(0, (2,)): 1, (1, (1,)): 1}


def test_hosts_are_filled_to_the_last_device_by_unlike_sizes() -> None:
    problem = Problem(
        (Bin(2, 8),),
        (Demand(1000, 2, 2), Demand(1000, 2, 2), Demand(1000, 2, 2)),
        (Option(0, 0, 3, 300), Option(1, 0, 4, 400), Option(2, 0, 1, 100)),
        "throughput",
    )
    found = heuristic.packed(problem)
    assert found.replicas(problem) == [2, 2, 2]


def test_the_fewest_devices_hold_the_replicas_that_are_wanted() -> None:
    problem = Problem(
        (Bin(4, 8), Bin(4, 4)),
        (Demand(1000, 1, 3), Demand(1000, 1, None)),
        (Option(0, 0, 4, 900), Option(0, 1, 2, 100), Option(1, 0, 2, 100), Option(1, 1, 4, 900)),
        "replicas",
    )
    found = heuristic.packed(problem)
    assert found.replicas(problem) == [3, 1]  # the minimum, where no maximum says more
    assert figures(problem, found).devices == 8


def test_a_replica_over_several_hosts_takes_them_whole() -> None:
    problem = Problem(
        (Bin(3, 8),),
        (Demand(1000, 1, None), Demand(10, 0, None)),
        (Option(0, 0, 8, 700, 2), Option(1, 0, 8, 900)),
        "throughput",
    )
    found = heuristic.packed(problem)
    assert found.units == {(0, (0,)): 1, (0, (1,)): 1}
    assert faults(problem, found) == ()
    assert faults(problem, Packing({(0, (0,)): 1, (0, (1,)): 2})) == ("4 hosts of kind 0 are used, and there are 3",)


def test_minimums_that_cannot_all_be_met_are_met_by_weight() -> None:
    problem = Problem(
        (Bin(1, 8),),
        (Demand(1000, 1, 1), Demand(3000, 1, 1)),
        (Option(0, 0, 8, 10**6), Option(1, 0, 8, 1)),
        "throughput",
    )
    found = heuristic.packed(problem)
    assert found.replicas(problem) == [0, 1]
    assert bound.bounds(problem, figures(problem, found))[0] == 1000  # that one is lacking is proven


def test_the_bound_of_a_fleet_that_is_filled_is_what_it_gives() -> None:
    problem = Problem(
        (Bin(1000, 8),), (Demand(1000, 0, None),), (Option(0, 0, 4, 500), Option(0, 0, 8, 900)), "throughput"
    )
    found = heuristic.packed(problem)
    assert figures(problem, found).output == 1000 * 1000 * 1000
    assert bound.bounds(problem, figures(problem, found))[3] == pytest.approx(10**9, rel=1e-6)


def test_hosts_are_cut_in_every_way_that_leaves_no_room() -> None:
    assert exact.cuts(8, [8, 4, 2], 100) == [(8,), (4, 4), (4, 2, 2), (2, 2, 2, 2)]
    assert exact.cuts(7, [4, 3], 100) == [(4, 3), (3, 3)]
    assert exact.cuts(2, [4], 100) == []


def test_the_solver_gives_the_fewest_devices() -> None:
    """With its presolve HiGHS 1.15.1 gives 36, as optimal."""
    problem = Problem(
        (Bin(5, 8),),
        (Demand(10_000, 0, None), Demand(1000, 3, None), Demand(1000, 1, 2)),
        (
            Option(0, 0, 4, 3_316_214),
            Option(0, 0, 8, 6_573_968),
            Option(1, 0, 8, 8_955_058),
            Option(2, 0, 4, 3_979_842),
            Option(2, 0, 8, 6_925_544),
        ),
        "replicas",
    )
    best = exact.solved(problem)
    assert figures(problem, best.packing).devices == best.bounds.devices == 32
    assert figures(problem, heuristic.packed(problem)).devices == 32


def test_without_the_solver_an_exact_packing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(exact.NoSolver):
        exact.solved(SMALL)


def test_hosts_that_can_be_cut_in_too_many_ways_have_no_exact_packing() -> None:
    with pytest.raises(exact.Unsolved, match="ways of cutting"):
        exact.solved(
            Problem((Bin(1, 64),), SMALL.demands, tuple(Option(0, 0, each, 1) for each in range(1, 9)), "throughput")
        )


# --- seats ------------------------------------------------------------------------------------------


def test_replicas_of_a_host_share_no_device_and_cross_no_island() -> None:
    lot = Lot((0, 1, 4, 5, 2, 3, 6, 7), (4, 4))
    options = (Option(0, 0, 1, 1), Option(1, 0, 2, 1), Option(2, 0, 4, 1))
    found = list(seats(Packing({(0, (0, 1, 2)): 1}), options, [lot], [("host",)]))
    assert [(each.option, each.devices) for each in found] == [(2, (0, 1, 4, 5)), (1, (2, 3)), (0, (6,))]


def test_the_hosts_of_one_replica_are_told_together() -> None:
    options = (Option(0, 0, 1, 1), Option(1, 0, 2, 1, 2))
    found = list(seats(Packing({(0, (0,)): 1, (0, (1,)): 1}), options, [Lot((0, 1), (2,))], [("a", "b", "c")]))
    assert [(each.option, each.hosts, each.devices) for each in found] == [(1, ("a", "b"), (0, 1)), (0, ("c",), (0,))]


# --- plans ------------------------------------------------------------------------------------------


def test_a_checkpoint_that_no_host_holds_takes_several(catalog: Catalog) -> None:
    plan = planned(
        catalog,
        {"a": ("8xh100", 3)},
        FleetDeployment(name="big", model="glm-4.6", pinned=Pins(format="bf16"), maximum_replicas=1),
    )
    (replica,) = plan.replicas
    assert (replica.hosts, replica.devices, replica.replicas) == (2, 16, 1)
    assert [each.on for each in plan.placements] == [(("a/1", "a/2"),)]
    assert [(each.idle_hosts, each.idle_devices) for each in plan.hardware] == [(1, 8)]


@pytest.mark.parametrize("ports", [(), (port("infiniband", 400), port("ethernet", 25)), (port("ethernet", 10),)])
def test_what_spans_hosts_is_what_a_plan_of_those_hosts_chooses(
    catalog: Catalog, ports: tuple[NetworkPort, ...]
) -> None:
    """By a name, and by the ports that a probe told of."""
    pins = Pins(format="bf16", data_parallel=1)
    if ports:
        hosts = cluster(catalog, "8xh100", "8xh100", ports=(ports,), memory_gib=512)
        one = msgspec.structs.replace(report_from_spec("8xh100", catalog), host=hosts.host, network=ports)
    else:
        hosts, one = report_from_spec("2x8xh100", catalog), report_from_spec("8xh100", catalog)
    chosen = api.plan("glm-4.6", hardware=hosts, pins=pins, known=catalog).chosen
    (kind,) = kinds([(HostGroup(name="a", hardware=one, count=2), one)], catalog.accelerator_for)
    wanted = Wanted(
        FleetDeployment(name="big", model="glm-4.6", pinned=Pins(format="bf16")),
        catalog.model("glm-4.6"),
        PlanRequest(model="glm-4.6", pins=Pins(format="bf16"), concurrency=None),
    )
    (way,) = Options((wanted,), catalog, [kind]).on(kind).found
    assert chosen is not None
    assert (way.hosts, way.slots) == (2, 8)
    assert (way.candidate.parallel, way.candidate.speed) == (chosen.parallel, chosen.speed)
    assert (way.candidate.checkpoint, way.candidate.limits) == (chosen.checkpoint, chosen.limits)


def test_what_spans_hosts_stays_in_one_group(catalog: Catalog) -> None:
    big = FleetDeployment(name="big", model="glm-4.6", pinned=Pins(format="bf16"), minimum_replicas=2)
    apart = planned(catalog, {"a": ("8xh100", 3), "b": ("8xh100", 3)}, big)
    assert sorted(on for each in apart.placements for on in each.on) == [("a/1", "a/2"), ("b/1", "b/2")]
    lacking = planned(catalog, {"a": ("8xh100", 1), "b": ("8xh100", 1)}, big)
    assert not lacking.feasible
    assert lacking.deployments[0].lacking_replicas == 2


def test_a_deployment_that_fits_nowhere_is_told_what_came_nearest(catalog: Catalog) -> None:
    plan = planned(
        catalog,
        {"a": ("1xrtx4090", 2), "b": ("4xh100", 1)},
        FleetDeployment(name="big", model="glm-4.6", pinned=Pins(format="bf16")),
        FleetDeployment(name="small", model="glm-4.5v"),
    )
    assert not plan.feasible
    big, small = plan.deployments
    assert big.reason is not None
    assert "no host holds it; what comes nearest, on 4xh100: zai-org/GLM-4.6" in big.reason
    assert small.replicas > 0
    assert "big (glm-4.6): 0 replicas on 0 devices" in plan.explain()


def test_how_near_the_best_it_is_is_told_in_what_is_counted(catalog: Catalog) -> None:
    one = FleetDeployment(name="one", model="glm-4.6", pinned=Pins(format="fp8"), minimum_replicas=1)
    plan = planned(catalog, {"a": ("8xh100", 2)}, one, objective="replicas")
    told = msgspec.structs.replace(plan, value=17.0, bound=8.5, gap=1.0).explain()
    assert "Packed by the heuristic: it takes 17 devices, and no plan as good takes fewer than 9." in told
    assert (
        "proven to have the best number of devices"
        in msgspec.structs.replace(plan, value=8.0, bound=8.0, gap=0.0).explain()
    )
    told = msgspec.structs.replace(plan, objective="throughput", value=99.0, bound=100.0, gap=0.01).explain()
    assert "the output is at most 1.00% from the best there could be." in told


def test_a_deployment_whose_hosts_are_taken_is_told_what_it_takes(catalog: Catalog) -> None:
    plan = planned(
        catalog,
        {"a": ("8xh100", 1)},
        FleetDeployment(name="big", model="glm-4.6", pinned=Pins(format="fp8"), minimum_replicas=3),
    )
    (big,) = plan.deployments
    assert (big.replicas, big.lacking_replicas) == (1, 2)
    assert big.reason is not None
    assert "one more replica takes" in big.reason


def test_packing_more_replicas_never_takes_weights_of_less_quality(catalog: Catalog) -> None:
    """On one or two H100 only 4-bit weights fit; the planner's own choice for the host is FP8."""
    plan = planned(catalog, {"a": ("8xh100", 2)}, FleetDeployment(name="a", model="glm-4.5v"))
    assert {each.quantization for each in plan.replicas} == {"FP8"}


def test_weights_less_accurate_than_another_host_would_serve_are_told(catalog: Catalog) -> None:
    deployments = (
        FleetDeployment(name="a", model="glm-4.6"),
        FleetDeployment(name="b", model="glm-4.5v", pinned=Pins(format="bf16")),
    )
    plan = planned(catalog, {"near": ("8xh100", 3), "old": ("4xa100-80gb", 2)}, *deployments)
    formats = {each.quantization for each in plan.replicas if each.deployment == "a"}
    told = plan.deployments[0].less_accurate
    assert formats == {"Int4-Int8Mix"}
    assert told == "1 replica on 4xa100-80gb with Int4-Int8Mix, where 8xh100 would serve FP8"
    assert plan.deployments[1].less_accurate is None
    assert f"Less accurate: {told}." in plan.explain()
    alone = planned(catalog, {"old": ("4xa100-80gb", 2)}, *deployments)
    assert [each.less_accurate for each in alone.deployments] == [None, None]


def test_a_host_without_accelerators_serves_by_its_processor(catalog: Catalog) -> None:
    plan = planned(catalog, {"a": ("cpu-64gb", 2)}, FleetDeployment(name="tiny", model="glm-tiny", maximum_replicas=1))
    (replica,) = plan.replicas
    assert (replica.devices, replica.replicas, plan.devices) == (0, 1, 0)
    assert plan.hardware[0].idle_hosts == 1


def test_the_same_fleet_in_another_order_is_the_same_plan(catalog: Catalog) -> None:
    hosts = {"a": ("4xh100", 2), "b": ("4xl40s", 3), "c": ("4xh100", 1)}
    deployments = [
        FleetDeployment(name="one", model="glm-4.5v", minimum_replicas=2),
        FleetDeployment(name="two", model="glm-4.5-air", maximum_replicas=2, weight=3.0),
    ]
    first = planned(catalog, hosts, *deployments)
    second = planned(catalog, dict(reversed(hosts.items())), *deployments[::-1])
    assert first.to_json() == second.to_json()
