"""Devices and groups: islands, joint groups of several kinds, and figures that nobody told or that cannot be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.devices import GIB, Device, groups, islands, slowest
from selector.hardware import Accelerator, Cpu, HardwareReport, Host, Link
from selector.machines import report_from_spec
from selector.plan import launch_plan
from selector.request import Pins
from tests.fakes.drawn import KINDS, accelerator, links

MIB = 1 << 20
H100, H200, RTX4090, RTX3090, UNHEARD_OF = KINDS[0], KINDS[1], KINDS[3], KINDS[4], KINDS[-1]


def report(*kinds: tuple[str, tuple[int, int], int], island: int = 1, **changed: Any) -> HardwareReport:
    """Idle devices of these kinds, all with what ``changed`` tells."""
    devices = tuple(
        msgspec.structs.replace(accelerator(index, kind, free_bytes=kind[2] * MIB), **changed)
        for index, kind in enumerate(kinds)
    )
    return HardwareReport(host=Host(os="linux"), accelerators=devices, links=links(len(devices), island))


def planned(machine: HardwareReport, catalog: Catalog, model: str = "glm-4.5v", pins: Pins | None = None) -> LaunchPlan:
    request = PlanRequest(model=model, pins=pins or Pins())
    return launch_plan(catalog.model(model), machine, request, catalog, advise=lambda _: (), keep_all=True)


# --- islands ------------------------------------------------------------------------------------------


def test_devices_are_an_island_where_every_two_of_them_have_a_fast_link() -> None:
    machine = report(*[H100] * 8, island=4)
    assert list(islands(machine.accelerators, machine.links).values()) == [0, 0, 0, 0, 4, 4, 4, 4]


def test_a_cube_of_eight_is_two_islands() -> None:
    """Halves that are fully linked, and one link from each device to its twin in the other half."""
    halves = links(8, 4)
    twins = [Link(from_=index, to=index + 4, kind="nvlink") for index in range(4)]
    machine = report(*[H100] * 8)
    assert set(islands(machine.accelerators, (*halves, *twins)).values()) == {0, 4}


def test_a_ring_is_no_island() -> None:
    ring = [Link(from_=index, to=(index + 1) % 4, kind="nvlink") for index in range(4)]
    machine = report(*[H100] * 4)
    assert sorted(islands(machine.accelerators, ring).values()) == [0, 0, 2, 2]


def test_the_slowest_way_is_that_of_the_worst_pair(catalog: Catalog) -> None:
    devices = groups(report(*[H100] * 4, island=2), catalog.accelerator_for)[0][0].devices
    by_index: dict[int | None, Device] = {device.index: device for device in devices}
    assert slowest([by_index[0]]) == "none"
    assert slowest([by_index[0], by_index[1]]) == "fast"
    assert slowest([by_index[2], by_index[3]]) == "fast"
    assert slowest([by_index[0], by_index[1], by_index[2]]) == "pcie"


def test_devices_of_different_nodes_are_no_island() -> None:
    machine = report(H100, H100, island=2)
    apart = tuple(msgspec.structs.replace(each, node=each.index) for each in machine.accelerators)
    assert islands(apart, machine.links) == {0: 0, 1: 1}


# --- several kinds ------------------------------------------------------------------------------------


def test_two_kinds_are_three_groups_and_the_joint_one_is_as_its_least_member(catalog: Catalog) -> None:
    found, _ = groups(report(RTX3090, RTX3090, RTX4090, RTX4090), catalog.accelerator_for)
    assert [group.joint for group in found] == [False, False, True]
    joint = found[-1]
    assert len(joint.devices) == 4
    slow = min(group.devices[0].bandwidth_bytes_per_second or 0 for group in found[:2])
    for device in joint.devices:
        assert device.capability == (8, 6)
        assert device.total_bytes == 24_564 * MIB
        assert device.bandwidth_bytes_per_second == slow
        assert device.flops("fp8") == device.flops("bf16"), "a 3090 has no FP8 arithmetic"


def test_cards_of_two_kinds_serve_together_what_neither_kind_holds(catalog: Catalog) -> None:
    plan = planned(report(RTX3090, RTX3090, RTX4090, RTX4090), catalog, pins=Pins(tensor_parallel=4))
    assert plan.chosen is not None
    assert sorted(plan.chosen.parallel.devices) == [0, 1, 2, 3]
    assert plan.chosen.checkpoint.format != "fp8" or plan.chosen.engine.name != "sglang", "SGLang's FP8 needs 8.9"


def test_a_joint_group_leaves_one_kind_to_itself(catalog: Catalog) -> None:
    """No candidate counts two H200 as two H100."""
    plan = planned(report(H100, H100, H200, H200, island=2), catalog)
    assert plan.chosen is not None
    for each in (plan.chosen, *plan.alternatives):
        if set(each.parallel.devices) <= {2, 3}:
            assert each.memory.per_device.total_bytes == 143_771 * MIB


def test_a_joint_group_whose_rates_are_not_all_known_has_none(catalog: Catalog) -> None:
    found, _ = groups(report(H100, UNHEARD_OF), catalog.accelerator_for)
    assert found[-1].joint
    assert found[-1].devices[0].bandwidth_bytes_per_second is None


def test_slices_and_shared_memory_join_nothing(catalog: Catalog) -> None:
    gb10 = report_from_spec("gb10", catalog).accelerators[0]
    machine = report(H100, RTX4090)
    sliced = msgspec.structs.replace(machine.accelerators[1], mig_parent_uuid="GPU-parent")
    shared = msgspec.structs.replace(gb10, index=2)
    mixed = msgspec.structs.replace(machine, accelerators=(machine.accelerators[0], sliced, shared), links=())
    assert not any(group.joint for group in groups(mixed, catalog.accelerator_for)[0])


def test_one_share_of_every_device_is_what_a_half_filled_larger_one_allows(catalog: Catalog) -> None:
    machine = report(H100, H200)
    devices = list(machine.accelerators)
    devices[1] = msgspec.structs.replace(devices[1], memory_free_bytes=70 * GIB)
    joint = groups(msgspec.structs.replace(machine, accelerators=tuple(devices)), catalog.accelerator_for)[0][-1]
    least = min(device.free_bytes for device in joint.devices)
    assert least < 41 * GIB, "half of an H200 is free, so half of an H100 may be taken"


# --- what nobody told, and what cannot be -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory_total_bytes": None, "memory_free_bytes": None}, "does not tell how much memory"),
        ({"memory_total_bytes": 0, "memory_free_bytes": 0}, "does not tell how much memory"),
        ({"memory_total_bytes": -1}, "does not tell how much memory"),
        ({"memory_free_bytes": 400 * GIB}, "bytes free of"),
        ({"memory_free_bytes": -GIB}, "bytes free of"),
    ],
    ids=["no total", "total 0", "negative total", "more free than there is", "negative free"],
)
def test_a_device_that_cannot_be_planned_with_is_refused_by_name(
    catalog: Catalog, changed: dict[str, Any], said: str
) -> None:
    plan = planned(report(H100, H100, island=2, **changed), catalog)
    assert not plan.feasible
    told = [each.message for each in plan.rejected if each.code == "device.unknown_memory"]
    assert told
    assert all("device " in message and said in message for message in told)


def test_free_memory_that_nobody_told_is_taken_as_all_and_said_so(catalog: Catalog) -> None:
    exact = Pins(quantization="FP8")
    chosen = planned(report(H200, memory_free_bytes=None), catalog, pins=exact).chosen
    assert chosen is not None
    assert chosen.memory.basis == "assumed"
    assert any(note.code == "free_memory_unknown" for note in chosen.notes)
    told = planned(report(H200), catalog, pins=exact).chosen
    assert told is not None
    assert told.memory.basis == "derived"
    assert not any(note.code == "free_memory_unknown" for note in told.notes)


def test_a_device_that_nobody_described_is_planned_without_a_speed_and_said_so(catalog: Catalog) -> None:
    chosen = planned(report(UNHEARD_OF, UNHEARD_OF, island=2), catalog).chosen
    assert chosen is not None
    assert chosen.speed.decode_tokens_per_second is None
    assert chosen.speed.throughput_tokens_per_second is None
    assert chosen.speed.basis == "assumed"
    note = next(note for note in chosen.notes if note.code == "speed_unknown")
    assert "memory bandwidth of NVIDIA Unheard-of" in note.message


class Blind:
    """The shipped catalogue, with accelerators whose figures a user's profile gives as 0."""

    def __init__(self, catalog: Catalog, **changed: float | None) -> None:
        self.engine_names, self.engine = catalog.engine_names, catalog.engine
        self._lookup, self._changed = catalog.accelerator_for, changed

    def accelerator_for(self, device: Accelerator) -> Any:
        facts = self._lookup(device)
        return None if facts is None else msgspec.structs.replace(facts, **self._changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"bandwidth_gb_per_second": 0.0},
        {"bf16_tflops": 0.0, "fp16_tflops": 0.0, "fp8_tflops": 0.0},
        {"bf16_tflops": None, "fp16_tflops": None, "fp8_tflops": None},
        {"link_gb_per_second": None, "pcie_gb_per_second": None},
    ],
    ids=["bandwidth 0", "rates 0", "no rates", "no links"],
)
def test_figures_that_are_no_figures_are_unknown_and_divide_nothing(catalog: Catalog, changed: dict[str, Any]) -> None:
    model = catalog.model("glm-4.5v")
    request = PlanRequest(model=model.id, pins=Pins(tensor_parallel=2))
    plan = launch_plan(model, report(H200, H200), request, Blind(catalog, **changed), advise=lambda _: ())
    assert plan.chosen is not None
    assert plan.chosen.speed.basis == "assumed"


