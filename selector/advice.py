"""What would make a model fit, or fit better: the smallest changes first, then the nearest machines.

Every advice is a plan that was really made: a machine is only named when :func:`selector.search.decide` finds
the model feasible on it, a context only when it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from selector.contract import Advice
from selector.devices import GIB, MIB
from selector.facts import ModelFacts
from selector.hardware import Accelerator, HardwareReport
from selector.request import Pins, PlanRequest
from selector.search import LOWEST_QUALITY_UNASKED, Decision, Facts, decide
from selector.typed import typed

#: Machines that people have or rent, as ``--hardware`` takes them, for "the nearest machines".
REFERENCE_MACHINES = (
    "1xrtx4090",
    "1xh100",
    "1xrtx-pro-6000",
    "gb10",
    "m4-max-128gb",
    "2xh100",
    "1xb200",
    "m3-ultra-256gb",
    "4xh100",
    "4xa100-80gb",
    "4xrtx-pro-6000",
    "m3-ultra-512gb",
    "4xh200",
    "8xh100",
    "8xa100-80gb",
    "8xh200",
    "2x8xh100",
)
MACHINES_NAMED = 3
#: Of a checkpoint's files, what is loaded at least (an MTP layer may stay on the disk).
LEAST_SHARE_LOADED = 0.9
#: Devices of the largest usual node.
NODE_OF = 8
#: A Mac keeps this much memory for itself when the limit is raised by hand (assumed, of 64 GiB and more).
MAC_KEEPS_BYTES = 8 * GIB

Machines = Callable[[str], HardwareReport]

_LAYOUT = frozenset(
    {"tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel", "gpus", "gpu_count", "max_sequences"}
)
#: Pins that say which weights are wanted: giving those up is not advised, a machine for them is.
_WISHES = frozenset({"repo", "format", "quantization", "hub", "revision"})


def advise(
    model: ModelFacts,
    report: HardwareReport,
    request: PlanRequest,
    facts: Facts,
    decision: Decision,
    machines: Machines,
    machine: str | None = None,
) -> tuple[Advice, ...]:
    """Advice for a decision. ``machines`` turns a name of :data:`REFERENCE_MACHINES` into its report.

    ``machine`` is the ``--hardware`` that was asked about, ``None`` for this machine: commands repeat it.
    """
    if decision.ranked:
        return tuple(_wider_context(model, report, request, facts, decision, machine))
    unpinned = tuple(_fewer_pins(report, model, request, facts, machine))
    if unpinned:
        return unpinned  # the machine would do: what stands in the way is what was asked of it
    changes = (
        *_free_memory(report, model, request, facts),
        *_wired_limit(report, model, request, facts),
        *_smaller_request(report, model, request, facts, machine),
        *_lower_quality(report, model, request, facts, decision, machine),
    )
    return (*changes, *_nearest_machines(model, report, request, facts, machines))


def _fewer_pins(
    report: HardwareReport, model: ModelFacts, request: PlanRequest, facts: Facts, machine: str | None
) -> Iterator[Advice]:
    """The pin without which it fits; all of a layout's together where no single one is to blame."""
    given = [name for name in Pins.__struct_fields__ if getattr(request.pins, name) is not None]
    ways = [(name,) for name in given if name not in _WISHES]
    layout = tuple(name for name in given if name in _LAYOUT)
    for names in (*ways, *((layout,) if len(layout) > 1 else ())):
        pins = msgspec.structs.replace(request.pins, **dict.fromkeys(names))
        free = msgspec.structs.replace(request, pins=pins)
        found = _feasible(model, report, free, facts)
        if found is not None:
            best = found.ranked[0]
            pinned = " and ".join(name.replace("_", " ") for name in names)
            yield Advice(
                kind="engine",
                message=f"it fits when {pinned} is left free: {best.checkpoint.repo} ({best.checkpoint.quantization}) "
                f"with {best.engine.name}, context {best.limits.context_tokens:,}",
                numbers={"context_tokens": best.limits.context_tokens},
                command=typed(free, machine),
            )
            return


def _feasible(model: ModelFacts, report: HardwareReport, request: PlanRequest, facts: Facts) -> Decision | None:
    decision = decide(model, report, request, facts)
    return decision if decision.ranked else None


