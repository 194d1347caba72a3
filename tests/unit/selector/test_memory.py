"""Memory a device, against engine logs and by its own laws."""

from __future__ import annotations

import pytest

from selector import memory
from selector.architecture import stored_weights
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.devices import GIB, Device, groups
from selector.legality import Refusal
from selector.machines import report_from_spec
from selector.memory import Fit
from selector.request import Pins, PlanRequest


def device_of(catalog: Catalog, machine: str) -> Device:
    found, _ = groups(report_from_spec(machine, catalog), catalog.accelerator_for)
    return found[0].devices[0]


def fit(
    catalog: Catalog,
    model: str,
    quantization: str,
    engine: str,
    machine: str,
    parallel: Parallel,
    request: PlanRequest | None = None,
    *,
    speculative: bool = False,
    eager: bool = False,
    device: Device | None = None,
) -> Fit | Refusal:
    facts = catalog.model(model)
    checkpoint = next(each for each in facts.checkpoints if each.quantization == quantization)
    return memory.fit(
        arch=facts.architecture,
        model_context_tokens=facts.context_tokens,
        weights=stored_weights(facts.architecture, checkpoint),
        checkpoint_format=checkpoint.format,
        engine=catalog.engine(engine),
        device=device or device_of(catalog, machine),
        parallel=parallel,
        speculative=speculative,
        eager=eager,
        request=request or PlanRequest(model=model),
    )


def fitted(answer: Fit | Refusal) -> Fit:
    assert isinstance(answer, Fit), answer
    return answer


def test_weights_a_device_agree_with_the_log_of_four_h200(catalog: Catalog) -> None:
    """GLM-4.6-FP8 at TP 4 with MTP: vLLM 0.25.1 logged 84.22 GiB (Kempner recipe h200-4)."""
    request = PlanRequest(model="glm-4.6", pins=Pins(memory_utilization=0.90))
    found = fitted(
        fit(catalog, "glm-4.6", "FP8", "vllm", "4xh200", Parallel(tensor=4), request, speculative=True, eager=True)
    )
    assert found.memory.per_device.weights_bytes / GIB == pytest.approx(84.22, rel=0.02)
    assert found.memory.kv_cache_tokens == pytest.approx(395_392, rel=0.07)
    assert found.limits.context_tokens == 202_752


def test_mtp_weights_are_counted_only_where_they_are_loaded(catalog: Catalog) -> None:
    parallel = Parallel(tensor=8)
    off = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", parallel))
    on = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", parallel, speculative=True))
    difference = 8 * (on.memory.per_device.weights_bytes - off.memory.per_device.weights_bytes)
    # 4.0 GB in FP8, of which the joining projection (105 MB in 16 bits) is whole on each of the eight ranks.
    assert difference == pytest.approx(4.0e9 + 7 * 105e6, rel=0.03)
    assert (off.memory.kv_bytes_per_token, on.memory.kv_bytes_per_token) == (376_832, 380_928)


@pytest.mark.parametrize(("tensor", "share"), [(1, 1), (2, 2), (4, 4), (8, 8), (16, 8)])
def test_a_rank_holds_its_share_of_the_kv_heads_and_no_less_than_one(catalog: Catalog, tensor: int, share: int) -> None:
    arch = catalog.model("glm-4.6").architecture
    per_rank = memory.rank_kv_bytes_per_token(arch, Parallel(tensor=tensor), arch.num_hidden_layers, 2)
    assert per_rank == 376_832 // share


def test_a_vision_tower_that_does_not_divide_is_whole_on_every_rank(catalog: Catalog) -> None:
    model = catalog.model("glm-4.5v")
    weights = stored_weights(model.architecture, model.checkpoints[0])
    parallel = Parallel(tensor=8)
    whole, _ = memory.rank_weights(model.architecture, weights, parallel, mtp=False, whole_vision=True)
    divided, _ = memory.rank_weights(model.architecture, weights, parallel, mtp=False, whole_vision=False)
    assert whole - divided == pytest.approx(858_681_856 * 2 * 7 / 8, rel=1e-6)


@pytest.mark.parametrize("layers", [46, 92])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
def test_stages_are_even_and_complete(layers: int, stages: int) -> None:
    counts = memory.stage_layers(layers, stages)
    assert sum(counts) == layers
    assert len(counts) == stages
    assert max(counts) - min(counts) <= 1


def test_ranks_together_hold_the_model(catalog: Catalog) -> None:
    model = catalog.model("glm-4.6")
    weights = stored_weights(model.architecture, model.checkpoints[0])
    one, _ = memory.rank_weights(model.architecture, weights, Parallel(), mtp=False, whole_vision=False)
    eight, _ = memory.rank_weights(model.architecture, weights, Parallel(tensor=8), mtp=False, whole_vision=False)
    mtp = sum(weights.mtp_layer.values())
    assert one == pytest.approx(weights.total - mtp, rel=1e-6)
    assert one <= 8 * eight <= one * 1.01


