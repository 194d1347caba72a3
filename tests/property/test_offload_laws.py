"""Laws of what stays in main memory beside devices, over machines that nobody listed.

As in :mod:`tests.property.test_laws`, the candidates of both machines are scored in one list.
"""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from selector.asked import PlanRequest
from selector.devices import GIB
from selector.hardware import HardwareReport, Host
from selector.main_memory import beside_devices
from selector.request import OBJECTIVES, Pins
from tests.fakes.drawn import accelerator, kind_of, links, machines
from tests.property.test_laws import (
    CATALOG,
    MORE_SEQUENCES,
    ROUNDING,
    best_of_both,
    candidates,
    decided,
    island_of,
    planned,
)

#: A layer's experts are moved whole, and devices are filled layer by layer: what a machine has more of may be less.
GAPS = 0.01
ASKED = st.builds(
    PlanRequest,
    model=st.sampled_from(["glm-4.6", "glm-4.5-air"]),
    objective=st.sampled_from(OBJECTIVES),
    context_tokens=st.sampled_from([None, None, 8_192, 32_768]),
    concurrency=st.sampled_from([None, None, 1, 16]),
    pins=st.sampled_from([Pins(), Pins(engine="llamacpp"), Pins(engine="llamacpp", max_sequences=2)]),
)
MEMORY = st.sampled_from([16, 64, 128, 192, 256, 384, 768])


def with_memory(machine: HardwareReport, gib: int, taken_gib: int = 0) -> HardwareReport:
    host = Host(os="linux", memory_total_bytes=gib * GIB, memory_available_bytes=max(0, gib - taken_gib) * GIB)
    return msgspec.structs.replace(machine, host=host)


def alone(machine: HardwareReport) -> HardwareReport:
    return msgspec.structs.replace(machine, accelerators=(), links=())


@settings(max_examples=40, derandomize=True)
@given(machines(most=4), MEMORY, st.sampled_from([0, 10, 60]), st.sampled_from(["glm-4.6", "glm-4.5-air"]))
def test_no_plan_goes_beyond_its_devices_or_main_memory(
    machine: HardwareReport, gib: int, taken_gib: int, model: str
) -> None:
    machine = with_memory(machine, gib, taken_gib)
    memory = beside_devices(machine)
    assert memory is not None
    free = {device.index: device.memory_free_bytes or 0 for device in machine.accelerators}
    layers = CATALOG.model(model).architecture.num_hidden_layers
    for each in candidates(planned(model, machine, pins=Pins(engine="llamacpp"))):
        items, limits = each.memory.per_device, each.limits
        taken = items.total_bytes - items.reserve_bytes
        assert taken <= items.usable_bytes <= items.total_bytes
        assert all(taken <= free[index] for index in each.parallel.devices)
        assert 0 < limits.context_tokens <= each.memory.kv_cache_tokens
        if not limits.cpu_expert_layers:
            continue
        assert each.memory.host_bytes <= memory.free_bytes
        assert each.parallel.data == each.parallel.tensor == 1
        assert len(limits.device_layers) == len(each.parallel.devices)
        assert sum(limits.device_layers) == (layers if limits.gpu_layers is None else limits.gpu_layers)


@settings(max_examples=30, derandomize=True)
@given(machines(most=4), ASKED, MEMORY, st.integers(0, 3), st.sampled_from([1, 4, 30]))
def test_a_gpu_that_others_leave_never_makes_a_worse_plan_beside_main_memory(
    machine: HardwareReport, request: PlanRequest, gib: int, which: int, more_gib: int
) -> None:
    machine = with_memory(machine, gib)
    devices = list(machine.accelerators)
    one = devices[which % len(devices)]
    freed = min(one.memory_total_bytes or 0, (one.memory_free_bytes or 0) + more_gib * GIB)
    devices[which % len(devices)] = msgspec.structs.replace(one, memory_free_bytes=freed)
    before = decided(request, machine)
    after = decided(request, msgspec.structs.replace(machine, accelerators=tuple(devices)))
    best, missed = best_of_both(request, after, before)
    assert missed <= MORE_SEQUENCES, best


@settings(max_examples=30, derandomize=True)
@given(machines(most=4), ASKED, MEMORY)
def test_one_more_gpu_never_makes_a_worse_plan_beside_main_memory(
    machine: HardwareReport, request: PlanRequest, gib: int
) -> None:
    machine = with_memory(machine, gib)
    devices, last = machine.accelerators, machine.accelerators[-1]
    added = accelerator(len(devices), kind_of(last), free_bytes=last.memory_total_bytes or 0, numa=last.numa_node or 0)
    larger = msgspec.structs.replace(
        machine, accelerators=(*devices, added), links=links(len(devices) + 1, island_of(machine))
    )
    best, missed = best_of_both(request, decided(request, larger), decided(request, machine))
    assert missed <= GAPS, best


@settings(max_examples=40, derandomize=True)
@given(machines(most=3), ASKED, MEMORY, st.sampled_from([16, 64, 200]))
def test_more_main_memory_never_makes_a_worse_plan(
    machine: HardwareReport, request: PlanRequest, gib: int, more_gib: int
) -> None:
    before = decided(request, with_memory(machine, gib))
    after = decided(request, with_memory(machine, gib + more_gib))
    best, missed = best_of_both(request, after, before)
    assert missed <= ROUNDING, best


@settings(max_examples=40, derandomize=True)
@given(machines(most=3), ASKED, MEMORY)
def test_a_gpu_is_never_worse_than_the_processor_alone(machine: HardwareReport, request: PlanRequest, gib: int) -> None:
    machine = with_memory(machine, gib)
    best, missed = best_of_both(request, decided(request, machine), decided(request, alone(machine)))
    assert missed <= ROUNDING, best
