"""Memory and speed of a layout on a kind of device: worked out once, whatever else is planned."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from selector import memory, throughput
from selector.asked import PlanRequest
from selector.contract import Parallel, Speed
from selector.devices import Alike, Way
from selector.legality import Refusal
from selector.ready import Ready

if TYPE_CHECKING:
    from selector.aside import Aside
    from selector.calibration import Correction
    from selector.interconnect import Wire


class Weighed(NamedTuple):
    """What a layout needs and gives."""

    fit: memory.Fit
    speed: Speed


@lru_cache(maxsize=1 << 13)  # pure, and the same for every device of a kind that has as much memory free
def weighed(
    one: Ready,
    device: Alike,
    link: Way,
    parallel: Parallel,
    speculative: bool,
    speed_factor: float,
    request: PlanRequest,
    wire: Wire | None = None,
    correction: Correction | None = None,
) -> Weighed | Refusal:
    """Memory and speed of a layout whose fullest device is like this one. ``correction`` is of its memory alone."""
    fit = memory.fit(
        arch=one.model.architecture,
        model_context_tokens=one.model.context_tokens,
        weights=one.weights,
        checkpoint_format=one.checkpoint.format,
        engine=one.engine,
        device=device.device,
        parallel=parallel,
        speculative=speculative,
        eager=bool(request.pins.eager),
        request=request,
        correction=correction,
    )
    if isinstance(fit, Refusal):
        return fit
    return Weighed(fit, speed_of(one, device, link, parallel, fit, request, speed_factor=speed_factor, wire=wire))


def speed_of(
    one: Ready,
    device: Alike,
    link: Way,
    parallel: Parallel,
    fit: memory.Fit,
    request: PlanRequest,
    *,
    speed_factor: float = 1.0,
    aside: Aside | None = None,
    wire: Wire | None = None,
) -> Speed:
    """The speed of a layout that fits so; the last three as in :func:`selector.throughput.estimate`."""
    return throughput.estimate(
        arch=one.model.architecture,
        weights=one.weights,
        engine=one.engine,
        loads=one.loads,
        link=link,
        device=device.device,
        parallel=parallel,
        limits=fit.limits,
        kv_bytes_per_token=fit.memory.kv_bytes_per_token,
        kv_cache_tokens=fit.memory.kv_cache_tokens,
        workload=request.workload,
        concurrency=request.concurrency,
        download_bytes=one.checkpoint.download_bytes,
        speed_factor=speed_factor,
        aside=aside,
        wire=wire,
    )


def forget() -> None:
    """Drop what was worked out."""
    weighed.cache_clear()
