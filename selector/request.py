"""What a person wants: the objective, the workload, and what is pinned."""

from __future__ import annotations

from typing import Literal, get_args

from selector.facts import EngineName, Format, Hub
from selector.values import Value

Objective = Literal["balanced", "latency", "throughput", "context", "quality"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
KvDtype = Literal["bf16", "fp8", "fp32"]
WorkloadName = Literal["chat", "agent", "long-context", "batch"]


class Workload(Value, frozen=True, kw_only=True):
    """The mean request, in tokens, and how many run at once (``None``: as many as the plan allows)."""

    input_tokens: int
    output_tokens: int
    concurrency: int | None = None


#: Names for figures. They only fill in what was not asked for; assumed, not measured.
WORKLOADS: dict[WorkloadName, Workload] = {
    "chat": Workload(input_tokens=1_000, output_tokens=500),
    "agent": Workload(input_tokens=8_000, output_tokens=800),
    "long-context": Workload(input_tokens=60_000, output_tokens=1_000),
    "batch": Workload(input_tokens=1_000, output_tokens=500, concurrency=256),
}


class Pins(Value, frozen=True, kw_only=True, cache_hash=True):
    """What the user fixed. A pin narrows the list and is never overridden; ``None`` is free.

    ``gpus`` holds device indices of the report, and is empty for the host's processor alone; ``gpu_count`` asks for
    that many of any.
    """

    engine: EngineName | None = None
    engine_version: str | None = None
    repo: str | None = None
    format: Format | None = None
    quantization: str | None = None
    hub: Hub | None = None
    revision: str | None = None
    gpus: tuple[int, ...] | None = None
    gpu_count: int | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    expert_parallel: bool | None = None
    kv_cache_dtype: KvDtype | None = None
    memory_utilization: float | None = None
    max_sequences: int | None = None
    speculative: Literal["mtp", "off"] | None = None
    eager: bool | None = None
