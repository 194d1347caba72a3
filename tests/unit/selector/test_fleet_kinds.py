"""Hosts of a fleet by what they are: kinds, lots, and what is planned once for many of them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.facts import ModelFacts
from selector.fleet.asked import FleetDeployment, HostGroup
from selector.fleet.kinds import Lot, kinds, several
from selector.fleet.options import Options, Wanted
from selector.fleet.plan import fleet_plan
from selector.fleet.problem import Filling, Option, Packing
from selector.fleet.seats import seats
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins
from selector.search import Decision, Facts, decide

MIB, GIB = 1 << 20, 1 << 30


def test_hosts_that_differ_in_nothing_but_their_own_names_are_one_kind(catalog: Catalog) -> None:
    one = report_from_spec("8xh100", catalog)
    other = msgspec.structs.replace(
        one, accelerators=tuple(msgspec.structs.replace(each, uuid=f"GPU-{each.index}") for each in one.accelerators)
    )
    found = kinds(
        [(HostGroup(name="b", hardware=other, count=2), other), (HostGroup(name="a", hardware="8xh100", count=3), one)],
        catalog.accelerator_for,
    )
    assert [(each.label, each.hosts, [group.name for group in each.groups]) for each in found] == [
        ("8xh100", 5, ["a", "b"])
    ]


def test_devices_that_others_hold_memory_of_are_a_lot_of_their_own(catalog: Catalog) -> None:
    report = report_from_spec("4xh100", catalog)
    first, *others = report.accelerators
    busy = msgspec.structs.replace(first, memory_free_bytes=40 * GIB)
    report = msgspec.structs.replace(report, accelerators=(busy, *others))
    (kind,) = kinds([(HostGroup(name="a", hardware=report), report)], catalog.accelerator_for)
    assert sorted(lot.devices for lot in kind.lots) == [(0,), (1, 2, 3)]


def recorded(hardware: str, catalog: Catalog, *taken_mib: int, memory_gib: int = 1000) -> HardwareReport:
    """A host as it is recorded: so much of each device held by others, so much main memory free of 1 TiB."""
    report = report_from_spec(hardware, catalog)
    devices = tuple(
        msgspec.structs.replace(
            each, uuid=f"GPU-{taken}", memory_free_bytes=(each.memory_total_bytes or 0) - taken * MIB
        )
        for each, taken in zip(report.accelerators, taken_mib, strict=True)
    )
    host = msgspec.structs.replace(
        report.host, memory_total_bytes=1024 * GIB, memory_available_bytes=memory_gib * GIB, os_version=str(taken_mib)
    )
    return msgspec.structs.replace(report, accelerators=devices, host=host)


def test_recordings_that_differ_by_a_little_free_memory_are_one_kind_with_the_least_of_it(catalog: Catalog) -> None:
    reports = {
        "a": recorded("2xh100", catalog, 0, 400, memory_gib=990),
        "b": recorded("2xh100", catalog, 300, 10),
        "c": recorded("2xh100", catalog, 5, 5, memory_gib=1003),
    }
    hosts = [(HostGroup(name=name, hardware=report), report) for name, report in reports.items()]
    (kind,) = kinds(hosts, catalog.accelerator_for)
    total = reports["a"].accelerators[0].memory_total_bytes or 0
    assert [each.memory_free_bytes for each in kind.report.accelerators] == [total - 300 * MIB, total - 400 * MIB]
    assert kind.report.host.memory_available_bytes == 990 * GIB
    assert (kind.hosts, [lot.devices for lot in kind.lots]) == (3, [(0, 1)])
    assert kinds(hosts[::-1], catalog.accelerator_for) == (kind,)


def test_no_host_of_a_kind_has_much_more_than_its_least(catalog: Catalog) -> None:
    taken = [(first, second) for first in range(0, 6000, 400) for second in (0, 3000)]
    hosts = [
        (HostGroup(name=f"{number}", hardware=report), report)
        for number, report in enumerate(recorded("2xh100", catalog, *each) for each in taken)
    ]
    found = kinds(hosts, catalog.accelerator_for)
    given = {group.name: report for group, report in hosts}
    assert 2 < len(found) < len(hosts)
    assert sorted(group.name for kind in found for group in kind.groups) == sorted(given)
    for kind in found:
        for group in kind.groups:
            for one, least in zip(given[group.name].accelerators, kind.report.accelerators, strict=True):
                assert 0 <= (one.memory_free_bytes or 0) - (least.memory_free_bytes or 0) <= 0.021 * 80 * GIB


def test_what_a_fleet_puts_on_a_host_is_what_the_planner_gives_that_host_or_less(catalog: Catalog) -> None:
    taken = [(first, second, 20 * first, 17) for first, second in ((0, 500), (300, 20), (450, 499))]
    reports = [recorded("4xh100", catalog, *each, memory_gib=990 + each[0] // 30) for each in taken]
    found = kinds(
        [(HostGroup(name=f"{number}", hardware=report), report) for number, report in enumerate(reports)],
        catalog.accelerator_for,
    )
    request = PlanRequest(model="glm-4.5v", concurrency=64, pins=Pins(format="fp8"))
    wanted = Wanted(FleetDeployment(name="v", model="glm-4.5v"), catalog.model("glm-4.5v"), request)
    options = Options((wanted,), catalog, found)
    tried = 0
    for kind in found:
        for way in options.on(kind).found:
            for group in kind.groups:
                devices = kind.lots[way.lot].devices[-way.slots :]
                pins = Pins(format="fp8", gpus=devices, data_parallel=1, engine=way.candidate.engine.name)
                pins = msgspec.structs.replace(pins, tensor_parallel=way.candidate.parallel.tensor)
                asked = msgspec.structs.replace(request, pins=pins)
                best = decide(wanted.model, reports[int(group.name)], asked, catalog).ranked[0]
                assert best.limits.context_tokens >= way.candidate.limits.context_tokens
                assert best.memory.kv_cache_tokens >= way.candidate.memory.kv_cache_tokens
                tried += 1
    assert tried >= 3


def test_hosts_that_differ_in_main_memory_are_planned_twice_where_it_makes_no_difference(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def counting(model: ModelFacts, report: HardwareReport, request: PlanRequest, facts: Facts) -> Decision:
        asked.append(report.host.memory_available_bytes)
        return decide(model, report, request, facts)

    monkeypatch.setattr("selector.fleet.options.decide", counting)
    groups = [
        (HostGroup(name=f"{gib}", hardware="8xh100"), recorded("8xh100", catalog, *[0] * 8, memory_gib=gib))
        for gib in range(100, 1000, 50)
    ]
    request = PlanRequest(model="glm-4.6", pins=Pins(format="fp8"))
    wanted = Wanted(FleetDeployment(name="a", model="glm-4.6"), catalog.model("glm-4.6"), request)
    plan = fleet_plan("throughput", groups, [wanted], catalog, method="heuristic")
    assert sorted(asked, key=lambda each: each or 0) == [100 * GIB, 950 * GIB]
    assert [(each.hardware, each.hosts) for each in plan.hardware] == [("8xh100", 18)]


def test_main_memory_that_makes_a_difference_is_told_apart(catalog: Catalog) -> None:
    groups = [
        (HostGroup(name=f"{gib:04}", hardware="1xrtx4090"), recorded("1xrtx4090", catalog, 0, memory_gib=gib))
        for gib in (48, 64, 128, 384, 512, 900, 1000)
    ]
    request = PlanRequest(model="glm-4.6", pins=Pins(format="gguf"))
    wanted = Wanted(FleetDeployment(name="a", model="glm-4.6"), catalog.model("glm-4.6"), request)
    plan = fleet_plan("throughput", groups, [wanted], catalog, method="heuristic")
    alone = [
        fleet_plan("throughput", [group], [wanted], catalog, method="heuristic").deployments[0] for group in groups
    ]
    assert 0 < sum(each.replicas for each in alone) < len(groups)
    assert plan.deployments[0].replicas == sum(each.replicas for each in alone)
    assert plan.value == pytest.approx(sum(each.throughput_tokens_per_second for each in alone))


@pytest.mark.parametrize(
    ("islands", "taken"),
    [
        ((8,), [1, 2, 3, 4, 5, 6, 7, 8]),
        ((4, 4), [1, 2, 4, 8]),
        ((4, 2), [1, 2, 4, 6]),
        ((2, 2, 2), [1, 2, 4, 6]),
        ((4, 2, 2), [1, 2, 8]),
        ((2, 2, 2, 1, 1), [1, 8]),
        ((4, 4, 2, 2, 2, 2), [1, 2]),
    ],
)
def test_replicas_of_a_lot_with_islands_take_numbers_that_never_cross_one(
    islands: tuple[int, ...], taken: list[int]
) -> None:
    lot = Lot(tuple(range(sum(islands))), islands)
    assert [size for size in range(1, 9) if lot.takes(size)] == taken


@pytest.mark.parametrize("islands", [(4, 4), (4, 2, 2), (2, 2, 2, 1, 1), (6, 2), (4, 3, 1), (4, 2, 1, 1)])
def test_a_number_that_counts_as_fast_never_crosses_an_island_that_holds_it_however_a_host_is_filled(
    islands: tuple[int, ...],
) -> None:
    lot = Lot(tuple(range(sum(islands))), islands)
    home = [number for number, size in enumerate(islands) for _ in range(size)]
    sizes = [each for each in range(1, lot.slots) if lot.takes(each, evened=True)]
    options = tuple(Option(0, 0, size, 1) for size in sizes)

    def fillings(room: int, first: int) -> Iterator[Filling]:
        yield ()
        for number in range(first, len(sizes)):
            if sizes[number] <= room:
                yield from ((number, *rest) for rest in fillings(room - sizes[number], number))

    for filling in fillings(lot.slots, 0):
        if filling:
            for seat in seats(Packing({(0, filling): 1}), options, [lot], [("h",)]):
                size = len(seat.devices)
                # Evened, the planner takes islands to be this small; else as they are.
                crossed = len({home[device] for device in seat.devices}) > 1
                assert not crossed or size > lot.evened
                assert not crossed or not lot.takes(size) or size > max(islands)


def test_a_replica_that_may_cross_an_island_counts_with_the_speed_that_it_has_there(catalog: Catalog) -> None:
    report = report_from_spec("8xh100", catalog)
    islands = ({0, 1, 2, 3}, {4, 5}, {6, 7})
    links = tuple(each for each in report.links if any({each.from_, each.to} <= island for island in islands))
    report = msgspec.structs.replace(report, links=links)
    request = PlanRequest(
        model="glm-4.5v", objective="throughput", concurrency=64, pins=Pins(format="fp8", tensor_parallel=4)
    )
    wanted = Wanted(FleetDeployment(name="v", model="glm-4.5v"), catalog.model("glm-4.5v"), request)
    plan = fleet_plan("throughput", [(HostGroup(name="a", hardware=report), report)], [wanted], catalog)
    (replica,) = plan.replicas
    own = []
    for devices in ((0, 1, 2, 3), (4, 5, 6, 7)):
        pinned = msgspec.structs.replace(request.pins, gpus=devices, data_parallel=1)
        ranked = decide(wanted.model, report, msgspec.structs.replace(request, pins=pinned), catalog).ranked
        own.append(ranked[0].speed.throughput_tokens_per_second or 0.0)
    assert own[0] > own[1] * 1.2
    assert replica.replicas == 2
    assert replica.throughput_tokens_per_second == pytest.approx(own[1], rel=0.01)


def test_several_hosts_of_a_kind_are_one_report_of_several_nodes(catalog: Catalog) -> None:
    joined = several(report_from_spec("2xh100", catalog), 2)
    told = report_from_spec("2x2xh100", catalog)
    assert joined.accelerators == told.accelerators
    assert (joined.links, joined.nodes) == (told.links, 2)
