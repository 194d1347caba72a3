"""What would make a model fit that does not: the smallest change of the request, or of the machine that is here."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from selector.case import WEIGHTS, Case, figures, given, share, title
from selector.contract import Advice
from selector.devices import GIB, MIB
from selector.hardware import Accelerator, HardwareReport
from selector.main_memory import HOST_SHARE
from selector.search import LOWEST_QUALITY_UNASKED, Decision

#: A Mac keeps this much memory for itself when the limit is raised by hand (assumed, of 64 GiB and more).
MAC_KEEPS_BYTES = 8 * GIB

#: Sizes of main memory that machines are built with.
MAIN_MEMORY_GIB = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

_LAYOUT = frozenset(
    {"tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel", "gpus", "gpu_count", "max_sequences"}
)

#: What a launch over nodes is held to, whoever pinned it (:mod:`autolaunch.on_nodes`).
_OVER_NODES = frozenset({"engine", "engine_version", "data_parallel"})

#: A version is of an engine: without the one the other says nothing.
_WITH = {"engine": ("engine", "engine_version")}


def fewer_pins(case: Case) -> Iterator[Advice]:
    """The pin without which it fits; all of a layout's together where no single one is to blame.

    Pins on the weights are not among them: :func:`other_weights` and a larger machine are for those.
    """
    names = given(case.request.pins)
    if case.request.nodes is not None:
        names = [name for name in names if name not in _OVER_NODES]
    layout = tuple(name for name in names if name in _LAYOUT)
    ways = [_WITH.get(name, (name,)) for name in names if name not in WEIGHTS]
    for dropped in (*ways, *((layout,) if len(layout) > 1 else ())):
        free = case.pinned(**dict.fromkeys(dropped))
        found = case.decided(request=free)
        if found is not None:
            best = found.ranked[0]
            freed = [name.replace("_", " ") for name in dropped if name in names]
            pinned = f"{' and '.join(freed)} {'is' if len(freed) == 1 else 'are'}"
            message = f"it fits when {pinned} left free: {title(best)}, context {best.limits.context_tokens:,}"
            yield case.advice("engine", message, best, free)
            return


def other_weights(case: Case) -> Iterator[Advice]:
    """The best of the other weights, where those that were asked for do not fit."""
    names = [name for name in given(case.request.pins) if name in WEIGHTS]
    if not names:
        return
    free = case.pinned(**dict.fromkeys(names))
    found = case.decided(request=free)
    if found is not None:
        best = found.ranked[0]
        message = (
            f"{title(best)} fits, context {best.limits.context_tokens:,}; it keeps about "
            f"{share(case.quality(best))} of the original's quality"
        )
        yield case.advice("engine", message, best, free)


def lower_quality(case: Case, decision: Decision) -> Iterator[Advice]:
    """The best of the quantizations that are not chosen unasked, when it fits."""
    if not any(each.code == "quality.floor" for each in decision.rejected):
        return
    below = [each for each in case.model.checkpoints if each.quality < LOWEST_QUALITY_UNASKED]
    for checkpoint in sorted(below, key=lambda each: -each.quality):
        lower = case.pinned(quantization=checkpoint.quantization)
        found = case.decided(request=lower)
        if found is not None:
            best = found.ranked[0]
            message = (
                f"{title(best)} fits; it keeps about {share(checkpoint.quality)} of the original's quality, so it is "
                "not chosen by itself"
            )
            advice = case.advice("engine", message, best, lower)
            yield msgspec.structs.replace(advice, numbers={"quality": checkpoint.quality, **advice.numbers})
            return


def smaller_request(case: Case) -> Iterator[Advice]:
    """A shorter context, or an fp8 KV cache, when more was asked for than fits."""
    asked = case.request.context_tokens
    if asked is not None:
        free = case.decided(request=msgspec.structs.replace(case.request, context_tokens=None))
        longest = 0 if free is None else max(each.limits.context_tokens for each in free.ranked)
        workload = case.request.workload
        if workload.input_tokens + workload.output_tokens <= longest < asked:
            shorter = msgspec.structs.replace(case.request, context_tokens=longest)
            found = case.decided(request=shorter)
            if found is not None:
                message = f"with a context of {longest:,} tokens instead of {asked:,} it fits: {title(found.ranked[0])}"
                yield case.advice("context", message, found.ranked[0], shorter)
    if case.request.pins.kv_cache_dtype is None:
        eight_bits = case.pinned(kv_cache_dtype="fp8")
        found = case.decided(request=eight_bits)
        if found is not None:
            message = "with a KV cache in fp8 it fits; that lowers accuracy a little"
            yield case.advice("kv_cache", message, found.ranked[0], eight_bits)


def more_main_memory(case: Case, decision: Decision) -> Iterator[Advice]:
    """The next size of main memory, where no more of it beside the devices is what is missing."""
    needed = [each.numbers["needed_bytes"] for each in decision.rejected if each.code == "memory.host"]
    most = min(needed, default=0) / HOST_SHARE
    size = next((gib for gib in MAIN_MEMORY_GIB if gib * GIB > most), None)
    if not needed or size is None:
        return
    host = msgspec.structs.replace(case.report.host, memory_total_bytes=size * GIB, memory_available_bytes=size * GIB)
    found = case.decided(report=msgspec.structs.replace(case.report, host=host))
    if found is not None:
        best = found.ranked[0]
        message = f"with {size} GB of main memory it fits: {title(best)}, context {best.limits.context_tokens:,}"
        yield Advice(kind="hardware", message=message, numbers={"host_bytes": size * GIB, **figures(best)})


# --- the machine ------------------------------------------------------------------------------------


def free_memory(case: Case, better_than: int | None = None) -> Iterator[Advice]:
    """The fewest devices that others fill without which it would fit (or with more context than ``better_than``)."""
    busy = [
        device
        for device in case.report.accelerators
        if device.memory_total_bytes and (device.memory_free_bytes or 0) < device.memory_total_bytes - GIB
    ]
    most_taken = sorted(busy, key=lambda device: -_taken_bytes(device))
    for count in range(1, len(most_taken) + 1):
        freed = most_taken[:count]
        found = case.decided(report=_emptied(case.report, {device.index for device in freed}))
        if found is None:
            continue
        best = found.ranked[0]
        if better_than is not None and best.limits.context_tokens <= better_than:
            continue
        names = _held(case.report, sorted(freed, key=lambda device: device.index))
        gain = "it would fit" if better_than is None else _grows(better_than, best.limits.context_tokens)
        numbers = {"devices": len(freed), **figures(best)}
        yield Advice(kind="free_gpu", message=f"{gain} if others freed what they hold ({names})", numbers=numbers)
        return


def _grows(old: int, new: int) -> str:
    return f"the context would grow from {old:,} to {new:,} tokens"


def _emptied(report: HardwareReport, indices: set[int]) -> HardwareReport:
    return msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(device, memory_free_bytes=device.memory_total_bytes)
            if device.index in indices
            else device
            for device in report.accelerators
        ),
    )


def _taken_bytes(device: Accelerator) -> int:
    return (device.memory_total_bytes or 0) - (device.memory_free_bytes or 0)


def _held(report: HardwareReport, devices: list[Accelerator]) -> str:
    if report.nodes == 1:
        return "; ".join(f"device {device.index}: {_taken(device)}" for device in devices)
    from selector.nodes import held  # most reports are of one machine

    return held(report, devices, _taken)


def _taken(device: Accelerator) -> str:
    holders = ", ".join(f"{each.name or 'process'} ({each.pid})" for each in device.processes)
    return f"{_taken_bytes(device) / GIB:.1f} GiB" + (f" by {holders}" if holders else "")


def wired_limit(case: Case, better_than: int | None = None) -> Iterator[Advice]:
    """The exact ``sysctl`` on a Mac, when raising the GPU's share of memory is what is missing."""
    device = next((each for each in case.report.accelerators if each.metal is not None), None)
    if device is None or device.memory_total_bytes is None:
        return
    limit = max(0, device.memory_total_bytes - MAC_KEEPS_BYTES)
    found = case.decided(report=with_wired_limit(case.report, limit))
    if found is None:
        return
    best = found.ranked[0]
    if better_than is not None and best.limits.context_tokens <= better_than:
        return
    gain = (
        f"{best.checkpoint.repo} ({best.checkpoint.quantization}) fits"
        if better_than is None
        else f"the context grows from {better_than:,} to {best.limits.context_tokens:,} tokens"
    )
    yield Advice(
        kind="sysctl",
        message=f"let the GPU use {limit / GIB:.0f} of {device.memory_total_bytes / GIB:.0f} GiB (until the next "
        f"restart) and {gain}",
        numbers={"limit_bytes": limit, **figures(best)},
        command=f"sudo sysctl iogpu.wired_limit_mb={limit // MIB}",
    )


def with_wired_limit(report: HardwareReport, limit_bytes: int) -> HardwareReport:
    """The report of a Mac whose GPU may use ``limit_bytes`` and has nothing in them yet."""
    return msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(
                each,
                memory_free_bytes=each.memory_total_bytes,
                metal=None
                if each.metal is None
                else msgspec.structs.replace(each.metal, wired_limit_bytes=limit_bytes),
            )
            for each in report.accelerators
        ),
    )
