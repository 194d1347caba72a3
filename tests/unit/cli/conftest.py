"""Literal plans and machines: the command line is tried without deciding or starting anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from selector.contract import (
    Advice,
    Candidate,
    Checkpoint,
    Command,
    EngineChoice,
    LaunchPlan,
    Limits,
    Memory,
    Note,
    Parallel,
    PerDevice,
    Rejection,
    Request,
    ScoreTerms,
    Speed,
)
from selector.hardware import Accelerator, Cpu, Finding, HardwareReport, Host

GIB = 1024**3


def make_report(gpus: int = 2) -> HardwareReport:
    return HardwareReport(
        host=Host(
            os="linux", cpu=Cpu(brand="Some CPU", cores=8), memory_total_bytes=64 * GIB, memory_available_bytes=60 * GIB
        ),
        accelerators=tuple(
            Accelerator(
                index=index,
                uuid=f"GPU-{index}{index}aa",
                vendor="nvidia",
                name="NVIDIA Test 80GB",
                memory_total_bytes=80 * GIB,
                memory_free_bytes=79 * GIB,
                compute_capability=(9, 0),
            )
            for index in range(gpus)
        ),
        findings=(Finding(probe="nvidia", outcome="found" if gpus else "absent"),),
    )


def make_candidate(rank: int = 1, *, devices: tuple[int, ...] = (0, 1), engine: str = "vllm") -> Candidate:
    return Candidate(
        rank=rank,
        score=1 - rank / 100,
        score_terms=ScoreTerms(quality=1.0, speed=1.0, context=1.0, headroom=1.0),
        checkpoint=Checkpoint(
            repo="some-org/GLM-4.6-FP8", hub="huggingface", format="fp8", quantization="FP8", download_bytes=150 * GIB
        ),
        engine=EngineChoice(name="mlx" if engine == "mlx" else "vllm", version="1.2.3", package=engine),
        parallel=Parallel(tensor=len(devices) or 1, devices=devices),
        limits=Limits(
            context_tokens=131_072, max_sequences=64, kv_cache_dtype="bf16", memory_utilization=0.9, batched_tokens=8192
        ),
        memory=Memory(
            per_device=PerDevice(
                total_bytes=80 * GIB,
                usable_bytes=78 * GIB,
                weights_bytes=50 * GIB,
                kv_cache_bytes=20 * GIB,
                activations_bytes=2 * GIB,
                graphs_bytes=1 * GIB,
                runtime_bytes=1 * GIB,
                reserve_bytes=6 * GIB,
            ),
            kv_bytes_per_token=376_832,
            kv_cache_tokens=120_000,
            host_bytes=GIB,
            low_bytes=50 * GIB,
            high_bytes=55 * GIB,
            basis="derived",
        ),
        speed=Speed(
            decode_tokens_per_second=61.7,
            throughput_tokens_per_second=4123.0,
            prefill_tokens_per_second=9000.0,
            time_to_first_token_seconds=0.42,
            load_seconds=201.0,
            concurrency=64,
            basis="derived",
        ),
        command=Command(
            argv=("vllm", "serve", "some-org/GLM-4.6-FP8", "--name", "two words", "--tensor-parallel-size", "2"),
            env={"HF_HUB_OFFLINE": "1"},
        ),
        notes=(Note(severity="crash", code="a.fault", message="it may crash above 1,000 tokens"),),
    )


def make_rejection(code: str, needed_gib: int, quantization: str) -> Rejection:
    return Rejection(
        repo="some-org/GLM-4.6",
        quantization=quantization,
        engine="vllm",
        parallel=Parallel(tensor=2),
        code=code,
        message=f"needs {needed_gib}.0 GiB a GPU, 78.0 usable",
        numbers={"needed_bytes": needed_gib * GIB, "usable_bytes": 78 * GIB},
    )


def make_plan(*, feasible: bool = True, gpus: int = 2, engine: str = "vllm") -> LaunchPlan:
    devices = tuple(range(gpus))
    return LaunchPlan(
        model="glm-4.6",
        feasible=feasible,
        request=Request(
            objective="balanced", context_tokens=None, concurrency=None, input_tokens=1000, output_tokens=500, pinned={}
        ),
        hardware=make_report(gpus),
        chosen=make_candidate(devices=devices, engine=engine) if feasible else None,
        alternatives=tuple(make_candidate(rank, devices=devices) for rank in range(2, 9)) if feasible else (),
        rejected=(
            make_rejection("memory.weights", 160, "BF16"),
            make_rejection("memory.weights", 90, "FP8"),
            make_rejection("memory.kv_cache", 100, "Int4"),
        ),
        advice=(
            Advice(
                kind="context", message="with a context of 8,192 it fits", command="autolaunch glm-4.6 --context 8192"
            ),
            Advice(kind="hardware", message="4xh100: FP8 on vllm"),
        )
        if not feasible
        else (),
    )


@pytest.fixture
def plan() -> LaunchPlan:
    return make_plan()


@pytest.fixture
def infeasible() -> LaunchPlan:
    return make_plan(feasible=False, gpus=0)


@pytest.fixture
def plan_of() -> Callable[..., LaunchPlan]:
    return make_plan


@pytest.fixture
def report_of() -> Callable[..., HardwareReport]:
    return make_report
