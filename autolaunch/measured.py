"""What was measured, and the plan's figures beside it: the same list for a status, a rehearsal and a benchmark."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from autolaunch.comparison import Comparison
from selector.measured import Measured, Source

if TYPE_CHECKING:
    from engines.logs import Figures
    from selector.contract import Candidate

__all__ = ["Measured", "Source", "comparisons", "of_start"]

_Unit = Literal["bytes", "tokens", "tokens/s", "seconds"]


def of_start(
    figures: Figures,
    *,
    resident_bytes: int | None = None,
    load_seconds: float | None = None,
    at: float | None = None,
) -> Measured:
    """What a start showed.

    Args:
        figures: what the engine said of itself.
        resident_bytes: what its processes hold (:meth:`autolaunch.server.Server.memory_bytes`).
        load_seconds: from the start of the process to the first token.
        at: seconds since the epoch; ``None`` is now.
    """
    return Measured(
        source="start",
        at=time.time() if at is None else at,
        weights_bytes=figures.weights_bytes,
        kv_cache_tokens=figures.kv_cache_tokens,
        kv_cache_bytes=figures.kv_cache_bytes,
        graphs_bytes=figures.graphs_bytes,
        activations_bytes=figures.activations_bytes,
        resident_bytes=resident_bytes,
        load_seconds=load_seconds,
    )


def comparisons(candidate: Candidate, measured: Measured) -> tuple[Comparison, ...]:
    """The figures of ``candidate`` that were measured as well, the prediction beside each.

    Bytes are the fullest device's; what is not known of either is left out, and so is a throughput at another
    concurrency than the plan's. ``in use`` is everything that was taken when the first token had come: an engine that
    tells the size of its KV cache has taken it all by then, the others take it as it is needed.
    """
    memory, speed, device = candidate.memory, candidate.speed, candidate.memory.per_device
    fixed = device.weights_bytes + device.activations_bytes + device.graphs_bytes + device.runtime_bytes
    taken = device.kv_cache_bytes if measured.kv_cache_tokens is not None else 0
    in_use = "in use on a device" if candidate.parallel.devices else "main memory in use"
    together = measured.concurrency == speed.concurrency
    throughput = measured.throughput_tokens_per_second if together else None
    rows: tuple[tuple[str, _Unit, float | None, float | None], ...] = (
        ("weights a device", "bytes", device.weights_bytes, measured.weights_bytes),
        ("activations", "bytes", device.activations_bytes, measured.activations_bytes),
        ("graphs", "bytes", device.graphs_bytes, measured.graphs_bytes),
        ("KV cache a device", "bytes", device.kv_cache_bytes, measured.kv_cache_bytes),
        ("KV cache", "tokens", memory.kv_cache_tokens, measured.kv_cache_tokens),
        (in_use, "bytes", fixed + taken, measured.resident_bytes),
        ("load", "seconds", speed.load_seconds, measured.load_seconds),
        ("one request", "tokens/s", speed.decode_tokens_per_second, measured.decode_tokens_per_second),
        (f"{speed.concurrency} requests", "tokens/s", speed.throughput_tokens_per_second, throughput),
        ("first token", "seconds", speed.time_to_first_token_seconds, measured.time_to_first_token_seconds),
        ("prompt", "tokens/s", speed.prefill_tokens_per_second, measured.prefill_tokens_per_second),
    )
    return tuple(
        Comparison(name=name, unit=unit, predicted=predicted, measured=seen)
        for name, unit, predicted, seen in rows
        if predicted is not None and seen is not None
    )