def _wider_context(
    model: ModelFacts,
    report: HardwareReport,
    request: PlanRequest,
    facts: Facts,
    decision: Decision,
    machine: str | None,
) -> Iterator[Advice]:
    """The chosen plan serves less than the model's context: what would give more."""
    chosen = decision.ranked[0]
    wanted = request.context_tokens or model.context_tokens
    if chosen.limits.context_tokens >= wanted:
        return
    yield from _wired_limit(report, model, request, facts, better_than=chosen.limits.context_tokens)
    if request.pins.kv_cache_dtype is not None:
        return
    pins = msgspec.structs.replace(_pinned_to(request, decision), kv_cache_dtype="fp8")
    wider = msgspec.structs.replace(request, pins=pins)
    with_fp8 = _feasible(model, report, wider, facts)
    if with_fp8 is not None and with_fp8.ranked[0].limits.context_tokens > chosen.limits.context_tokens:
        tokens = with_fp8.ranked[0].limits.context_tokens
        yield Advice(
            kind="kv_cache",
            message=f"a KV cache in fp8 would take the context from {chosen.limits.context_tokens:,} to {tokens:,} "
            "tokens; it lowers accuracy a little, so it is not chosen by itself",
            numbers={"context_tokens": tokens},
            command=typed(wider, machine),
        )


def _pinned_to(request: PlanRequest, decision: Decision) -> Pins:
    chosen = decision.ranked[0]
    return msgspec.structs.replace(
        request.pins,
        engine=chosen.engine.name,
        repo=chosen.checkpoint.repo,
        quantization=chosen.checkpoint.quantization,
        tensor_parallel=chosen.parallel.tensor,
        pipeline_parallel=chosen.parallel.pipeline,
        data_parallel=chosen.parallel.data,
    )


def _free_memory(report: HardwareReport, model: ModelFacts, request: PlanRequest, facts: Facts) -> Iterator[Advice]:
    """Devices that others fill, when the model would fit if they did not."""
    busy = [
        device
        for device in report.accelerators
        if device.memory_total_bytes and (device.memory_free_bytes or 0) < device.memory_total_bytes - GIB
    ]
    if not busy:
        return
    emptied = msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(device, memory_free_bytes=device.memory_total_bytes)
            for device in report.accelerators
        ),
    )
    if _feasible(model, emptied, request, facts) is None:
        return
    names = "; ".join(_taken(device) for device in busy)
    yield Advice(
        kind="free_gpu",
        message=f"it would fit if others freed what they hold ({names})",
        numbers={"devices": len(busy)},
    )


def _taken(device: Accelerator) -> str:
    taken = (device.memory_total_bytes or 0) - (device.memory_free_bytes or 0)
    holders = ", ".join(f"{each.name or 'process'} ({each.pid})" for each in device.processes)
    return f"device {device.index}: {taken / GIB:.1f} GiB" + (f" by {holders}" if holders else "")


def _wired_limit(
    report: HardwareReport, model: ModelFacts, request: PlanRequest, facts: Facts, better_than: int | None = None
) -> Iterator[Advice]:
    """The exact ``sysctl`` on a Mac, when raising the GPU's share of memory is what is missing."""
    for device in report.accelerators:
        if device.metal is None or device.memory_total_bytes is None:
            continue
        limit = max(0, device.memory_total_bytes - MAC_KEEPS_BYTES)
        raised = msgspec.structs.replace(
            report,
            accelerators=tuple(
                msgspec.structs.replace(
                    each,
                    memory_free_bytes=each.memory_total_bytes,
                    metal=None if each.metal is None else msgspec.structs.replace(each.metal, wired_limit_bytes=limit),
                )
                for each in report.accelerators
            ),
        )
        decision = _feasible(model, raised, request, facts)
        if decision is None:
            return
        best = decision.ranked[0]
        if better_than is not None and best.limits.context_tokens <= better_than:
            return
        megabytes = limit // MIB
        gain = (
            f"{best.checkpoint.repo} ({best.checkpoint.quantization}) fits"
            if better_than is None
            else f"the context grows from {better_than:,} to {best.limits.context_tokens:,} tokens"
        )
        yield Advice(
            kind="sysctl",
            message=f"let the GPU use {limit / GIB:.0f} of {device.memory_total_bytes / GIB:.0f} GiB (until the next "
            f"restart) and {gain}",
            numbers={"limit_bytes": limit, "context_tokens": best.limits.context_tokens},
            command=f"sudo sysctl iogpu.wired_limit_mb={megabytes}",
        )
        return


