"""What a candidate holds of everything that can be pinned, by the pin's name."""

from __future__ import annotations

from selector.contract import Candidate


def held(each: Candidate) -> dict[str, object]:
    """All but the devices, which are pinned by number or by count."""
    return {
        "engine": each.engine.name,
        "engine_version": each.engine.version,
        "repo": each.checkpoint.repo,
        "format": each.checkpoint.format,
        "quantization": each.checkpoint.quantization.lower(),
        "hub": each.checkpoint.hub,
        "tensor_parallel": each.parallel.tensor,
        "pipeline_parallel": each.parallel.pipeline,
        "data_parallel": each.parallel.data,
        "expert_parallel": each.parallel.expert,
        "kv_cache_dtype": each.limits.kv_cache_dtype,
        "memory_utilization": each.limits.memory_utilization,
        "max_sequences": each.limits.max_sequences,
        "speculative": each.limits.speculative,
        "eager": each.limits.eager,
    }
