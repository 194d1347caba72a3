"""Memory a device, against engine logs and by its own laws."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector import memory, needs
from selector.architecture import stored_weights
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.devices import GIB, Device, groups
from selector.legality import Refusal
from selector.machines import report_from_spec
from selector.memory import Fit
from selector.request import KvDtype, Pins


@cache
def shipped() -> Catalog:
    return Catalog()


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
    assert found.memory.per_device.weights_bytes / GIB == pytest.approx(84.22, rel=0.005)
    assert found.memory.per_device.kv_cache_bytes / GIB == pytest.approx(35.07, rel=0.02)
    assert found.memory.kv_cache_tokens == pytest.approx(395_392, rel=0.02)
    assert found.limits.context_tokens == 202_752


@pytest.mark.parametrize(
    ("kv_cache_dtype", "context_tokens", "requests"),
    [("fp8", 16_384, 133), ("fp8", 32_768, 66), ("fp8", 65_536, 33), ("bf16", 32_768, 33), ("fp8", 32_768, 61.44)],
)
def test_the_cache_agrees_with_the_logs_of_eight_h200(
    catalog: Catalog, kv_cache_dtype: KvDtype, context_tokens: int, requests: float
) -> None:
    """GLM-4.6 in bf16 at TP 8 with experts dealt out, eager, one sequence: how often a context fits, as vLLM 0.12
    logged it ("Maximum concurrency for 32,768 tokens per request"), whole numbers where only those are published.
    """
    pins = Pins(memory_utilization=0.95, max_sequences=1, kv_cache_dtype=kv_cache_dtype, engine_version="0.12.0")
    request = PlanRequest(model="glm-4.6", context_tokens=context_tokens, pins=pins)
    parallel = Parallel(tensor=8, expert=True)
    found = fitted(fit(catalog, "glm-4.6", "BF16", "vllm", "8xh200", parallel, request, eager=True))
    assert found.memory.kv_cache_tokens / context_tokens == pytest.approx(requests, rel=0.07)


def test_the_peak_of_a_mac_is_weights_and_cache(catalog: Catalog) -> None:
    """GLM-4.5-Air-3bit: 47.687 GB at peak after 4,193 generated tokens of a short prompt
    (https://simonwillison.net/2025/Jul/29/space-invaders/). The cache grows by 256 tokens.
    """
    memory_of = fitted(fit(catalog, "glm-4.5-air", "3bit", "mlx", "m2-max-64gb", Parallel())).memory
    held = memory_of.per_device.weights_bytes + memory_of.kv_bytes_per_token * 17 * 256
    assert held == pytest.approx(47.687e9, rel=0.005)
    assert memory_of.per_device.weights_bytes + memory_of.per_device.kv_cache_bytes < 48 * GIB


@pytest.mark.parametrize(
    ("model", "quantization", "machine", "tensor", "nodes"),
    [
        ("glm-4.5", "BF16", "8xh200", 8, 1),
        ("glm-4.5", "FP8", "8xh100", 8, 1),
        ("glm-4.5", "FP8", "4xh200", 4, 1),
        ("glm-4.5-air", "BF16", "4xh100", 4, 1),
        ("glm-4.5-air", "BF16", "2xh200", 2, 1),
        ("glm-4.5-air", "FP8", "2xh100", 2, 1),
        ("glm-4.5-air", "FP8", "1xh200", 1, 1),
        ("glm-4.5", "BF16", "2x8xh100", 8, 2),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_makers_smallest_machines_hold_the_model(
    catalog: Catalog, model: str, quantization: str, machine: str, tensor: int, nodes: int, engine: str
) -> None:
    """The table of minimal machines of https://github.com/zai-org/GLM-4.5 README.md."""
    parallel = Parallel(tensor=tensor, pipeline=nodes)
    assert isinstance(fit(catalog, model, quantization, engine, machine, parallel), Fit)


@pytest.mark.parametrize(
    ("model", "quantization", "machine", "tensor"),
    [("glm-4.6", "FP8", "4xh100", 4), ("glm-4.6", "BF16", "8xh100", 8), ("glm-4.5-air", "FP8", "1xh100", 1)],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_half_of_the_makers_smallest_machines_do_not(
    catalog: Catalog, model: str, quantization: str, machine: str, tensor: int, engine: str
) -> None:
    answer = fit(catalog, model, quantization, engine, machine, Parallel(tensor=tensor))
    assert isinstance(answer, Refusal)
    assert answer.code == "memory.weights"


@pytest.mark.parametrize(
    ("machine", "model", "fits", "too_large"),
    [
        ("m2-max-64gb", "glm-4.5v", "3bit", "4bit"),
        ("m4-max-128gb", "glm-4.5v", "6bit", "8bit"),
        ("m3-ultra-256gb", "glm-4.6", "4bit", "5bit"),
        ("m3-ultra-512gb", "glm-4.6", "8bit", None),
    ],
)
def test_a_mac_holds_what_its_wired_limit_allows(
    catalog: Catalog, machine: str, model: str, fits: str, too_large: str | None
) -> None:
    assert isinstance(fit(catalog, model, fits, "mlx", machine, Parallel()), Fit)
    if too_large is not None:
        assert isinstance(fit(catalog, model, too_large, "mlx", machine, Parallel()), Refusal)


def test_mtp_weights_are_counted_only_where_they_are_loaded(catalog: Catalog) -> None:
    parallel = Parallel(tensor=8)
    off = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", parallel))
    on = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", parallel, speculative=True))
    difference = 8 * (on.memory.per_device.weights_bytes - off.memory.per_device.weights_bytes)
    # 4.0 GB in FP8, of which the joining projection (105 MB in 16 bits) is whole on each of the eight ranks, and the
    # 160 x 5120 scales of the experts' down projections too (3.3 MB).
    assert difference == pytest.approx(4.05e9 + 7 * (105e6 + 3.3e6), rel=0.005)
    assert (off.memory.kv_bytes_per_token, on.memory.kv_bytes_per_token) == (376_832, 380_928)


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


def test_an_offered_load_is_never_refused_and_bounds_the_sequences(catalog: Catalog) -> None:
    """What the cache cannot hold at once waits: 4,096 requests on one H100, or 3 over two replicas."""
    many = PlanRequest(model="glm-4.5v", concurrency=4096)
    assert fitted(fit(catalog, "glm-4.5v", "Int4", "vllm", "1xh100", Parallel(), many)).limits.max_sequences <= 1024
    few = PlanRequest(model="glm-4.6", concurrency=3)
    found = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", Parallel(tensor=4, data=2), few))
    assert found.limits.max_sequences == 2
    pinned = PlanRequest(model="glm-4.6", concurrency=64, pins=Pins(max_sequences=4))
    kept = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh200", Parallel(tensor=8), pinned))
    assert kept.limits.max_sequences == 4


def test_the_engine_counts_its_cache_in_whole_blocks(catalog: Catalog) -> None:
    found = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh100", Parallel(tensor=8)))
    assert found.memory.kv_cache_tokens % 16 == 0
    mac = fitted(fit(catalog, "glm-4.6", "4bit", "mlx", "m3-ultra-256gb", Parallel()))
    assert mac.memory.kv_cache_tokens % 256 == 0


def test_more_sequences_cost_logits_and_more_tokens_cost_activations(catalog: Catalog) -> None:
    arch, engine = catalog.model("glm-4.6").architecture, catalog.engine("vllm")
    one = needs.activation_bytes(arch, engine, Parallel(tensor=8, expert=True), 8192, 1)
    # 8 copies of the residual stream, and 8 routed copies as wide as its input (5120) and an expert (1536).
    assert one == 8192 * 2 * (8 * 5120 + 8 * (5120 + 1536))
    many = needs.activation_bytes(arch, engine, Parallel(tensor=4), 8192, 1024)
    assert many == int(8192 * 2 * 5120 + 1024 * 151_552 * 4 * engine.memory.logits_copies)
    middle = needs.activation_bytes(arch, engine, Parallel(tensor=4), 8192, 1024, last=False)
    assert middle < many


def test_a_vision_tower_needs_room_to_encode(catalog: Catalog) -> None:
    arch, engine = catalog.model("glm-4.5v").architecture, catalog.engine("vllm")
    # A video of 30,970 tokens is 123,880 patches: stream and norm of 1536, an MLP of 3 x 4096.
    assert needs.activation_bytes(arch, engine, Parallel(), 2048, 1) == 123_880 * 2 * (2 * 1536 + 3 * 4096)
    divided = needs.activation_bytes(arch, engine, Parallel(tensor=4), 2048, 1)
    assert divided < needs.activation_bytes(arch, engine, Parallel(tensor=4), 2048, 1, whole_vision=True)


def test_an_unknown_memory_is_refused_by_name(catalog: Catalog) -> None:
    known = device_of(catalog, "1xh100")
    lost = msgspec.structs.replace(known, total_bytes=0, allocatable_bytes=0, free_bytes=0, counted_bytes=0)
    for engine in ("vllm", "sglang", "transformers"):
        quantization = "BF16" if engine == "transformers" else "FP8"
        answer = fit(catalog, "glm-4.5v", quantization, engine, "1xh100", Parallel(), device=lost)
        assert isinstance(answer, Refusal)
        assert answer.code == "device.unknown_memory"
        assert known.name in answer.message


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("parallel", [Parallel(tensor=8), Parallel(tensor=4, pipeline=2), Parallel(tensor=2, data=2)])
def test_the_items_add_up_to_the_device(catalog: Catalog, engine: str, parallel: Parallel) -> None:
    items = fitted(fit(catalog, "glm-4.5v", "BF16", engine, "8xh200", parallel)).memory.per_device
    parts = [
        items.weights_bytes,
        items.kv_cache_bytes,
        items.activations_bytes,
        items.graphs_bytes,
        items.runtime_bytes,
    ]
    assert all(part > 0 for part in parts)
    assert sum(parts) + items.reserve_bytes == items.total_bytes
    assert sum(parts) <= items.usable_bytes <= items.total_bytes


@given(more_gib=st.integers(0, 60), tensor=st.sampled_from([2, 4, 8]), engine=st.sampled_from(["vllm", "sglang"]))
def test_more_memory_never_holds_fewer_tokens(more_gib: int, tensor: int, engine: str) -> None:
    """At the same share and sequences, of devices with the same batch by default, so that nothing else changes."""
    catalog = shipped()
    small = device_of(catalog, "8xh100")
    large = msgspec.structs.replace(
        small,
        total_bytes=small.total_bytes + more_gib * GIB,
        allocatable_bytes=small.allocatable_bytes + more_gib * GIB,
        free_bytes=small.free_bytes + more_gib * GIB,
        counted_bytes=small.counted_bytes + more_gib * GIB,
    )
    request = PlanRequest(model="glm-4.5v", pins=Pins(max_sequences=64, memory_utilization=0.75))
    tokens = []
    for device in (small, large):
        answer = fit(catalog, "glm-4.5v", "FP8", engine, "8xh100", Parallel(tensor=tensor), request, device=device)
        tokens.append(answer.memory.kv_cache_tokens if isinstance(answer, Fit) else 0)
    assert tokens[0] <= tokens[1]


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
    # 512 + 1.5 x 8192 + 1024 + 2 x 512 MiB of 81,559.
    assert found.limits.memory_utilization == 0.818


def test_an_estimate_says_how_sure_it_is(catalog: Catalog) -> None:
    known = fitted(fit(catalog, "glm-4.6", "FP8", "vllm", "8xh100", Parallel(tensor=8))).memory
    guessed = fitted(fit(catalog, "glm-4.6", "Int4-Int8Mix", "vllm", "8xh100", Parallel(tensor=8))).memory
    assert (known.basis, guessed.basis) == ("derived", "assumed")
    assert known.low_bytes < known.high_bytes