def test_a_refusal_carries_what_is_needed_and_what_is_there(catalog: Catalog) -> None:
    answer = fit(catalog, "glm-4.6", "FP8", "vllm", "4xh100", Parallel(tensor=4))
    assert isinstance(answer, Refusal)
    assert answer.code == "memory.weights"
    assert answer.numbers["needed_bytes"] > answer.numbers["usable_bytes"] > 0
    assert f"{answer.numbers['needed_bytes'] / GIB:.1f} GiB" in answer.message


def test_a_context_that_was_asked_for_is_kept_or_refused(catalog: Catalog) -> None:
    parallel = Parallel(tensor=8)
    kept = fitted(
        fit(catalog, "glm-4.6", "FP8", "vllm", "8xh100", parallel, PlanRequest(model="glm-4.6", context_tokens=50_000))
    )
    assert kept.limits.context_tokens == 50_000
    refused = fit(
        catalog,
        "glm-4.6",
        "4bit",
        "mlx",
        "m3-ultra-256gb",
        Parallel(),
        PlanRequest(model="glm-4.6", context_tokens=131_072),
    )
    assert isinstance(refused, Refusal)
    assert refused.code == "memory.kv_cache"
    assert refused.numbers["needed_tokens"] == 131_072


def test_fewer_sequences_are_planned_before_the_context_is_cut(catalog: Catalog) -> None:
    found = fitted(fit(catalog, "glm-4.5v", "Int4", "vllm", "1xh100", Parallel()))
    assert found.limits.context_tokens == 65_536
    assert found.limits.max_sequences < 1024


def test_pinned_sequences_are_never_lowered(catalog: Catalog) -> None:
    request = PlanRequest(model="glm-4.5v", pins=Pins(max_sequences=1024))
    answer = fit(catalog, "glm-4.5v", "Int4", "vllm", "1xh100", Parallel(), request)
    assert not isinstance(answer, Fit) or answer.limits.max_sequences == 1024


def test_an_fp8_cache_holds_twice_the_tokens_and_is_never_chosen_unasked(catalog: Catalog) -> None:
    parallel = Parallel(tensor=8)
    plain = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh100", parallel))
    asked = PlanRequest(model="glm-4.6", pins=Pins(kv_cache_dtype="fp8"))
    half = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh100", parallel, asked))
    assert plain.limits.kv_cache_dtype == "bf16"
    assert half.memory.kv_cache_tokens == pytest.approx(2 * plain.memory.kv_cache_tokens, rel=1e-4)


def test_memory_held_by_others_lowers_what_the_engine_is_told_to_take(catalog: Catalog) -> None:
    empty = device_of(catalog, "8xh200")
    busy = Device(
        index=0,
        kind="nvidia",
        name=empty.name,
        node=0,
        total_bytes=empty.total_bytes,
        allocatable_bytes=empty.allocatable_bytes,
        free_bytes=empty.allocatable_bytes - 40 * GIB,
        counted_bytes=empty.counted_bytes,
        capability=empty.capability,
        facts=empty.facts,
    )
    parallel = Parallel(tensor=8)
    found = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", parallel, device=busy))
    assert found.limits.memory_utilization < 0.72
    assert found.limits.memory_utilization * busy.allocatable_bytes <= busy.free_bytes
    pinned = PlanRequest(model="glm-4.6", pins=Pins(memory_utilization=0.9))
    refused = fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", parallel, pinned, device=busy)
    assert isinstance(refused, Refusal)
    assert refused.code == "memory.free"


def test_sglang_keeps_its_own_reserve(catalog: Catalog) -> None:
    found = fitted(fit(catalog, "glm-4.6", "FP8", "sglang", "8xh100", Parallel(tensor=8)))
    items = found.memory.per_device
    beside = items.activations_bytes + items.graphs_bytes + items.runtime_bytes + items.reserve_bytes
    assert beside >= 10 * GIB
    assert found.limits.memory_utilization == pytest.approx(0.83, abs=0.02)


def test_an_estimate_says_how_sure_it_is(catalog: Catalog) -> None:
    known = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh100", Parallel(tensor=8))).memory
    guessed = fitted(fit(catalog, "glm-4.6", "Int4-Int8Mix", "vllm", "8xh100", Parallel(tensor=8))).memory
    assert (known.basis, guessed.basis) == ("derived", "assumed")
    assert known.low_bytes < known.high_bytes
