"""What a reader has to know of a candidate beside its figures: what is tight, what waits, what is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from selector.asked import PlanRequest
from selector.contract import Limits, Memory, Note, Parallel, Speed
from selector.devices import GIB
from selector.hardware import HardwareReport
from selector.placement import Placement

if TYPE_CHECKING:
    from selector.ready import Ready


def of(
    one: Ready,
    request: PlanRequest,
    report: HardwareReport,
    placed: Placement,
    parallel: Parallel,
    limits: Limits,
    needs: Memory,
    speed: Speed,
) -> Iterator[Note]:
    """The notes that a candidate's figures give reason for."""
    yield from tight(needs, report)
    yield from queue(request, parallel, limits, needs)
    yield from assumed(placed, speed)
    if parallel.nodes > 1:
        from selector.crossing import crossing  # most replicas are on one node

        yield crossing(one, report, placed, parallel, limits, speed)


def set_aside(limits: Limits) -> tuple[str, ...]:
    """What lies in main memory beside devices, in words: ``("experts of 58 layers in main memory",)``."""
    if not limits.cpu_expert_layers:
        return ()
    experts = f"experts of {limits.cpu_expert_layers} layers in main memory"
    return (experts,) if limits.gpu_layers is None else (f"{limits.gpu_layers} layers on devices", experts)


def tight(needs: Memory, report: HardwareReport) -> Iterator[Note]:
    """Where the estimate leaves little room: on the device at its upper end, and in main memory."""
    device = needs.per_device
    if needs.high_bytes > device.usable_bytes:
        message = (
            f"the estimate's upper end is {needs.high_bytes / GIB:.1f} GiB without the KV cache, "
            f"{device.usable_bytes / GIB:.1f} are usable"
        )
        yield Note(severity="oom", code="tight", message=message)
    host = report.host.memory_total_bytes
    if host is not None and needs.host_bytes > host:
        message = f"about {needs.host_bytes / GIB:.0f} GiB of main memory are needed, {host / GIB:.1f} are here"
        yield Note(severity="oom", code="host_memory", message=message)


def queue(request: PlanRequest, parallel: Parallel, limits: Limits, needs: Memory) -> Iterator[Note]:
    """Requests at once are an offered load: those that the cache, or the limit of sequences, does not hold wait."""
    if request.concurrency is None:
        return
    tokens = request.workload.input_tokens + request.workload.output_tokens
    held = min(limits.max_sequences, needs.kv_cache_tokens // max(1, tokens)) * parallel.data
    if held < request.concurrency:
        yield Note(
            severity="performance",
            code="queue",
            message=f"{held:,} requests of {tokens:,} tokens run at once; of {request.concurrency:,} the others wait",
        )


def assumed(placed: Placement, speed: Speed) -> Iterator[Note]:
    """What the figures rest on that nobody told."""
    device = placed.weakest
    if not placed.free_known:
        what = "main memory" if device.index is None else "devices"
        message = f"how much of the {what} is free is not known: the plan takes it that nobody else uses them"
        yield Note(severity="info", code="free_memory_unknown", message=message)
    missing = (
        "memory bandwidth"
        if speed.decode_tokens_per_second is None
        else "arithmetic rate"
        if speed.throughput_tokens_per_second is None
        else None
    )
    if missing is not None:
        message = f"the {missing} of {device.name} is not known: what rests on it is not estimated"
        yield Note(severity="info", code="speed_unknown", message=message)