@pytest.mark.parametrize(
    "host",
    [
        Host(os="linux"),
        Host(os="linux", memory_total_bytes=0),
        Host(os="linux", memory_total_bytes=-1, memory_available_bytes=-5),
    ],
    ids=["unknown", "0", "negative"],
)
def test_a_host_of_unknown_memory_without_a_gpu_is_no_device(catalog: Catalog, host: Host) -> None:
    plan = planned(HardwareReport(host=host), catalog)
    assert not plan.feasible
    assert {each.code for each in plan.rejected} == {"device.none"}


def test_a_host_of_no_cores_and_no_word_on_what_is_available_is_planned_as_assumed(catalog: Catalog) -> None:
    host = Host(os="linux", cpu=Cpu(cores=0), memory_total_bytes=2048 * GIB)
    chosen = planned(HardwareReport(host=host), catalog, "glm-4.6").chosen
    assert chosen is not None
    assert (chosen.memory.basis, chosen.speed.basis) == ("assumed", "assumed")
    assert any("main memory" in note.message for note in chosen.notes if note.code == "free_memory_unknown")


def test_no_machine_divides_by_what_is_not_there(catalog: Catalog) -> None:
    """A few bytes of memory, in every vendor's way of counting it."""
    for total in (1, MIB, 700 * MIB, GIB):
        for kind in ("dedicated", "unified"):
            small = report(H100, H100, memory_total_bytes=total, memory_free_bytes=total, memory_kind=kind)
            assert not planned(small, catalog).feasible
