"""How much memory a candidate needs on its fullest device, item by item, and what that leaves for requests.

``weights``      what a rank holds of its stage's layers (:mod:`selector.weights`).
``activations``  the engine's peak beside that, graphs and runtime with it (:mod:`selector.needs`).
``graphs``       captured CUDA graphs.
``runtime``      the context of the driver and, over several devices, the collectives' buffers.
``kv_cache``     what is left of the engine's budget, in whole blocks; ``reserve`` is what the engine leaves alone.

The budget is the engine's own rule (:mod:`selector.budgets`). Everything here is bytes on one device: the one whose
stage leaves room for the fewest tokens, since every stage holds the same ones.

Two figures that the terms were held against, both GLM-4.6 on H200: GLM-4.6-FP8 at TP 4, MTP, eager, 1,024 sequences
left 35.07 GiB of 0.90 of the device to the KV cache (https://github.com/KempnerInstitute/hpc-agentic-recipes), and
bf16 at TP 8 with expert parallelism, eager, one sequence, needed 2.6 to 3.3 GiB beside weights and KV cache.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from selector.architecture import StoredWeights, kv_bytes_per_token
from selector.asked import PlanRequest
from selector.budgets import (
    CONTEXT_BYTES,
    FREE_MARGIN_BYTES,
    Budget,
    batch_default,
    budgets,
    default_sequences,
    relaxed,
)
from selector.contract import Limits, Memory, Number, Parallel, PerDevice
from selector.devices import GIB, Device
from selector.engine_facts import BatchDefault, EngineFacts
from selector.facts import Architecture
from selector.legality import Refusal, vision_heads_indivisible
from selector.needs import Needs, stage_needs
from selector.request import KvDtype
from selector.weights import Stage, rank_stages

if TYPE_CHECKING:
    from selector.calibration import Correction

ELEMENT_BYTES: dict[KvDtype, int] = {"bf16": 2, "fp8": 1, "fp32": 4}
#: Contexts are cut to whole multiples of this many tokens, unless the model's own limit is reached.
CONTEXT_STEP_TOKENS = 1024
#: Below this context nobody is served well, whatever the model could do.
MINIMUM_CONTEXT_TOKENS = 4096
#: More tokens than any device holds: the room of one that was dealt no layers.
UNBOUNDED_TOKENS = 1 << 62
#: Main memory an engine's processes take beside the devices: a rank each, and a server (assumed).
HOST_BYTES_PER_RANK = 3 * GIB


class Fit(NamedTuple):
    """A candidate that fits: its limits and its memory."""

    limits: Limits
    memory: Memory


class _Taken(NamedTuple):
    """A budget with a number of sequences: the fullest stage, and the tokens that it has room for.

    ``before`` of its needs are taken before a static share is; ``missing`` is what a pinned share leaves too little of.
    """

    budget: Budget
    sequences: int
    batched_tokens: int
    needs: Needs
    before: int
    tokens: int
    missing: Refusal | None


def sequence_choices(request: PlanRequest, default: int, replicas: int) -> tuple[int, ...]:
    """How many sequences a replica may run at once: as pinned, else at most the engine's default and then ever fewer.

    A concurrency that was asked for is an offered load: no more sequences are planned for than it brings, and what
    the cache cannot hold at once waits.
    """
    if request.pins.max_sequences is not None:
        return (request.pins.max_sequences,)
    if request.concurrency is not None:
        default = max(1, min(default, -(-request.concurrency // replicas)))
    return (default, *(count for count in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if count < default))


def kv_dtype(engine: EngineFacts, checkpoint_format: str, pinned: KvDtype | None) -> KvDtype:
    """The cache's precision: as pinned, else the weights' own compute precision. Never lowered by itself."""
    if pinned is not None:
        return pinned
    return "fp32" if checkpoint_format == "fp32" and "fp32" in engine.kv_cache_dtypes else "bf16"


def _with_room(budget: Budget, lost: int) -> Budget:
    """A budget with ``lost`` bytes less for the KV cache; below 0 with more, which were set apart for the rest."""
    if lost >= 0 or budget.rest is None:
        return budget._replace(pool=budget.pool - max(0, lost))
    gained = min(-lost, max(0, budget.rest))
    return budget._replace(pool=budget.pool + gained, rest=budget.rest - gained)


def _room(budget: Budget, needs: Needs, before: int) -> int:
    """Bytes left for the KV cache in a stage; ``before`` of its needs are taken before a static share is."""
    if budget.rest is not None:
        return budget.pool - needs.weights - max(0, needs.beside_weights - before - budget.rest)
    if budget.outside is None:
        return budget.pool - needs.weights - needs.beside_weights
    return budget.pool - needs.weights - needs.activations - needs.runtime - max(0, needs.graphs - budget.outside)


def _tokens(room: int, per_token: int) -> int:
    """Tokens that a stage has room for; a device that got no layers bounds nothing, if its needs fit."""
    if per_token:
        return max(0, room) // per_token
    return UNBOUNDED_TOKENS if room >= 0 else 0


class _Case(NamedTuple):
    """A layout on a device: what all budgets and numbers of sequences that are tried have in common."""

    arch: Architecture
    engine: EngineFacts
    device: Device
    parallel: Parallel
    stages: tuple[Stage, ...]
    batch: BatchDefault
    element_bytes: int
    eager: bool
    pinned: bool
    least_tokens: int
    target_tokens: int
    correction: Correction | None

    def taken(self, budget: Budget, sequences: int) -> _Taken:
        """What a budget leaves for the KV cache beside so many sequences."""
        rule, parallel = self.engine.memory, self.parallel
        batched = max(self.batch.batched_tokens, sequences)
        every = stage_needs(
            self.arch,
            self.engine,
            self.stages,
            parallel.tensor,
            parallel.pipeline,
            parallel.expert,
            self.eager,
            self.element_bytes,
            batched,
            sequences,
        )
        if self.correction is not None:
            every = tuple([self.correction.needs(needs) for needs in every])
            budget = _with_room(budget, self.correction.room)
        before, missing = 0, None
        if budget.rest is not None:
            before = min(CONTEXT_BYTES, rule.runtime_bytes) + (rule.collective_bytes if parallel.ranks > 1 else 0)
            beside = every[0].beside_weights if len(every) == 1 else max([needs.beside_weights for needs in every])
            beside -= before
            if beside > budget.rest and self.pinned:
                missing = _no_reserve(budget, beside, self.device)
            else:
                budget = relaxed(budget, beside)
        fullest = every[0]
        tokens = _tokens(_room(budget, fullest, before), fullest.kv_bytes_per_token)
        for needs in every[1:]:
            room = _tokens(_room(budget, needs, before), needs.kv_bytes_per_token)
            heavier = needs.weights + needs.beside_weights > fullest.weights + fullest.beside_weights
            if room < tokens or (room == tokens and heavier):
                tokens, fullest = room, needs
        tokens -= tokens % rule.block_tokens
        if rule.kind == "demand":
            tokens = min(tokens, sequences * self.target_tokens)
        return _Taken(budget, sequences, batched, fullest, before, tokens, missing)

    def refusal(self, one: _Taken) -> Refusal | None:
        if one.missing is not None:
            return one.missing
        if one.tokens >= self.least_tokens:
            return None
        return _short(one.budget, self.device, one.needs, self.least_tokens, one.before)

    def fits(self, one: _Taken, context_tokens: int) -> bool:
        return one.missing is None and one.tokens >= self.least_tokens and self.context(one) >= context_tokens

    def context(self, one: _Taken) -> int:
        """Tokens that one request may use, in whole steps below what was asked for."""
        if one.tokens >= self.target_tokens:
            return self.target_tokens
        return max(self.least_tokens, one.tokens // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS)

    def best(self, found: tuple[Budget, ...], choices: tuple[int, ...]) -> _Taken:
        """The first budget with the most sequences that reaches the context, or the nearest to fitting."""
        first = self.taken(found[0], choices[0])
        if self.fits(first, self.target_tokens):
            return first
        # Nothing holds more than the last budget with the fewest sequences: what it cannot do need not be tried.
        most = self.taken(found[-1], choices[-1])
        if not self.fits(most, 0):
            return first
        reach = self.context(most)
        for budget, sequences in itertools.product(found, choices):
            one = self.taken(budget, sequences)
            if self.fits(one, reach):
                return one
        return most


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
    correction: Correction | None = None,
) -> Fit | Refusal:
    """Fit a candidate on its fullest device, or say what is short by how much.

    ``device`` stands for all of the candidate's: it is the one with the least free memory. ``correction`` is what was
    measured beside a prediction (:mod:`selector.calibration`).
    """
    rule, pins = engine.memory, request.pins
    version, pinned = pins.engine_version or engine.version, pins.memory_utilization
    found = budgets(engine, device, parallel, eager=eager, version=version, pinned=pinned)
    if isinstance(found, Refusal):
        return found
    dtype = kv_dtype(engine, checkpoint_format, pins.kv_cache_dtype)
    mtp = bool(weights.mtp_layer) and (speculative or rule.loads_mtp)
    whole_vision = vision_heads_indivisible(arch, parallel)
    on_host = device.kind == "cpu"
    batch = batch_default(engine, device)
    # Requests that are not known to be short need at least this much; a wish replaces the floor.
    workload = request.workload.input_tokens + request.workload.output_tokens
    case = _Case(
        arch,
        engine,
        device,
        parallel,
        rank_stages(arch, weights, parallel, rule, mtp=mtp, whole_vision=whole_vision, on_host=on_host),
        batch,
        ELEMENT_BYTES[dtype],
        eager,
        pinned is not None,
        request.context_tokens or min(model_context_tokens, max(MINIMUM_CONTEXT_TOKENS, workload)),
        request.context_tokens or model_context_tokens,
        correction,
    )
    chosen = case.best(found, sequence_choices(request, default_sequences(batch, parallel), parallel.data))
    refusal = case.refusal(chosen)
    if refusal is not None:
        return refusal
    limits = Limits(
        context_tokens=case.context(chosen),
        max_sequences=chosen.sequences,
        kv_cache_dtype=dtype,
        memory_utilization=chosen.budget.utilization,
        batched_tokens=chosen.batched_tokens,
        speculative="mtp" if speculative else "off",
        eager=eager,
    )
    budget, needs, tokens = chosen.budget, chosen.needs, chosen.tokens
    memory = itemised(
        device,
        budget,
        needs,
        kv=tokens * needs.kv_bytes_per_token if rule.kind == "demand" else _room(budget, needs, chosen.before),
        before=chosen.before,
        whole_kv=kv_bytes_per_token(arch, element_bytes=case.element_bytes, mtp=mtp),
        tokens=tokens,
        host=0 if on_host else HOST_BYTES_PER_RANK * (parallel.ranks + 1),
        uncertainty=rule.relative_uncertainty,
        exact=weights.exact,
    )
    return Fit(limits, memory)


def _no_reserve(budget: Budget, rest: int, device: Device) -> Refusal:
    """A pinned static share that leaves too little beside it: the engine fills the share and then runs out."""
    return Refusal(
        "memory.reserve",
        f"a memory utilization of {budget.utilization:g} leaves {max(0, budget.rest or 0) / GIB:.1f} GiB beside the KV "
        f"cache, {rest / GIB:.1f} are needed there",
        {"needed_bytes": rest, "usable_bytes": max(0, budget.rest or 0), "total_bytes": device.total_bytes},
    )


def _short(budget: Budget, device: Device, needs: Needs, needed_tokens: int, before: int) -> Refusal:
    """What is missing, named by the first item that no longer fits."""
    weights, per_token = needs.weights, needs.kv_bytes_per_token
    beside = max(0, budget.pool - weights - _room(budget, needs, before))
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


def itemised(
    device: Device,
    budget: Budget,
    needs: Needs,
    *,
    kv: int,
    before: int,
    whole_kv: float,
    tokens: int,
    host: int,
    uncertainty: float,
    exact: bool,
) -> Memory:
    """The memory of a plan, by items: of the fullest stage, with ``kv`` bytes of cache there."""
    fixed = needs.weights + needs.beside_weights
    return Memory(
        per_device=PerDevice(
            total_bytes=device.total_bytes,
            usable_bytes=budget.pool + (budget.rest or 0) + (budget.outside or 0) + before,
            weights_bytes=needs.weights,
            kv_cache_bytes=kv,
            activations_bytes=needs.activations,
            graphs_bytes=needs.graphs,
            runtime_bytes=needs.runtime,
            reserve_bytes=device.total_bytes - fixed - kv,
        ),
        kv_bytes_per_token=int(whole_kv),
        kv_cache_tokens=int(tokens),
        host_bytes=host,
        low_bytes=int(fixed * (1 - uncertainty)),
        high_bytes=int(fixed * (1 + uncertainty)),
        basis="derived" if exact else "assumed",
    )
