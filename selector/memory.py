"""How much memory a candidate needs on its fullest device, item by item, and what that leaves for requests.

``weights``      stored bytes of the stage's layers over the tensor-parallel ranks; router, norms and (where its
                 heads do not divide) the vision tower are whole on every rank; KV projections are repeated
                 once tensor parallelism exceeds the KV heads.
``activations``  the largest step: ``batched_tokens`` through one layer (the residual stream in
                 ``activation_copies``, the routed experts' inputs and outputs) and ``max_sequences`` rows of
                 32-bit logits in ``logits_copies``.
``graphs``       captured CUDA graphs, a layer at a time.
``runtime``      the context of the driver and the collectives' buffers.
``kv_cache``     what is left of the engine's budget; ``reserve`` is what the engine leaves alone.

The budget is the engine's own rule (``profiles/engines``): vLLM takes ``utilization x allocatable`` for
everything, SGLang keeps a reserve computed from its batch and gives the rest to weights and KV cache, the
others take what they need. Everything here is bytes on one device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from selector.architecture import StoredWeights, kv_bytes_per_token
from selector.contract import Limits, Memory, Number, Parallel, PerDevice
from selector.devices import GIB, MIB, Device
from selector.facts import Architecture, BatchDefault, Component, EngineFacts
from selector.legality import Refusal, vision_heads_indivisible
from selector.request import KvDtype, PlanRequest

ELEMENT_BYTES: dict[KvDtype, int] = {"bf16": 2, "fp8": 1, "fp32": 4}
#: Contexts are cut to whole multiples of this many tokens, unless the model's own limit is reached.
CONTEXT_STEP_TOKENS = 1024
#: Below this context nobody is served well, whatever the model could do.
MINIMUM_CONTEXT_TOKENS = 4096
#: Kept free beside other processes' memory, so that the engine's own check of free memory passes.
FREE_MARGIN_BYTES = 512 * MIB
#: What a driver's own context takes before an engine asks what is free (assumed of CUDA and ROCm).
CONTEXT_BYTES = 512 * MIB
#: Main memory an engine's processes take beside the devices: a rank each, and a server (assumed).
HOST_BYTES_PER_RANK = 3 * GIB


class Fit(NamedTuple):
    """A candidate that fits: its limits and its memory."""

    limits: Limits
    memory: Memory


class _Budget(NamedTuple):
    """``pool`` bytes for weights and KV cache, and for the rest too unless ``rest`` bytes are set apart for it."""

    utilization: float
    pool: int
    rest: int | None


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage: even, the remainder on the last stages but one (vLLM's get_pp_indices)."""
    even, left = divmod(layers, stages)
    counts = [even] * stages
    for position in range(left):
        counts[-2 - position if stages > 1 else 0] += 1
    return tuple(counts)


