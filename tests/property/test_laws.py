"""Laws of the planner, over machines that nobody listed."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.devices import GIB
from selector.hardware import Accelerator, HardwareReport, Host
from selector.plan import launch_plan
from selector.request import OBJECTIVES, Objective, Pins, PlanRequest

CATALOG = Catalog()
NAMES = st.sampled_from(
    [("NVIDIA H100 80GB HBM3", (9, 0)), ("NVIDIA A100-SXM4-80GB", (8, 0)), ("NVIDIA Unheard-of", (12, 1))]
)
MODELS = st.sampled_from(["glm-4.6", "glm-4.5v", "glm-4.5-air", "glm-tiny"])


@st.composite
def machines(draw: st.DrawFn) -> HardwareReport:
    """One to ten equal devices of 8 to 300 GiB, each with some of it taken."""
    name, capability = draw(NAMES)
    total = draw(st.integers(8, 300)) * GIB
    free = [draw(st.integers(0, total // GIB)) * GIB for _ in range(draw(st.integers(1, 10)))]
    return HardwareReport(
        host=Host(os="linux"),
        accelerators=tuple(
            Accelerator(
                index=index,
                vendor="nvidia",
                name=name,
                compute_capability=capability,
                memory_total_bytes=total,
                memory_free_bytes=left,
            )
            for index, left in enumerate(free)
        ),
    )


def planned(
    model: str, machine: HardwareReport, objective: Objective = "balanced", pins: Pins | None = None
) -> LaunchPlan:
    """A plan without advice, which makes many plans of its own."""
    facts = CATALOG.model(model)
    request = PlanRequest(model=model, objective=objective, pins=pins or Pins())
    plan = launch_plan(facts, machine, request, CATALOG, advise=lambda _: (), keep_all=True)
    return api.with_commands(plan, facts)


def candidates(plan: LaunchPlan) -> tuple[Candidate, ...]:
    return () if plan.chosen is None else (plan.chosen, *plan.alternatives)


@settings(max_examples=60)
@given(machines(), MODELS, st.sampled_from(OBJECTIVES))
def test_no_plan_goes_beyond_any_of_its_devices(machine: HardwareReport, model: str, objective: Objective) -> None:
    free = {device.index: device.memory_free_bytes or 0 for device in machine.accelerators}
    for each in candidates(planned(model, machine, objective)):
        items = each.memory.per_device
        taken = items.total_bytes - items.reserve_bytes
        parts = (
            items.weights_bytes
            + items.kv_cache_bytes
            + items.activations_bytes
            + items.graphs_bytes
            + items.runtime_bytes
        )
        assert taken == parts <= items.usable_bytes <= items.total_bytes
        assert all(taken <= free[index] for index in each.parallel.devices)
        assert len(set(each.parallel.devices)) == len(each.parallel.devices) == each.parallel.ranks * each.parallel.data
        assert 0 < each.limits.context_tokens <= each.memory.kv_cache_tokens


@settings(max_examples=40)
@given(machines(), MODELS, st.integers(1, 64))
def test_more_memory_never_makes_a_model_unservable(machine: HardwareReport, model: str, more_gib: int) -> None:
    larger = msgspec.structs.replace(
        machine,
        accelerators=tuple(
            msgspec.structs.replace(
                each,
                memory_total_bytes=(each.memory_total_bytes or 0) + more_gib * GIB,
                memory_free_bytes=(each.memory_free_bytes or 0) + more_gib * GIB,
            )
            for each in machine.accelerators
        ),
    )
    assert planned(model, larger).feasible or not planned(model, machine).feasible


@settings(max_examples=40)
@given(machines(), MODELS)
def test_every_value_stays_one_argument(machine: HardwareReport, model: str) -> None:
    for each in candidates(planned(model, machine)):
        assert each.command is not None
        assert all(token and not any(sign in token for sign in " \n\0;|&$`") for token in each.command.argv)


@settings(max_examples=40)
@given(machines(), MODELS)
def test_the_same_machine_gives_the_same_bytes(machine: HardwareReport, model: str) -> None:
    assert planned(model, machine).to_json() == planned(model, machine).to_json()


@settings(max_examples=40)
@given(machines(), MODELS, st.sampled_from([1, 2, 4, 8]), st.sampled_from(["vllm", "sglang", None]))
def test_a_narrower_search_never_finds_better(
    machine: HardwareReport, model: str, tensor: int, engine: str | None
) -> None:
    """What a pin leaves is in the wide list too: a wider search never loses the best."""
    pins = msgspec.convert({"tensor_parallel": tensor, "engine": engine}, Pins)
    narrow = candidates(planned(model, machine, pins=pins))
    wide = candidates(planned(model, machine))
    if narrow and model != "glm-tiny":
        assert wide
        assert wide[0].memory is not None
        shapes = {(each.checkpoint.quantization, each.engine.name, each.parallel.tensor) for each in wide}
        best = narrow[0]
        assert (best.checkpoint.quantization, best.engine.name, best.parallel.tensor) in shapes


@settings(max_examples=40)
@given(machines(), MODELS)
def test_a_refusal_always_says_why(machine: HardwareReport, model: str) -> None:
    for each in planned(model, machine).rejected:
        assert each.code
        assert each.message
        if each.code.startswith("memory."):
            assert each.numbers["needed_bytes"] > each.numbers["usable_bytes"]
