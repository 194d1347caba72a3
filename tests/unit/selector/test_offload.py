"""Layers and experts in main memory: the fewest that make room, on devices filled from the front, and told as such."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch import api
from selector.architecture import stored_weights
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.devices import GIB
from selector.explain import layout
from selector.machines import report_from_file, report_from_spec
from selector.main_memory import HOST_SHARE
from selector.offload import Room, Split, token_steps
from selector.request import Pins
from selector.search import decide
from selector.weights import LayerSizes, layer_sizes, stage_layers
from tests.fakes.machines import DATA

SIZES = LayerSizes(dense=30.0, light=10.0, experts=100.0, table=25.0, head=20.0)


def planned(
    catalog: Catalog, machine: str, pins: Pins | None = None, context_tokens: int | None = None, model: str = "glm-4.6"
) -> LaunchPlan:
    return api.plan(model, hardware=machine, known=catalog, pins=pins or Pins(), context_tokens=context_tokens)


def chosen(catalog: Catalog, machine: str, pins: Pins | None = None, context_tokens: int | None = None) -> Candidate:
    plan = planned(catalog, machine, pins, context_tokens)
    assert plan.chosen is not None, plan.explain()
    return plan.chosen


# --- dealing ------------------------------------------------------------------------------------------


def fits(room: Room, cache: int, dealt: tuple[int, ...], whole: int, experts: int) -> bool:
    """Whether a cut of the row, layer by layer, stays within every device."""
    position = whole
    for device, count in enumerate(dealt):
        taken = SIZES.head if device == room.devices - 1 else 0.0
        for layer in range(position, position + count):
            dense = layer < room.dense_layers
            heavy = layer >= room.dense_layers + experts
            taken += cache + (SIZES.dense if dense else SIZES.light + (SIZES.experts if heavy else 0.0))
        if taken > room.capacity + 1e-6:
            return False
        position += count
    return position == room.dense_layers + room.sparse_layers


def cuts(layers: int, devices: int) -> list[tuple[int, ...]]:
    return [cut for cut in product(range(layers + 1), repeat=devices) if sum(cut) == layers]


ROOMS = st.builds(
    Room,
    sizes=st.just(SIZES),
    dense_layers=st.integers(0, 2),
    sparse_layers=st.integers(1, 6),
    devices=st.integers(1, 3),
    capacity=st.integers(0, 500),
)


@settings(max_examples=150, derandomize=True)
@given(ROOMS, st.sampled_from([0, 7, 40]))
def test_no_cut_of_the_layers_leaves_less_in_main_memory(room: Room, cache: int) -> None:
    layers = room.dense_layers + room.sparse_layers
    found = room.split(cache)
    every = [(0, experts) for experts in range(1, room.sparse_layers + 1)]
    every += [(whole, room.sparse_layers) for whole in range(1, layers)]
    best = next(
        (each for each in every if any(fits(room, cache, cut, *each) for cut in cuts(layers - each[0], room.devices))),
        None,
    )
    assert (None if found is None else (found.host_layers, found.host_experts)) == best
    if found is not None:
        assert fits(room, cache, found.dealt, found.host_layers, found.host_experts)


@settings(max_examples=100, derandomize=True)
@given(ROOMS, st.sampled_from([0, 7, 40]))
def test_what_is_told_of_the_fullest_device_is_what_lies_there(room: Room, cache: int) -> None:
    split = room.split(cache)
    if split is None:
        return
    weights, layers = room.fullest(split, cache)
    assert weights + layers * cache <= room.capacity + 1
    assert layers in split.dealt


def test_devices_and_main_memory_hold_the_file_together(catalog: Catalog) -> None:
    model = catalog.model("glm-4.6")
    checkpoint = next(each for each in model.checkpoints if each.quantization == "UD-Q3_K_XL")
    weights = stored_weights(model.architecture, checkpoint)
    sizes = layer_sizes(model.architecture, weights.storage, weights.scale, None)
    room = Room(sizes, model.architecture.first_k_dense_replace, 89, 3, 30 * GIB)
    split = room.split(100 << 20)
    assert split is not None and split.host_layers == 0
    on_devices = room.dense_layers * sizes.dense + 89 * sizes.light + (89 - split.host_experts) * sizes.experts
    mtp = sum(weights.mtp_layer.values())
    assert on_devices + sizes.head + room.on_host(split) + mtp == pytest.approx(checkpoint.download_bytes, rel=1e-6)


def test_the_first_layers_follow_whole_when_all_experts_are_not_enough() -> None:
    room = Room(SIZES, dense_layers=1, sparse_layers=5, devices=1, capacity=20 + 3 * 17)
    assert room.split(7) == Split((3,), 3, 5)


def test_sizes_of_the_cache_are_the_same_on_every_machine() -> None:
    assert token_steps(4096, 202_752, 202_752) == [4096, 16_384, 32_768, 65_536, 131_072, 202_752]
    assert token_steps(20_000, 20_000, 20_000) == [20_000]


# --- plans --------------------------------------------------------------------------------------------


def test_one_card_with_main_memory_serves_what_it_could_not(catalog: Catalog) -> None:
    assert not planned(catalog, "1xrtx4090").feasible
    best = chosen(catalog, "1xrtx4090+192gb")
    assert best.engine.name == "llamacpp"
    assert best.parallel.devices == (0,)
    assert best.limits.gpu_layers is None
    assert best.limits.cpu_expert_layers > 0
    assert best.memory.host_bytes <= HOST_SHARE * 192 * GIB
    assert best.speed.basis == "assumed"


def test_a_context_that_was_asked_for_moves_no_more_experts_than_it_needs(catalog: Catalog) -> None:
    pins = Pins(quantization="UD-Q3_K_XL")
    short, long = (chosen(catalog, "1xrtx4090+192gb", pins, tokens) for tokens in (4096, 32_768))
    assert short.limits.cpu_expert_layers < long.limits.cpu_expert_layers
    assert short.limits.context_tokens == 4096
    assert (short.speed.decode_tokens_per_second or 0) > (long.speed.decode_tokens_per_second or 0)


def test_a_context_beyond_the_card_takes_whole_layers_off_it(catalog: Catalog) -> None:
    best = chosen(catalog, "1xrtx4090+256gb", Pins(quantization="UD-Q3_K_XL", engine="llamacpp", gpus=(0,)), 131_072)
    layers = catalog.model("glm-4.6").architecture.num_hidden_layers
    assert best.limits.cpu_expert_layers == 89
    assert best.limits.gpu_layers is not None and 0 < best.limits.gpu_layers < layers
    assert best.limits.device_layers == (best.limits.gpu_layers,)
    assert f"{best.limits.gpu_layers} layers on devices" in layout(best)


def test_a_smaller_card_keeps_as_many_layers_as_it_can(catalog: Catalog) -> None:
    """Of a card that others fill to 9 GiB."""
    machine = report_from_spec("1xrtx4090+256gb", catalog)
    full = msgspec.structs.replace(machine.accelerators[0], memory_free_bytes=9 * GIB)
    plan = api.plan(
        "glm-4.6",
        hardware=msgspec.structs.replace(machine, accelerators=(full,)),
        known=catalog,
        pins=Pins(engine="llamacpp", gpus=(0,)),
    )
    assert plan.chosen is not None
    assert plan.chosen.limits.gpu_layers is not None
    assert plan.chosen.memory.per_device.weights_bytes + plan.chosen.memory.per_device.kv_cache_bytes < 9 * GIB


def test_what_lies_on_devices_whole_is_planned_as_before(catalog: Catalog) -> None:
    for machine in ("8xh100", "4xh100", "1xb200"):
        alone, beside = (chosen(catalog, name) for name in (machine, f"{machine}+64gb"))
        assert (alone.checkpoint, alone.parallel, alone.limits) == (beside.checkpoint, beside.parallel, beside.limits)


def test_main_memory_that_nobody_told_is_not_planned_with(catalog: Catalog) -> None:
    plan = planned(catalog, "1xrtx4090", Pins(engine="llamacpp", quantization="UD-Q3_K_XL"))
    assert not plan.feasible
    assert {each.code for each in plan.rejected if each.engine == "llamacpp"} <= {"memory.weights", "pin.quantization"}


def test_main_memory_that_is_too_small_is_told_with_its_figures(catalog: Catalog) -> None:
    plan = planned(catalog, "1xrtx4090+128gb", Pins(engine="llamacpp", quantization="UD-Q3_K_XL"))
    refusal = next(each for each in plan.rejected if each.code == "memory.host")
    assert refusal.numbers["needed_bytes"] > refusal.numbers["usable_bytes"] == int(HOST_SHARE * 128 * GIB)
    assert "of main memory beside the devices" in refusal.message


def test_main_memory_that_others_hold_is_not_planned_with(catalog: Catalog) -> None:
    machine = report_from_spec("1xrtx4090+192gb", catalog)
    host = msgspec.structs.replace(machine.host, memory_available_bytes=100 * GIB)
    request = PlanRequest(model="glm-4.6")
    busy = decide(catalog.model("glm-4.6"), msgspec.structs.replace(machine, host=host), request, catalog)
    assert decide(catalog.model("glm-4.6"), machine, request, catalog).ranked
    assert not busy.ranked


def test_memory_that_the_gpu_shares_is_not_counted_twice(catalog: Catalog) -> None:
    for machine in ("gb10", "m4-max-128gb"):
        ranked = decide(
            catalog.model("glm-4.6"), report_from_spec(machine, catalog), PlanRequest(model="glm-4.6"), catalog
        ).ranked
        assert not [each for each in ranked if each.limits.cpu_expert_layers]


def test_the_first_cards_hold_the_layers_without_experts(catalog: Catalog) -> None:
    limits = chosen(catalog, "4xrtx4090+256gb", Pins(quantization="UD-Q4_K_XL"), 16_384).limits
    assert len(limits.device_layers) == 4
    assert limits.device_layers[0] > 2 * limits.device_layers[-1]
    assert limits.device_layers != stage_layers(92, 4, "even")


def test_a_slice_of_a_gpu_is_planned_alone(catalog: Catalog) -> None:
    machine = report_from_file(str(DATA / "mig.json"))
    plan = api.plan("glm-4.6", hardware=machine, known=catalog, pins=Pins(engine="llamacpp", quantization="UD-Q3_K_XL"))
    beside = [each for each in (plan.chosen, *plan.alternatives) if each is not None and each.limits.cpu_expert_layers]
    assert beside
    assert all(each.parallel.ranks == 1 for each in beside)


def test_replicas_are_not_planned_on_one_main_memory(catalog: Catalog) -> None:
    pins = Pins(engine="llamacpp", quantization="UD-Q3_K_XL", data_parallel=2)
    assert not planned(catalog, "2xrtx4090+512gb", pins).feasible


@pytest.mark.parametrize(
    ("pins", "devices", "sequences"),
    [
        (Pins(gpus=(1,)), (1,), 4),
        (Pins(gpu_count=1), (0,), 4),
        (Pins(max_sequences=2), (0, 1), 2),
        (Pins(pipeline_parallel=1), (0,), 4),
    ],
    ids=str,
)
def test_pins_are_kept_with_experts_in_main_memory(
    catalog: Catalog, pins: Pins, devices: tuple[int, ...], sequences: int
) -> None:
    best = chosen(catalog, "2xrtx4090+256gb", msgspec.structs.replace(pins, engine="llamacpp"), 8_192)
    assert best.parallel.devices == devices
    assert best.limits.max_sequences == sequences
    assert best.limits.context_tokens == 8_192


def test_a_cache_that_the_engine_is_not_told_is_refused_there_too(catalog: Catalog) -> None:
    plan = planned(catalog, "1xrtx4090+256gb", Pins(engine="llamacpp", kv_cache_dtype="fp8"))
    assert not plan.feasible


def test_quality_below_the_floor_is_not_taken_to_fill_main_memory(catalog: Catalog) -> None:
    plan = planned(catalog, "1xrtx4090+128gb")
    assert not plan.feasible
    assert any(each.code == "quality.floor" for each in plan.rejected)
    assert chosen(catalog, "1xrtx4090+128gb", Pins(quantization="UD-IQ1_M")).limits.cpu_expert_layers


def test_more_main_memory_is_advised_where_it_is_what_is_missing(catalog: Catalog) -> None:
    advice = [each for each in planned(catalog, "1xrtx4090+64gb").advice if "of main memory it fits" in each.message]
    assert [each.numbers["host_bytes"] for each in advice] == [192 * GIB]
    assert chosen(catalog, "1xrtx4090+192gb").limits.context_tokens == advice[0].numbers["context_tokens"]


def test_what_lies_in_main_memory_is_said(catalog: Catalog) -> None:
    plan = planned(catalog, "1xrtx4090+192gb")
    assert plan.chosen is not None
    count = plan.chosen.limits.cpu_expert_layers
    assert f"experts of {count} layers in main memory" in layout(plan.chosen)
    note = next(each for each in plan.chosen.notes if each.code == "offload")
    assert f"the routed experts of {count} of 89 layers" in note.message
    assert note.message in plan.explain()


# --- speed --------------------------------------------------------------------------------------------


def test_a_reported_rate_with_experts_in_main_memory_is_met_to_a_third(catalog: Catalog) -> None:
    """6.17 tokens/s and 619 of prompt, GLM-4.7 (the same shapes) at 4.25 bits beside an RTX 5090 with 256 GB of DDR5.

    https://postl.ai/2025/12/31/in-progress-glm-4-7-mxfp16-on-9950x256gb-6000mt-srtx5090; the constants were chosen
    with it, its batches were larger than ours.
    """
    speed = chosen(catalog, "1xrtx5090+256gb", Pins(quantization="UD-Q4_K_XL"), 16_384).speed
    assert speed.decode_tokens_per_second == pytest.approx(6.17, rel=1 / 3)
    assert 100 < (speed.prefill_tokens_per_second or 0) < 619


def test_a_card_beside_main_memory_is_quicker_than_the_processor_alone(catalog: Catalog) -> None:
    pins = Pins(engine="llamacpp", quantization="UD-Q3_K_XL")
    beside, alone = (chosen(catalog, name, pins, 16_384).speed for name in ("1xrtx4090+256gb", "cpu-256gb"))
    assert (beside.decode_tokens_per_second or 0) > 1.5 * (alone.decode_tokens_per_second or 0)
    assert (beside.time_to_first_token_seconds or 0) < (alone.time_to_first_token_seconds or 0)