def rank_weights(
    arch: Architecture, weights: StoredWeights, parallel: Parallel, *, mtp: bool, whole_vision: bool
) -> tuple[int, int]:
    """Bytes of weights on the fullest rank, and the number of layers of the fullest stage for the KV cache."""
    tensor = parallel.tensor
    kv_repeats = max(1, tensor // arch.num_key_value_heads)
    queries = arch.num_attention_heads
    kv_share = 2 * arch.num_key_value_heads / (2 * queries + 2 * arch.num_key_value_heads)
    attention_share = (1 - kv_share + kv_share * kv_repeats) / tensor

    def on_rank(layer: dict[Component, float]) -> float:
        total = 0.0
        for name, size in layer.items():
            if name == "attention":
                total += size * attention_share
            elif name in ("router", "norms"):
                total += size
            else:
                total += size / tensor
        return total

    dense, sparse = on_rank(weights.dense_layer), on_rank(weights.sparse_layer)
    counts = stage_layers(arch.num_hidden_layers, parallel.pipeline)
    fullest, most_layers, first = 0.0, 0, 0
    for stage, count in enumerate(counts):
        dense_here = max(0, min(arch.first_k_dense_replace - first, count))
        size = dense_here * dense + (count - dense_here) * sparse
        layers = count
        if stage == 0:
            size += weights.embedding / tensor + (weights.vision if whole_vision else weights.vision / tensor)
        if stage == len(counts) - 1:
            size += weights.lm_head / tensor + weights.final_norm
            if mtp:
                size += on_rank(weights.mtp_layer)
                layers += arch.num_nextn_predict_layers
        fullest, most_layers, first = max(fullest, size), max(most_layers, layers), first + count
    return int(fullest), most_layers


def rank_kv_bytes_per_token(arch: Architecture, parallel: Parallel, layers: int, element_bytes: int) -> int:
    """KV cache of one token on the fullest rank: a rank holds 1 / min(TP, KV heads) of ``layers`` layers."""
    whole = kv_bytes_per_token(arch, element_bytes=element_bytes) / arch.num_hidden_layers * layers
    return int(whole / min(parallel.tensor, arch.num_key_value_heads))


def activation_bytes(
    arch: Architecture, engine: EngineFacts, parallel: Parallel, batched_tokens: int, max_sequences: int
) -> int:
    """Peak of one step, 16-bit activations and 32-bit logits."""
    rule = engine.memory
    residual = 2 * arch.hidden_size * rule.activation_copies
    routed = 2 * arch.num_experts_per_tok * (arch.hidden_size + 3 * arch.moe_intermediate_size / parallel.tensor)
    logits = 4 * arch.vocab_size * rule.logits_copies
    return int(batched_tokens * (residual + routed) + max_sequences * logits)


def batch_default(engine: EngineFacts, device: Device) -> BatchDefault:
    """The engine's own batch on a device like this."""
    for default in engine.batch_defaults:
        if device.total_bytes >= default.minimum_device_bytes and not any(
            word in device.name for word in default.not_on
        ):
            return default
    return engine.batch_defaults[-1]


def _sglang_reserve(engine: EngineFacts, device: Device, parallel: Parallel) -> int:
    """SGLang's reserve beside its static share: ServerArgs of 0.5.23 (see ``profiles/engines/sglang.toml``)."""
    chunk = batch_default(engine, device).batched_tokens
    reserve = 512 + 1.5 * max(chunk, 2048) + 1024 * parallel.ranks / 8
    if device.total_bytes > 60 * GIB:
        reserve = max(reserve, 10 * 1024)
    return int(reserve * MIB)


def _budgets(
    engine: EngineFacts, device: Device, parallel: Parallel, pinned: float | None
) -> tuple[_Budget, ...] | Refusal:
    """The engine's budget on the device, at its default and, where that is too little, at its most."""
    rule = engine.memory
    free = device.free_bytes
    if free < device.allocatable_bytes and rule.kind != "demand":
        free = max(0, free - FREE_MARGIN_BYTES)
    counted = device.counted_bytes
    most = free if rule.kind == "demand" else min(free, device.allocatable_bytes - CONTEXT_BYTES)
    if pinned is not None and int(pinned * counted) > most:
        return Refusal(
            "memory.free",
            f"a memory utilization of {pinned:g} is {pinned * counted / GIB:.1f} GiB a GPU; "
            f"{max(0, most) / GIB:.1f} can be had",
            {"needed_bytes": int(pinned * counted), "usable_bytes": max(0, most)},
        )
    budgets = []
    for wanted in rule.utilizations if pinned is None else (pinned,):
        pool, utilization = int(wanted * counted), wanted
        if rule.kind == "static_fraction":
            if pinned is None:
                pool = max(0, min(device.allocatable_bytes, free) - _sglang_reserve(engine, device, parallel))
                utilization = int(1000 * pool / counted) / 1000
            budgets.append(_Budget(utilization, pool, free - pool))
        elif pool > free:
            # The engine refuses to start when less is free than it was told to take: ask for what is there.
            utilization = int(100 * free / counted) / 100
            pool = free if rule.kind == "demand" else int(utilization * counted)
            budgets.append(_Budget(utilization, pool, None))
        else:
            budgets.append(_Budget(utilization, pool, None))
    return tuple(budgets)


def _sequence_choices(request: PlanRequest, default: int, replicas: int) -> tuple[int, ...]:
    """How many sequences a replica may run at once: what was asked, or the engine's default and then ever fewer."""
    if request.pins.max_sequences is not None:
        return (request.pins.max_sequences,)
    if request.concurrency is not None:
        return (-(-request.concurrency // replicas),)
    return (default, *(count for count in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if count < default))


def kv_dtype(engine: EngineFacts, checkpoint_format: str, pinned: KvDtype | None) -> KvDtype:
    """The cache's precision: as pinned, else the weights' own compute precision. Never lowered by itself."""
    if pinned is not None:
        return pinned
    return "fp32" if checkpoint_format == "fp32" and "fp32" in engine.kv_cache_dtypes else "bf16"


def _too_few(request: PlanRequest, replicas: int) -> Refusal | None:
    """Sequences that were pinned below the concurrency that was asked for."""
    pinned, wanted = request.pins.max_sequences, request.concurrency
    if pinned is None or wanted is None or pinned * replicas >= wanted:
        return None
    return Refusal(
        "pin.max_sequences",
        f"{pinned} sequences on each of {replicas} replicas were pinned, and {wanted} at once were asked for",
        {"needed_sequences": wanted, "sequences": pinned * replicas},
    )


def fit(
    *,
    arch: Architecture,
    model_context_tokens: int,
    weights: StoredWeights,
    checkpoint_format: str,
    engine: EngineFacts,
    device: Device,
    parallel: Parallel,
    speculative: bool,
    eager: bool,
    request: PlanRequest,
) -> Fit | Refusal:
    """Fit a candidate on its fullest device, or say what is short by how much.

    ``device`` stands for all of the candidate's: it is the one with the least free memory.
    """
    rule, pins = engine.memory, request.pins
    dtype = kv_dtype(engine, checkpoint_format, pins.kv_cache_dtype)
    mtp = bool(weights.mtp_layer) and (speculative or rule.loads_mtp)
    whole_vision = vision_heads_indivisible(arch, parallel)
    weight_bytes, kv_layers = rank_weights(arch, weights, parallel, mtp=mtp, whole_vision=whole_vision)
    per_token = rank_kv_bytes_per_token(arch, parallel, kv_layers, ELEMENT_BYTES[dtype])
    batch = batch_default(engine, device)
    graphs = 0 if eager else rule.graphs_bytes_per_layer * (arch.num_hidden_layers // parallel.pipeline)
    runtime = rule.runtime_bytes + (rule.collective_bytes if parallel.ranks > 1 else 0)
    target = request.context_tokens or model_context_tokens
    # Requests that are not known to be short need at least this much; a wish replaces the floor.
    workload = request.workload.input_tokens + request.workload.output_tokens
    least = request.context_tokens or min(model_context_tokens, max(MINIMUM_CONTEXT_TOKENS, workload))
    # Concurrent requests are shared out over the replicas.
    concurrent = 0 if request.concurrency is None else workload * -(-request.concurrency // parallel.data)
    budgets = _too_few(request, parallel.data) or _budgets(engine, device, parallel, pins.memory_utilization)
    if isinstance(budgets, Refusal):
        return budgets

    def attempt(budget: _Budget, sequences: int) -> Fit | Refusal:
        batched = max(batch.batched_tokens, sequences)
        activations = activation_bytes(arch, engine, parallel, batched, sequences)
        rest = activations + graphs + runtime
        if budget.rest is not None and pins.memory_utilization is not None and rest > budget.rest:
            return _no_reserve(budget, rest, device)
        left = budget.pool - weight_bytes - (rest if budget.rest is None else max(0, rest - budget.rest))
        tokens = max(0, left) // per_token
        if rule.kind == "demand":
            tokens = min(tokens, sequences * target)
        if tokens < max(least, concurrent):
            return _short(budget, device, weight_bytes, rest, per_token, max(least, concurrent))
        context = min(target, tokens)
        if context < target:
            context = max(least, context // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS)
        limits = Limits(
            context_tokens=context,
            max_sequences=sequences,
            kv_cache_dtype=dtype,
            memory_utilization=budget.utilization,
            batched_tokens=batched,
            speculative="mtp" if speculative else "off",
            eager=eager,
        )
        needs = _memory(
            device,
            budget,
            weight_bytes,
            int(tokens * per_token) if rule.kind == "demand" else left,
            activations,
            graphs,
            runtime,
            whole_kv=kv_bytes_per_token(arch, element_bytes=ELEMENT_BYTES[dtype], mtp=mtp),
            tokens=tokens,
            host=0 if device.kind == "cpu" else HOST_BYTES_PER_RANK * (parallel.ranks + 1),
            uncertainty=rule.relative_uncertainty,
            exact=weights.exact,
        )
        return Fit(limits, needs)

    choices = _sequence_choices(request, batch.sequences, parallel.data)
    return _best((attempt(budget, sequences) for budget in budgets for sequences in choices), target)


def _best(answers: Iterator[Fit | Refusal], target_tokens: int) -> Fit | Refusal:
    """The first that reaches the context, else the longest context, else the first refusal."""
    best = next(answers)
    for answer in itertools.chain((best,), answers):
        if isinstance(answer, Fit):
            if answer.limits.context_tokens >= target_tokens:
                return answer
            if not isinstance(best, Fit) or answer.limits.context_tokens > best.limits.context_tokens:
                best = answer
    return best


def _no_reserve(budget: _Budget, rest: int, device: Device) -> Refusal:
    """A pinned static share that leaves too little beside it: the engine fills the share and then runs out."""
    return Refusal(
        "memory.reserve",
        f"a memory utilization of {budget.utilization:g} leaves {max(0, budget.rest or 0) / GIB:.1f} GiB beside the KV "
        f"cache, {rest / GIB:.1f} are needed there",
        {"needed_bytes": rest, "usable_bytes": max(0, budget.rest or 0), "total_bytes": device.total_bytes},
    )


def _short(budget: _Budget, device: Device, weights: int, rest: int, per_token: int, needed_tokens: int) -> Refusal:
    """What is missing, named by the first item that no longer fits."""
    beside = rest if budget.rest is None else 0
    usable = max(0, budget.pool)
    needed = weights + beside + per_token * needed_tokens
    numbers: dict[str, Number] = {
        "needed_bytes": needed,
        "usable_bytes": usable,
        "weights_bytes": weights,
        "kv_cache_bytes": per_token * needed_tokens,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
    }
    where = "of main memory" if device.kind == "cpu" else "a GPU"
    usable_text = f"{usable / GIB:.1f} usable"
    if device.free_bytes < device.allocatable_bytes - FREE_MARGIN_BYTES:
        usable_text += f" ({(device.allocatable_bytes - device.free_bytes) / GIB:.1f} taken by others)"
    if weights + beside > usable:
        code = "memory.weights"
        sentence = f"needs {needed / GIB:.1f} GiB {where}, {weights / GIB:.1f} of them weights; {usable_text}"
    else:
        code = "memory.kv_cache"
        room = max(0, usable - weights - beside) // per_token
        sentence = (
            f"has room for {room:,} tokens of KV cache beside the weights, {needed_tokens:,} are needed: "
            f"{needed / GIB:.1f} GiB {where}, {usable_text}"
        )
        numbers["room_tokens"] = room
        numbers["needed_tokens"] = needed_tokens
    return Refusal(code, sentence, numbers)


def _memory(
    device: Device,
    budget: _Budget,
    weights: int,
    kv: int,
    activations: int,
    graphs: int,
    runtime: int,
    *,
    whole_kv: float,
    tokens: int,
    host: int,
    uncertainty: float,
    exact: bool,
) -> Memory:
    filled = weights + kv + activations + graphs + runtime
    fixed = filled - kv
    return Memory(
        per_device=PerDevice(
            total_bytes=device.total_bytes,
            usable_bytes=budget.pool + (budget.rest or 0),
            weights_bytes=weights,
            kv_cache_bytes=kv,
            activations_bytes=activations,
            graphs_bytes=graphs,
            runtime_bytes=runtime,
            reserve_bytes=device.total_bytes - filled,
        ),
        kv_bytes_per_token=int(whole_kv),
        kv_cache_tokens=int(tokens),
        host_bytes=host,
        low_bytes=int(fixed * (1 - uncertainty)),
        high_bytes=int(fixed * (1 + uncertainty)),
        basis="derived" if exact else "assumed",
    )