def _smaller_request(
    report: HardwareReport, model: ModelFacts, request: PlanRequest, facts: Facts, machine: str | None
) -> Iterator[Advice]:
    """A shorter context, fewer requests at once, or an fp8 KV cache, when more was asked for than fits."""
    shorter = msgspec.structs.replace(request, context_tokens=None)
    free = None if request.context_tokens is None else _feasible(model, report, shorter, facts)
    if free is not None and request.context_tokens is not None:
        tokens = max(candidate.limits.context_tokens for candidate in free.ranked)
        if tokens < request.context_tokens:
            yield Advice(
                kind="context",
                message=f"with a context of {tokens:,} tokens instead of {request.context_tokens:,} it fits",
                numbers={"context_tokens": tokens},
                command=typed(msgspec.structs.replace(request, context_tokens=tokens), machine),
            )
    fewer = msgspec.structs.replace(request, concurrency=None)
    free = None if request.concurrency is None else _feasible(model, report, fewer, facts)
    if free is not None and request.concurrency is not None:
        count = max(candidate.speed.concurrency for candidate in free.ranked)
        if count < request.concurrency:
            yield Advice(
                kind="context",
                message=f"{count:,} requests of that length fit at once, {request.concurrency:,} do not",
                numbers={"concurrency": count},
                command=typed(msgspec.structs.replace(request, concurrency=count), machine),
            )
    if request.pins.kv_cache_dtype is None:
        pins = msgspec.structs.replace(request.pins, kv_cache_dtype="fp8")
        with_fp8 = msgspec.structs.replace(request, pins=pins)
        if _feasible(model, report, with_fp8, facts) is not None:
            yield Advice(
                kind="kv_cache",
                message="with a KV cache in fp8 it fits; that lowers accuracy a little",
                command=typed(with_fp8, machine),
            )


def _lower_quality(
    report: HardwareReport,
    model: ModelFacts,
    request: PlanRequest,
    facts: Facts,
    decision: Decision,
    machine: str | None,
) -> Iterator[Advice]:
    """The best of the quantizations that are not chosen unasked, when it fits."""
    if not any(each.code == "quality.floor" for each in decision.rejected):
        return
    below = [each for each in model.checkpoints if each.quality < LOWEST_QUALITY_UNASKED]
    for checkpoint in sorted(below, key=lambda each: -each.quality):
        pins = msgspec.structs.replace(request.pins, quantization=checkpoint.quantization)
        lower = msgspec.structs.replace(request, pins=pins)
        found = _feasible(model, report, lower, facts)
        if found is not None:
            best = found.ranked[0]
            yield Advice(
                kind="engine",
                message=f"{best.checkpoint.repo} at {checkpoint.quantization} fits, with {best.engine.name}; it keeps "
                f"about {checkpoint.quality:.0%} of the original's quality, so it is not chosen by itself",
                numbers={"quality": checkpoint.quality, "context_tokens": best.limits.context_tokens},
                command=typed(lower, machine),
            )
            return


def _nearest_machines(
    model: ModelFacts, report: HardwareReport, request: PlanRequest, facts: Facts, machines: Machines
) -> Iterator[Advice]:
    """The smallest reference machines that serve the request, with what would run there."""
    free = msgspec.structs.replace(
        request,
        pins=msgspec.structs.replace(
            request.pins,
            gpus=None,
            gpu_count=None,
            tensor_parallel=None,
            pipeline_parallel=None,
            data_parallel=None,
            memory_utilization=None,
        ),
    )
    allowed = [each.download_bytes for each in model.checkpoints if each.quality >= LOWEST_QUALITY_UNASKED]
    least = 0 if request.pins.quantization or request.pins.repo else min(allowed, default=0) * LEAST_SHARE_LOADED
    named = 0
    for name in dict.fromkeys((*_more_of_the_same(report, facts), *REFERENCE_MACHINES)):
        machine = machines(name)
        if _total_bytes(machine) < least:
            continue
        decision = _feasible(model, machine, free, facts)
        if decision is None:
            continue
        best = decision.ranked[0]
        yield Advice(
            kind="hardware",
            message=f"{name}: {best.checkpoint.repo} ({best.checkpoint.quantization}) on {best.engine.name}, "
            f"context {best.limits.context_tokens:,}",
            numbers={"context_tokens": best.limits.context_tokens},
            command=f"autolaunch plan {model.id} --hardware {name}",
        )
        named += 1
        if named == MACHINES_NAMED:
            return


def _total_bytes(report: HardwareReport) -> int:
    """All memory of a machine, to pass over those that cannot hold the smallest file at a glance."""
    return sum(each.memory_total_bytes or 0 for each in report.accelerators) or report.host.memory_total_bytes or 0


def _more_of_the_same(report: HardwareReport, facts: Facts) -> Iterator[str]:
    """The devices that are here, doubled up to a node of eight: the upgrade nearest at hand."""
    known = {found.id for device in report.accelerators if (found := facts.accelerator_for(device)) is not None}
    if len(known) != 1 or report.nodes > 1 or any(each.memory_kind == "unified" for each in report.accelerators):
        return
    count = 1
    while count < NODE_OF:
        count *= 2
        if count > len(report.accelerators):
            yield f"{count}x{min(known)}"
