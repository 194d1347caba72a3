"""What a configuration showed when it ran: figures that an engine, its processes or its requests gave."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from selector.contract import Candidate, Limits, Parallel
from selector.facts import EngineName
from selector.request import KvDtype
from selector.values import Value

#: Where figures are from: an engine's start, requests that were served, a benchmark, another host's file.
Source = Literal["start", "served", "bench", "imported"]

Bytes = Annotated[int, Meta(ge=0, le=2**53)]
Tokens = Annotated[int, Meta(ge=0, le=2**53)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Rate = Annotated[float, Meta(gt=0, le=1e12)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
#: Seconds since the epoch; the bound is some thousand years away.
At = Annotated[float, Meta(ge=0, le=1e11)]


class Measured(Value, frozen=True, kw_only=True):
    """What one start, or a stretch of service, showed. ``None`` is not known.

    Bytes are of the fullest device (of main memory, where there is none): ``weights_bytes``, ``kv_cache_bytes``,
    ``graphs_bytes`` and ``activations_bytes`` as the engine told them, ``resident_bytes`` what its processes held when
    the first token had come. ``kv_cache_tokens`` are of one replica.

    ``load_seconds`` is from the start of the process to the first token. ``decode_tokens_per_second`` is of one
    sequence alone, ``throughput_tokens_per_second`` the output of all, over every replica, with ``concurrency``
    requests under way; ``time_to_first_token_seconds`` and ``prefill_tokens_per_second`` are of one prompt alone.
    ``input_tokens`` and ``output_tokens`` are the mean of the requests that speeds were taken from.

    ``at`` is when, in seconds since the epoch; ``samples`` how many starts, requests or stretches a figure rests on.
    """

    source: Source
    at: At
    samples: Count = 1
    weights_bytes: Bytes | None = None
    kv_cache_tokens: Tokens | None = None
    kv_cache_bytes: Bytes | None = None
    graphs_bytes: Bytes | None = None
    activations_bytes: Bytes | None = None
    resident_bytes: Bytes | None = None
    load_seconds: Seconds | None = None
    decode_tokens_per_second: Rate | None = None
    throughput_tokens_per_second: Rate | None = None
    prefill_tokens_per_second: Rate | None = None
    time_to_first_token_seconds: Seconds | None = None
    concurrency: Count | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class Configuration(Value, frozen=True, kw_only=True):
    """A layout, on so many ``devices``, and its limits (:class:`selector.contract.Limits`)."""

    tensor: int
    pipeline: int
    data: int
    expert: bool
    nodes: int
    devices: int
    context_tokens: int
    max_sequences: int
    kv_cache_dtype: KvDtype
    memory_utilization: float
    speculative: str
    eager: bool
    gpu_layers: int | None = None
    cpu_expert_layers: int = 0
    device_layers: tuple[int, ...] = ()


class Calibration(Value, frozen=True, kw_only=True, cache_hash=True):
    """What one configuration of one checkpoint on one engine showed on devices of one kind, all sources together.

    ``device`` and ``device_bytes`` are the name and the memory of the kind, of main memory where there is no device.
    ``own`` is false of what another host measured.
    """

    device: str
    device_bytes: int
    engine: EngineName
    version: str
    package: str
    repo: str
    quantization: str
    file_prefix: str | None = None
    revision: str | None = None
    configuration: Configuration
    measured: Measured
    own: bool = True


_LIMITS = frozenset(Configuration.__struct_fields__) & frozenset(Limits.__struct_fields__)


def configuration(parallel: Parallel, limits: Limits) -> Configuration:
    """How a layout runs with these limits, whichever devices of a kind it runs on."""
    return Configuration(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        expert=parallel.expert,
        nodes=parallel.nodes,
        devices=len(parallel.devices),
        **{name: getattr(limits, name) for name in _LIMITS},
    )


def configuration_of(candidate: Candidate) -> Configuration:
    """What of a candidate says how it runs."""
    return configuration(candidate.parallel, candidate.limits)
