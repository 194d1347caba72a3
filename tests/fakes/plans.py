"""FAKE plans: a candidate with invented memory and speed, for tests of what happens after the decision."""

from __future__ import annotations

from selector.catalog import Catalog
from selector.contract import (
    Candidate,
    Checkpoint,
    EngineChoice,
    LaunchPlan,
    Limits,
    Memory,
    Parallel,
    PerDevice,
    Request,
    ScoreTerms,
    Speed,
)
from selector.facts import EngineName
from selector.hardware import Accelerator, HardwareReport, Host


def candidate(
    engine: EngineName,
    model: str,
    *,
    sequences: int = 4,
    context: int = 8192,
    devices: tuple[int, ...] = (),
    data: int = 1,
) -> Candidate:
    """The first checkpoint of ``model`` on ``engine``; on a CPU unless ``devices`` are given."""
    catalog = Catalog()
    facts, stored = catalog.engine(engine), catalog.model(model)
    first = stored.checkpoints[0]
    kind = stored.architecture.model_type
    return Candidate(
        rank=1,
        score=1.0,
        score_terms=ScoreTerms(quality=1.0, speed=1.0, context=1.0, headroom=1.0),
        checkpoint=Checkpoint(
            repo=first.repo,
            hub="huggingface",
            format=first.format,
            quantization=first.quantization,
            download_bytes=first.download_bytes,
        ),
        engine=EngineChoice(
            name=engine,
            version=facts.version,
            package=next(package.name for package in facts.packages if kind in package.architectures),
        ),
        parallel=Parallel(tensor=max(1, len(devices)), data=data, devices=devices),
        limits=Limits(
            context_tokens=context,
            max_sequences=sequences,
            kv_cache_dtype="fp32",
            memory_utilization=0.9,
            batched_tokens=2048,
        ),
        memory=Memory(
            per_device=PerDevice(
                total_bytes=10**9,
                usable_bytes=9 * 10**8,
                weights_bytes=10**7,
                kv_cache_bytes=10**8,
                activations_bytes=10**6,
                graphs_bytes=0,
                runtime_bytes=10**7,
                reserve_bytes=10**7,
            ),
            kv_bytes_per_token=2048,
            kv_cache_tokens=40_000,
            host_bytes=0,
            low_bytes=10**7,
            high_bytes=2 * 10**7,
            basis="assumed",
        ),
        speed=Speed(
            decode_tokens_per_second=None,
            throughput_tokens_per_second=None,
            prefill_tokens_per_second=None,
            time_to_first_token_seconds=None,
            load_seconds=None,
            concurrency=1,
            basis="assumed",
        ),
    )


def plan(chosen: Candidate | None, model: str = "glm-tiny", accelerators: tuple[Accelerator, ...] = ()) -> LaunchPlan:
    return LaunchPlan(
        model=model,
        feasible=chosen is not None,
        request=Request(
            objective="balanced", context_tokens=None, concurrency=None, input_tokens=1000, output_tokens=500, pinned={}
        ),
        hardware=HardwareReport(host=Host(os="linux"), accelerators=accelerators),
        chosen=chosen,
    )
