"""What an engine takes of a device: the pool for weights and KV cache, by its own rule.

``utilization`` (vLLM's ``gpu_worker.determine_available_memory``): ``utilization x CUDA's total`` for everything.
From 0.21.0 its profile counts CUDA graphs, before they lie outside of the share
(https://github.com/vllm-project/vllm/pull/30515). The engine refuses to start when less is free than its share.

``static_fraction`` (SGLang's ``server_args`` and ``profile_max_num_token``): of what is free before the weights are
loaded, a fraction for weights and KV cache. The fraction is computed from the driver's total and a reserve, MiB::

    512 + 1.5 max(chunked prefill, 2048) + 1024 TP PP / 8 + 2 (largest graph batch), at least 10240 above 60 GiB

and lowered where what runs beside it needs more. For a model with a vision tower SGLang takes a tenth or more off it,
by a guess at the tower's size (``adjust_mem_fraction_for_vlm``); the fraction is passed to it, and the tower's peak
counted, so that no guess is needed.

``demand``: everything that is free, in Metal's wired limit, in main memory or on a card (less llama.cpp's margin of
1024 MiB a device, which ``--fit-target`` keeps).
"""

from __future__ import annotations

from typing import NamedTuple

from selector.contract import Parallel
from selector.devices import GIB, MIB, Device
from selector.engine_facts import BatchDefault, EngineFacts
from selector.legality import Refusal
from selector.versions import version_key

#: Kept free beside other processes' memory, so that the engine's own check of free memory passes.
FREE_MARGIN_BYTES = 512 * MIB
#: What a driver's own context takes before an engine asks what is free (assumed of CUDA and ROCm).
CONTEXT_BYTES = 512 * MIB


class Budget(NamedTuple):
    """``pool`` bytes for weights and KV cache.

    ``rest`` bytes are set apart for everything else; where it is ``None`` the pool has to hold that too, and
    ``outside`` bytes beyond the pool can take CUDA graphs that the engine does not count (``None``: it counts them).
    """

    utilization: float
    pool: int
    rest: int | None = None
    outside: int | None = None


def batch_default(engine: EngineFacts, device: Device) -> BatchDefault:
    """The engine's own batch on a device like this."""
    for default in engine.batch_defaults:
        if device.total_bytes >= default.minimum_device_bytes and not any(
            word in device.name for word in default.not_on
        ):
            return default
    return engine.batch_defaults[-1]


def default_sequences(batch: BatchDefault, parallel: Parallel) -> int:
    """Sequences at once by default: fewer below tensor parallel 4, where the engine makes that difference."""
    if batch.narrow_sequences is not None and parallel.tensor < 4:
        return batch.narrow_sequences
    return batch.sequences


def _static_fraction(batch: BatchDefault, device: Device, parallel: Parallel, *, eager: bool) -> float:
    """SGLang's own ``mem_fraction_static`` for a text model on this device.

    For a vision tower SGLang takes less, by a guess at the tower's size; here the tower's own peak is counted
    (:mod:`selector.needs`) and the share lowered where that does not fit beside it.
    """
    reserve = 512 + 1.5 * max(batch.batched_tokens, 2048) + 1024 * parallel.ranks / 8
    reserve += 0 if eager else 2 * default_sequences(batch, parallel)
    if device.total_bytes > 60 * GIB:
        reserve = max(reserve, 10 * 1024)
    return max(0.0, round(1 - reserve * MIB / device.total_bytes, 3))


def _static(engine: EngineFacts, device: Device, parallel: Parallel, *, eager: bool, pinned: float | None) -> Budget:
    collectives = engine.memory.collective_bytes if parallel.ranks > 1 else 0
    found = max(0, min(device.allocatable_bytes, device.free_bytes) - CONTEXT_BYTES - collectives)
    utilization = pinned
    if utilization is None:
        fraction = _static_fraction(batch_default(engine, device), device, parallel, eager=eager)
        utilization = int(1000 * fraction + 1e-6) / 1000
    pool = int(utilization * found)
    return Budget(utilization, pool, found - pool)


def relaxed(budget: Budget, needed: int) -> Budget:
    """A static share lowered until ``needed`` bytes fit beside it."""
    if budget.rest is None or needed <= budget.rest:
        return budget
    found = budget.pool + budget.rest
    utilization = max(0, int(1000 * (found - needed) / max(found, 1))) / 1000
    pool = int(utilization * found)
    return Budget(utilization, pool, found - pool)


def budgets(
    engine: EngineFacts,
    device: Device,
    parallel: Parallel,
    *,
    eager: bool,
    version: str,
    pinned: float | None,
) -> tuple[Budget, ...] | Refusal:
    """The engine's budget on the device, at its default and, where that is too little, at its most."""
    rule = engine.memory
    free, counted = device.free_bytes, device.counted_bytes
    if device.total_bytes <= 0 or counted <= 0:
        return Refusal("device.unknown_memory", f"how much memory {device.name} has is unknown", {})
    if rule.kind == "static_fraction":
        return (_static(engine, device, parallel, eager=eager, pinned=pinned),)
    if free < device.allocatable_bytes and rule.kind != "demand":
        free = max(0, free - FREE_MARGIN_BYTES)
    most = free if rule.kind == "demand" else min(free, device.allocatable_bytes - CONTEXT_BYTES)
    if pinned is not None and int(pinned * counted) > most:
        return Refusal(
            "memory.free",
            f"a memory utilization of {pinned:g} is {pinned * counted / GIB:.1f} GiB a GPU; "
            f"{max(0, most) / GIB:.1f} can be had",
            {"needed_bytes": int(pinned * counted), "usable_bytes": max(0, most)},
        )
    earlier = rule.earlier_before is not None and version_key(version) < version_key(rule.earlier_before)
    found = []
    for wanted in (rule.earlier_utilizations if earlier else rule.utilizations) if pinned is None else (pinned,):
        pool, utilization = int(wanted * counted), wanted
        if pool > free:
            # The engine refuses to start when less is free than it was told to take: ask for what is there.
            utilization = int(100 * free / counted) / 100
            pool = free if rule.kind == "demand" else int(utilization * counted)
        found.append(Budget(utilization, pool, None, max(0, most - pool) if earlier else None))
    return tuple(found)
