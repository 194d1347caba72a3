"""A whole configuration as pins: what has to be fixed so that a plan comes to this very candidate again."""

from __future__ import annotations

from selector.contract import Candidate
from selector.hardware import HardwareReport
from selector.request import Pins
from selector.search import Facts


def pins_of(candidate: Candidate, report: HardwareReport, known: Facts | None = None) -> Pins:
    """Everything of ``candidate`` that its engine lets a user pin.

    A plan of ``report`` with these pins and with ``candidate.limits.context_tokens`` asked for has the candidate's
    layout and limits. What lies in main memory beside devices no pin carries: it follows from the rest.

    Args:
        report: the machine that the candidate is of. Where it has devices and the candidate uses none, none is pinned.
        known: the catalogue; ``None`` reads the shipped one and the user's.
    """
    if known is None:
        from autolaunch.api import catalog  # which imports what imports this

        known = catalog()
    parallel, limits, checkpoint = candidate.parallel, candidate.limits, candidate.checkpoint
    kinds = {each.vendor for each in report.accelerators if each.index in parallel.devices}
    can = known.engine(candidate.engine.name).on(next(iter(kinds), "cpu")).choices
    return Pins(
        engine=candidate.engine.name,
        engine_version=candidate.engine.version,
        repo=checkpoint.repo,
        format=checkpoint.format,
        quantization=checkpoint.quantization,
        hub=checkpoint.hub,
        revision=checkpoint.revision,
        gpus=parallel.devices if report.accelerators else None,
        tensor_parallel=parallel.tensor,
        pipeline_parallel=parallel.pipeline,
        data_parallel=parallel.data,
        expert_parallel=parallel.expert,
        kv_cache_dtype=limits.kv_cache_dtype if "kv_cache_dtype" in can else None,
        memory_utilization=limits.memory_utilization if "memory_utilization" in can else None,
        max_sequences=limits.max_sequences if "max_sequences" in can else None,
        speculative=limits.speculative,
        eager=limits.eager,
    )
