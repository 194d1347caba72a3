"""What an engine's output means: how far it is, what it measured, why it failed."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.logs import Cause, Figures, LoadProgress, LogReader, classify, patterns, reader
from engines.logs.patterns import Known, LoadStage, Sign, known
from selector.errors import ProfileError
from tests.fakes import logs

GIB = 2**30

#: What each log tells: the cause, and a part of the line that told it.
FAILURES: dict[str, tuple[Cause, str]] = {
    "llamacpp-corrupt-header": ("bad weights", "failed to read header"),
    "llamacpp-cut-short": ("bad weights", "tensor 'blk.4.attn_q.weight' data is not within the file bounds"),
    "llamacpp-port": ("port in use", "couldn't bind HTTP server socket"),
    "llamacpp-unknown-model": ("model not supported", "unknown model architecture: 'glm9moe'"),
    "mlx-lm-corrupt-header": ("bad weights", "model-00001-of-00002.safetensors"),
    "mlx-lm-cut-short": ("bad weights", "invalid data offsets"),
    "mlx-lm-host-memory": ("out of host memory", "MemoryError"),
    "mlx-lm-killed": ("killed", ""),
    "mlx-lm-missing-shard": ("bad weights", "KeyError: 'model.layers.2."),
    "mlx-lm-missing-tensor": ("bad weights", "KeyError: 'model.layers.2."),
    "mlx-lm-other-shape": ("bad weights", "Expected shape (96, 128) but received shape (256, 128)"),
    "mlx-lm-port": ("port in use", "Address already in use"),
    "mlx-lm-unknown-model": ("model not supported", "Model type glm9_moe not supported"),
    "mlx-lm-wrong-option": ("bad argument", "--no-such-option"),
    "mlx-vlm-corrupt-header": ("bad weights", "model-00001-of-00002.safetensors"),
    "mlx-vlm-missing-shard": ("bad weights", "language_model.model.layers.2."),
    "mlx-vlm-port": ("port in use", "address already in use"),
    "mlx-vlm-unknown-model": ("model not supported", "Model type glm9_moe not supported"),
    "transformers-corrupt-header": ("bad weights", "header too large"),
    "transformers-cut-short": ("bad weights", "incomplete metadata"),
    "transformers-host-memory": ("out of host memory", "can't start new thread"),
    "transformers-killed": ("killed", ""),
    "transformers-missing-shard": ("bad weights", "model-00002-of-00002.safetensors"),
    "transformers-missing-tensor": ("bad weights", "model.layers.2.mlp.experts.gate_up_proj"),
    "transformers-other-shape": ("bad weights", "model.layers.0.mlp.gate_proj.weight"),
    "transformers-port": ("port in use", "address already in use"),
    "transformers-unknown-model": ("model not supported", "model type `glm9_moe`"),
    "transformers-wrong-option": ("bad argument", "--no-such-option"),
    "vllm-corrupt-header": ("bad weights", "Error while deserializing header"),
    "vllm-cut-short": ("bad weights", "incomplete metadata"),
    "vllm-host-memory": ("out of host memory", "Cannot allocate memory"),
    "vllm-kv-cache-too-small": ("kv cache does not fit", "estimated maximum model length is 524160"),
    "vllm-missing-library": ("import error", "libtorchcodec_image.so"),
    "vllm-missing-shard": ("bad weights", "model-00002-of-00002.safetensors"),
    "vllm-missing-tensor": ("bad weights", "model.norm.weight"),
    "vllm-unknown-model": ("model not supported", "model type `glm9_moe`"),
    "vllm-worker-killed": ("worker died", "engine core exited unexpectedly"),
    "vllm-wrong-option": ("bad argument", "--no-such-option"),
    "written-llamacpp-cuda-oom": ("out of memory", "allocating 144817.04 MiB on device 0"),
    "written-mlx-metal-oom": ("out of memory", "Insufficient Memory"),
    "written-sglang-fp8-a100": ("missing kernel", "fp8e4nv"),
    "written-sglang-graph-oom": ("out of memory", "Capture cuda graph failed: CUDA out of memory"),
    "written-sglang-killed": ("killed", "exit code: -9"),
    "written-sglang-kv-cache": ("kv cache does not fit", "mem_fraction_static=0.8"),
    "written-sglang-memory-held": ("out of memory", "unbalanced"),
    "written-sglang-unsupported": ("model not supported", "Glm9MoeForCausalLM"),
    "written-vllm-core-killed": ("killed", "{'EngineCore': -9}"),
    "written-vllm-device-lost": ("device lost", "GPU has fallen off the bus"),
    "written-vllm-driver": ("driver", "NVIDIA driver on your system is too old"),
    "written-vllm-graph-capture": ("graph capture", "previous error during capture"),
    "written-vllm-graph-illegal-access": ("graph capture", "an illegal memory access was encountered"),
    "written-vllm-kv-cache": ("kv cache does not fit", "estimated maximum model length is 121088"),
    "written-vllm-marlin": ("missing kernel", "5472 is not divisible"),
    "written-vllm-memory-held": ("out of memory", "Free memory on device cuda:2"),
    "written-vllm-nccl-init": ("communication", "NCCL error: unhandled system error"),
    "written-vllm-nccl-timeout": ("communication", "Watchdog caught collective operation timeout"),
    "written-vllm-no-kernel": ("missing kernel", "no kernel image is available"),
    "written-vllm-oom-loading": ("out of memory", "Tried to allocate 1.88 GiB"),
    "written-vllm-shm": ("disk full", "Insufficient space in /dev/shm"),
}

#: What a sound start tells of itself.
STARTS: dict[str, Figures] = {
    "llamacpp-start": Figures(
        host_weights_bytes=6_784_287, host_kv_cache_bytes=2**19, kv_cache_tokens=512, context_tokens=512
    ),
    "mlx-lm-start": Figures(),
    "mlx-vlm-start": Figures(),
    "transformers-start": Figures(),
    "vllm-start": Figures(
        kv_cache_bytes=GIB,
        kv_cache_tokens=524_288,
        context_tokens=1024,
        load_seconds=0.06,
        start_seconds=0.86,
        max_concurrency=512.0,
    ),
    "vllm-compiled": Figures(
        kv_cache_bytes=GIB,
        kv_cache_tokens=524_288,
        context_tokens=1024,
        load_seconds=0.17,
        start_seconds=203.25,
        max_concurrency=512.0,
    ),
    "written-llamacpp-cuda-start": Figures(
        weights_bytes=round(22171.16 * 2**20),
        host_weights_bytes=81_920 * 2**20,
        kv_cache_bytes=5_824 * 2**20,
        kv_cache_tokens=65_536,
        context_tokens=16_384,
        activations_bytes=round(126.77 * 2**20),
    ),
    "written-sglang-start": Figures(
        weights_bytes=round(89.3 * GIB),
        kv_cache_bytes=2 * round(17.47 * GIB),
        kv_cache_tokens=199_000,
        context_tokens=131_072,
        graphs_bytes=round(1.02 * GIB),
        load_seconds=53.1,
        graphs_seconds=12.8,
    ),
    "written-sglang-start-2025": Figures(
        weights_bytes=round(55.12 * GIB),
        kv_cache_bytes=round(4.60 * GIB),
        kv_cache_tokens=52_480,
        graphs_bytes=round(0.60 * GIB),
        graphs_seconds=5.38,
    ),
    "written-vllm-start": Figures(
        weights_bytes=round(87.20 * GIB),
        kv_cache_bytes=round(36.50 * GIB),
        kv_cache_tokens=409_472,
        context_tokens=131_072,
        graphs_bytes=round(1.23 * GIB),
        activations_bytes=round(4.56 * GIB),
        load_seconds=27.2,
        compile_seconds=44.91,
        graphs_seconds=21.0,
        start_seconds=96.02,
        max_concurrency=3.12,
    ),
}

#: Lines for what no log shows, as the source that the pattern names has them: the engine, the line, the cause.
EXAMPLES: tuple[tuple[str, str, Cause], ...] = (
    ("common", "CUDA error: uncorrectable ECC error encountered", "device lost"),
    ("common", "KeyError: 'layers.3.mlp.experts.w13_weight_scale'", "bad weights"),
    (
        "vllm",
        "  Value error, Total number of attention heads (96) must be divisible by tensor parallel size (7). [type=x]",
        "bad argument",
    ),
    (
        "vllm",
        "ValueError: World size (8) is larger than the number of available GPUs (4) in this node.",
        "bad argument",
    ),
    (
        "common",
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.",
        "missing kernel",
    ),
    ("common", "nvcc fatal   : Unsupported gpu architecture 'compute_121a'", "missing kernel"),
    ("common", "Failed to initialize NVML: Driver/library version mismatch", "driver"),
    ("common", "RuntimeError: No CUDA GPUs are available", "driver"),
    ("common", "RuntimeError: CUDA error: invalid device ordinal", "driver"),
    ("common", "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "driver"),
    ("common", "RuntimeError: HIP error: invalid device function", "missing kernel"),
    ("common", "RuntimeError: Failed to find C compiler. Please specify via CC environment variable", "import error"),
    ("common", "OSError: /models/glm does not appear to have a file named config.json. Checkout", "bad weights"),
    ("common", "The repository /models/glm contains custom code which must be executed to", "model not supported"),
    ("common", "OSError: [Errno 28] No space left on device", "disk full"),
    ("common", "Fatal Python error: Bus error", "disk full"),
    (
        "common",
        "[W1120 09:31:22.26 TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=4): Connection reset by peer",
        "communication",
    ),
    ("common", "server.py: error: argument --port: invalid int value: 'http'", "bad argument"),
    ("common", "Error: Invalid value for '--port': 'http' is not a valid integer.", "bad argument"),
    ("common", "size mismatch for lm_head.weight: copying a param with shape torch.Size([8]) from", "bad weights"),
    (
        "common",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
        "out of host memory",
    ),
    ("llamacpp", "error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)", "out of memory"),
    (
        "llamacpp",
        "0.01.1 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "kv cache does not fit",
    ),
    (
        "llamacpp",
        "0.01.200.000 E alloc_tensor_range: failed to allocate CPU buffer of size 437944320",
        "out of host memory",
    ),
    (
        "llamacpp",
        "0.01.200.000 E llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
        "out of memory",
    ),
    ("llamacpp", "llama_model_load: error loading model: missing tensor 'blk.2.ffn_gate_exps.weight'", "bad weights"),
    ("llamacpp", "error: invalid argument: --no-such-option", "bad argument"),
    ("llamacpp", "ggml_cuda_init: failed to initialize CUDA: unknown error", "driver"),
    (
        "mlx",
        "RuntimeError: [metal::malloc] Attempting to allocate 34419507200 bytes which is greater than the maximum",
        "out of memory",
    ),
    (
        "mlx",
        "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPU…)",
        "device error",
    ),
    ("mlx", "FileNotFoundError: No safetensors found in model", "bad weights"),
    (
        "sglang",
        "RuntimeError: Hybrid (mamba/linear-attention) state cache is too small to serve any requests.",
        "kv cache does not fit",
    ),
    ("sglang", "Fail when using backend: breakable for prefill runner.", "graph capture"),
    (
        "sglang",
        "ValueError: The checkpoint has model type `glm9` but Transformers does not recognize this architecture.",
        "model not supported",
    ),
    ("sglang", "RuntimeError: NVFP4 w4a4 requires compute capability >= 10.0; serving it here", "missing kernel"),
    ("sglang", "RuntimeError: Cannot find any model weights with `/models/glm`", "bad weights"),
    (
        "sglang",
        "[2026-11-20 09:20:10 TP0] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)",
        "worker died",
    ),
    (
        "transformers",
        "ValueError: Unrecognized configuration class <class 'Glm9Config'> for this kind of AutoModel",
        "model not supported",
    ),
    (
        "transformers",
        "ValueError: Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit the",
        "out of memory",
    ),
    (
        "transformers",
        "Glm4vVideoProcessor requires the Torchvision library but it was not found in your environment.",
        "import error",
    ),
    (
        "vllm",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when",
        "kv cache does not fit",
    ),
    (
        "vllm",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.",
        "out of memory",
    ),
    (
        "vllm",
        (
            "ValueError: Available memory on node 0 (0.90/14.96 GiB) on kv cache allocation is less than requested "
            "memory for kv (4.0 GiB)."
        ),
        "kv cache does not fit",
    ),
    (
        "vllm",
        (
            "ValueError: To serve at least one request with the model's max seq len (64), (2.0 GiB KV cache is needed, "
            "which is larger than the available KV cache memory (0.1 GiB). Try increasing"
        ),
        "kv cache does not fit",
    ),
    (
        "vllm",
        "ValueError: The quantization method nvfp4 is not supported for the current GPU. Minimum capability: 100.",
        "missing kernel",
    ),
    (
        "vllm",
        "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=128)",
        "missing kernel",
    ),
    (
        "vllm",
        "ValueError: Model architectures ['Glm9MoeForCausalLM'] are not supported for now. Supported architectures:",
        "model not supported",
    ),
    (
        "vllm",
        (
            "  Value error, User-specified max_model_len (262144) is greater than the derived max_model_len "
            "(max_position_embeddings=202752 or model_max_length=None in model's config.json)."
        ),
        "bad argument",
    ),
    ("vllm", "    assert param_data.shape == loaded_weight.shape", "bad weights"),
    (
        "vllm",
        "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by",
        "worker died",
    ),
    (
        "vllm",
        "(EngineCore pid=9) ERROR 11-23 01:34:53 [ray_executor_v2.py:522] RayWorkerProc rank=[1] died unexpectedly,",
        "worker died",
    ),
    (
        "vllm",
        "(raylet) The node with node id: 776b and address: 10.0.0.4 has been marked dead because the detector has",
        "worker died",
    ),
    (
        "vllm",
        (
            "[2026-11-23 03:57:00,374 E 25849 26010] rpc_client.h:204: Failed to connect to GCS within 60 seconds. GCS "
            "may have been killed. It's either GCS is terminated by `ray stop` or is killed unexpectedly."
        ),
        "communication",
    ),
    (
        "vllm",
        "autolaunch: Ray has not the devices for this engine: 10.0.0.4 has 0 of 8",
        "devices held",
    ),
    ("vllm", "TimeoutError: RPC call to sample_tokens timed out.", "worker died"),
)

#: Figures and stages that no log shows.
SAID: tuple[tuple[str, str], ...] = (
    (
        "sglang",
        (
            "[2026-11-20 09:20:10 TP0] Post-capture KV sizing: KV cache allocated. dtype: torch.bfloat16, "
            "#tokens: 199000, KV size: 34.94 GB, avail mem=13.88 GB"
        ),
    ),
)


def fed(name: str) -> tuple[LogReader, logs.Log]:
    log = logs.read(name)
    found = LogReader(log.header.engine, log.header.version)
    for line in log.lines:
        found.feed(line)
    return found, log


def progress_of(name: str) -> list[LoadProgress]:
    """Every step that a log's reader tells, each once."""
    log = logs.read(name)
    found, steps = LogReader(log.header.engine, log.header.version), list[LoadProgress]()
    for line in log.lines:
        found.feed(line)
        if found.progress is not None and (not steps or steps[-1] != found.progress):
            steps.append(found.progress)
    return steps


# --- the logs


def test_every_log_is_told_what_it_means_and_says_where_it_comes_from() -> None:
    assert set(logs.names()) == set(FAILURES) | set(STARTS)
    for name in logs.names():
        header = logs.read(name).header
        assert header.how if header.made == "recorded" else header.source, name
        assert (header.made == "written") == name.startswith("written-"), name


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_a_failure_is_classified_with_the_line_that_tells(name: str) -> None:
    cause, part = FAILURES[name]
    found, log = fed(name)
    told = found.diagnose(log.lines[-200:], log.header.exit_code)
    assert told.cause == cause
    assert part in (told.line or "")
    assert told.hint


@pytest.mark.parametrize("name", sorted(STARTS))
def test_a_sound_start_tells_its_figures_and_no_failure(name: str) -> None:
    found, log = fed(name)
    assert found.figures == STARTS[name]
    assert found.diagnose(log.lines).cause in {"unknown", "stopped"}, "the recorder stopped it when it was ready"


@pytest.mark.parametrize(
    "name", ["vllm-start", "vllm-compiled", "written-vllm-start", "written-sglang-start", "llamacpp-start"]
)
def test_a_load_goes_through_its_stages_in_order_and_ends_ready(name: str) -> None:
    stages = list(dict.fromkeys(step.stage for step in progress_of(name)))
    order = list(get_args(LoadStage))
    if "compile" in stages and "profile" in stages:  # which of the two comes first is the engine's
        stages.remove("profile")
    assert stages == sorted(stages, key=order.index)
    assert stages[-1] == "ready"
    assert "weights" in stages


def test_shards_and_graphs_are_counted() -> None:
    steps = progress_of("written-vllm-start")
    assert LoadProgress(stage="weights", fraction=10 / 22, done=10, total=22) in steps
    assert LoadProgress(stage="graphs", fraction=12 / 35, done=12, total=35) in steps
    assert next(step for step in steps if step.done == 10).message == "loading the weights, 10 of 22"
    assert LoadProgress(stage="weights", fraction=1.0, done=71, total=71) in progress_of("transformers-start")
    assert LoadProgress(stage="graphs", fraction=12 / 23, done=12, total=23) in progress_of("written-sglang-start")


def test_the_fullest_rank_counts_and_the_ranks_are_kept_apart() -> None:
    found, _ = fed("written-vllm-start")
    ranks = found.by_rank("weights_bytes")
    assert list(ranks) == ["Worker_TP0", "Worker_TP1", "Worker_TP2", "Worker_TP3"]
    assert found.figures.weights_bytes == max(ranks.values())
    devices, _ = fed("written-llamacpp-cuda-start")
    assert list(devices.by_rank("weights_bytes")) == ["CUDA0", "CUDA1"]


# --- causes


def test_the_context_that_the_engine_says_would_fit_is_a_number() -> None:
    found, log = fed("written-vllm-kv-cache")
    told = found.diagnose(log.lines, 1)
    assert told.fitting_context_tokens == 121_088
    assert (told.needed_bytes, told.available_bytes) == (round(35.58 * GIB), round(21.25 * GIB))
    assert "--context 121088" in (told.hint or "")


def test_the_device_and_the_rank_that_failed_are_named() -> None:
    found, log = fed("written-vllm-oom-loading")
    told = found.diagnose(log.lines, 1)
    assert (told.device, told.rank) == ("1", "Worker_TP1")
    lost, log = fed("written-vllm-device-lost")
    assert lost.diagnose(log.lines).device == "0000:3b:00"
    held, log = fed("written-vllm-memory-held")
    assert (held.diagnose(log.lines).device, held.diagnose(log.lines).rank) == ("cuda:2", "Worker_TP2")


NOISE = tuple(
    f"(Worker_TP{rank} pid=4{rank}) ERROR 11-20 09:14:22 [multiproc_executor.py:1057] {text}"
    for rank in range(2, 8)
    for text in (
        *("  File 'module.py', line 1, in _call_impl",) * 60,
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4242",
    )
)


def test_what_the_other_ranks_say_gives_way_to_the_cause_though_it_has_left_the_last_lines() -> None:
    found, log = fed("written-vllm-oom-loading")
    for line in NOISE:
        found.feed(line)
    last = (*log.lines, *NOISE)[-200:]
    assert found.diagnose(last, 1).cause == "out of memory"
    assert classify(last, engine="vllm").cause == "communication", "of the last lines alone nobody can know better"


def test_an_unknown_exception_above_a_consequence_is_what_is_told() -> None:
    lines = (
        "ValueError: what nobody has seen",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    )
    told = classify(lines, engine="vllm")
    assert (told.cause, told.line) == ("unknown", "ValueError: what nobody has seen")
    assert classify(lines[1:], engine="vllm").line == lines[1]


@pytest.mark.parametrize(
    ("lines", "code", "cause"),
    [
        ((), -9, "killed"),
        (("loading",), 137, "killed"),
        (("torch.OutOfMemoryError: CUDA out of memory.",), -9, "out of memory"),
        (("loading",), -7, "disk full"),
        (("loading",), -11, "unknown"),
        (("loading",), -15, "stopped"),
        (("EngineDeadError: EngineCore encountered an issue.",), -15, "worker died"),
        (("loading",), 0, "unknown"),
        ((), None, "unknown"),
    ],
)
def test_a_signal_tells_only_what_no_line_tells(lines: tuple[str, ...], code: int | None, cause: Cause) -> None:
    assert classify(lines, engine="vllm", exit_code=code).cause == cause


def test_what_is_permanent_while_loading_may_pass_while_serving() -> None:
    found, log = fed("written-vllm-oom-loading")
    assert found.diagnose(log.lines).permanent
    found.serves()
    assert not found.diagnose(log.lines).permanent
    assert classify(("GPU is lost",), serving=True).permanent, "no restart brings a lost GPU back"


def test_an_engine_that_was_stopped_while_it_served_has_not_failed() -> None:
    found, log = fed("vllm-compiled")
    assert any("EngineDeadError" in line for line in log.lines), "it says so though nothing is wrong"
    assert found.diagnose(log.lines[-200:], 0).cause == "stopped"


def test_a_line_of_a_quiet_level_tells_no_failure() -> None:
    line = (
        "(APIServer pid=1) WARNING 11-20 09:14:22 [x.py:1] Failed to import: ModuleNotFoundError: No module named 'x'"
    )
    assert classify((line,), engine="vllm").cause == "unknown"
    assert classify((line.replace("WARNING", "ERROR"),), engine="vllm").cause == "import error"


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        (
            "vllm",
            "(APIServer pid=1) INFO 11-20 09:14:22 [logger.py:1] Received request x: prompt: 'CUDA out of memory'",
        ),
        ("sglang", "[2026-11-20 09:20:10] Receive: obj=GenerateReqInput(text='CUDA out of memory: GPU is lost')"),
    ],
)
def test_a_prompt_in_the_log_is_no_failure(engine: str, line: str) -> None:
    assert classify((line,), engine=engine).cause == "unknown"


@pytest.mark.parametrize(("engine", "line", "cause"), EXAMPLES)
def test_a_line_tells_its_cause(engine: str, line: str, cause: Cause) -> None:
    assert classify(("loading", line, "exiting"), engine=engine).cause == cause


def test_a_message_below_the_errors_name_is_told_with_it() -> None:
    lines = ("ImportError:", "", "Glm4vVideoProcessor requires the Torchvision library")
    assert classify((*lines[:2], "what it wants")).line == "ImportError: what it wants"
    assert classify(lines, engine="transformers").cause == "import error"


def test_an_engine_that_nobody_described_is_known_by_what_all_may_say() -> None:
    assert classify(("CUDA out of memory",), engine="of-tomorrow").cause == "out of memory"
    assert LogReader("of-tomorrow").figures == Figures()


# --- the data


def every_line() -> Iterator[tuple[str, str]]:
    for name in logs.names():
        log = logs.read(name)
        yield from ((log.header.engine, line) for line in log.lines)
    yield from ((engine, line) for engine, line, _ in EXAMPLES)
    yield from SAID


def test_every_pattern_is_shown_by_a_log_or_an_example() -> None:
    shown: set[int] = set()
    for engine, line in every_line():
        facts = known(engine)
        if not any(word in line.lower() for word in facts.words):
            continue
        for signs in (facts.failures, facts.stages, facts.figures):
            shown |= {id(each) for sign, each in signs if sign.found(line, line.lower()) is not None}
    unseen = {
        f"{engine}: {each.has[0]}"
        for engine in patterns.engines()
        for signs in (known(engine).failures, known(engine).stages, known(engine).figures)
        for _, each in signs
        if id(each) not in shown
    }
    assert unseen == set()


def every_expression() -> set[str]:
    found: set[str] = set()
    for engine in patterns.engines():
        facts = known(engine)
        signs: list[Sign] = [sign for group in (facts.failures, facts.stages, facts.figures) for sign, _ in group]
        found |= {sign.expression.pattern for sign in signs if sign.expression is not None}
        found |= {each.pattern for each in (facts.quiet, facts.rank, facts.prefix) if each is not None}
    return found


def test_no_pattern_repeats_a_repetition_without_bounds_or_looks_further_than_a_line() -> None:
    parser: Any = importlib.import_module("re._parser")

    def deep(tree: Any, inside: bool) -> Iterator[str]:
        for operation, argument in tree:
            name = str(operation)
            if name.endswith("REPEAT"):
                _, high, body = argument
                if high != parser.MAXREPEAT and high <= 2:  # an option, twice at most
                    yield from deep(body, inside)
                    continue
                yield from ["a repetition in a repetition"] if inside else []
                yield from ["no bound"] if high == parser.MAXREPEAT and str(body[0][0]) == "ANY" else []
                yield from deep(body, True)
            elif name in {"SUBPATTERN", "ASSERT", "ASSERT_NOT"}:
                yield from deep(argument[-1], inside)
            elif name == "BRANCH":
                for branch in argument[1]:
                    yield from deep(branch, inside)

    faults = {pattern: list(deep(parser.parse(pattern), False)) for pattern in every_expression()}
    assert {pattern: found for pattern, found in faults.items() if found} == {}


def test_every_cause_is_described_once_and_those_with_something_to_do_say_it() -> None:
    facts = known("vllm")
    assert set(facts.causes) == set(get_args(Cause))
    assert {name for name, cause in facts.causes.items() if cause.hint is None} == {"unknown"}


def test_every_engine_that_is_planned_for_has_patterns() -> None:
    from engines import registry

    assert set(patterns.engines()) == {*registry.names(), patterns.COMMON}


HEAD = 'schema = 1\nengine = "odd"\nsource = "a test"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "common.toml").write_text((patterns.FOLDER / "common.toml").read_text())
    monkeypatch.setattr(patterns, "FOLDER", tmp_path)
    caches = (patterns.known, patterns._file)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_a_pattern_holds_for_the_versions_that_it_names(folder: Path) -> None:
    entry = '[[failures]]\nhas = ["it broke"]\ncause = "driver"\nsince = "0.5"\nbefore = "0.7"\nsource = "a test"\n'
    (folder / "odd.toml").write_text(HEAD + entry)
    told = {version: classify(("it broke",), engine="odd", version=version).cause for version in ("0.4", "0.5", "0.7")}
    assert told == {"0.4": "unknown", "0.5": "driver", "0.7": "unknown"}
    assert classify(("it broke",), engine="odd").cause == "driver"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (HEAD + '[[failures]]\nhas = ["x"]\ncause = "tired"\nsource = "y"\n', "cause"),
        (HEAD + '[[stages]]\nhas = ["x"]\nstage = "ready"\nsource = "y"\npattern = "("\n', "no regular expression"),
        (HEAD.replace("odd", "even"), "the file's name says 'odd'"),
    ],
)
def test_a_wrong_file_of_patterns_is_named(folder: Path, text: str, part: str) -> None:
    (folder / "odd.toml").write_text(text)
    with pytest.raises(ProfileError, match=part):
        LogReader("odd")


def test_a_plan_reads_no_patterns() -> None:
    code = (
        "import sys, autolaunch; autolaunch.plan('glm-4.6', hardware='8xh100');sys.exit('engines.logs' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- hostile output


@settings(max_examples=50)
@given(st.sampled_from(patterns.engines()), st.lists(st.text(max_size=300), max_size=20))
def test_no_line_makes_the_reader_fail(engine: str, lines: list[str]) -> None:
    found = LogReader(engine)
    for line in lines:
        found.feed(line)
    assert found.diagnose(tuple(lines), None).permanent in {True, False}


@settings(max_examples=50)
@given(st.data())
def test_no_line_made_of_an_engines_own_words_makes_the_reader_fail(data: st.DataObject) -> None:
    engine = data.draw(st.sampled_from(patterns.engines()))
    facts = known(engine)
    words = sorted(
        {word for group in (facts.failures, facts.stages, facts.figures) for sign, _ in group for word in sign.words}
    )
    pieces = st.sampled_from([*words, "9" * 40, "1.2.3", ".", " GiB", "(", "|", "\u0661\u0662", "1e400 GiB", "/0 ["])
    found = LogReader(engine)
    lines = data.draw(st.lists(st.lists(pieces, max_size=8).map("".join), max_size=5))
    for line in lines:
        found.feed(line)
    assert found.figures == found.figures
    assert found.diagnose(tuple(lines)).cause in get_args(Cause)


@pytest.mark.parametrize("figure", ["1.2.3", "999999999999", "-0.02", "..."])
def test_a_figure_that_is_none_is_not_taken_for_one(figure: str) -> None:
    found = LogReader("vllm")
    found.feed(f"Model loading took {figure} GiB memory and 1.5 seconds")
    found.feed(f"Graph capturing finished in 3 secs, took {figure} GiB")
    assert (found.figures.weights_bytes, found.figures.graphs_bytes) == (None, None)
    needed = f"({figure} GiB KV cache is needed, which is larger than the available KV cache memory ({figure} GiB)."
    told = classify((f"{needed} Based on it, the estimated maximum model length is 64.",), engine="vllm")
    assert told.fitting_context_tokens == 64


def test_what_is_kept_of_a_log_is_bounded() -> None:
    found = LogReader("vllm")
    for number in range(reader.RANKS + 50):
        found.feed(
            f"(Worker_TP{number} pid={number}) INFO 11-20 09:00:00 [x.py:1] Model loading took 1.5 GiB memory and 1 s"
        )
        found.feed(f"torch.OutOfMemoryError: CUDA out of memory {number} " + "x" * 5_000)
    assert len(found.by_rank("weights_bytes")) == reader.RANKS
    assert len(found._suspects) == reader.SUSPECTS
    assert max(map(len, found._suspects)) <= patterns.LINE_CHARACTERS


def hostile(facts: Known, generator: random.Random) -> list[str]:
    """Long lines that hold an engine's words and then almost, but never, what its patterns want."""
    fillers = ("a", " ", "1.", "GiB ", "([", "x y |", "tensor '", "#tokens: ")
    words = [
        word for group in (facts.failures, facts.stages, facts.figures) for sign, _ in group for word in sign.words
    ]
    found = [
        (word + filler * patterns.LINE_CHARACTERS)[: patterns.LINE_CHARACTERS - 40] + generator.choice(words)
        for word in words
        for filler in fillers
    ]
    return generator.sample(found, 120)


@pytest.mark.parametrize("engine", patterns.engines())
def test_the_longest_and_most_hostile_lines_cost_little_more_than_to_look_at_them(engine: str) -> None:
    facts = known(engine)
    lines = hostile(facts, random.Random(4))  # noqa: S311 - a test's own choice
    words = {
        word for group in (facts.failures, facts.stages, facts.figures) for sign, _ in group for word in sign.words
    }

    def seconds(look: Any) -> float:
        began = time.process_time()
        for line in lines:
            look(line)
        return time.process_time() - began

    def words_alone(line: str) -> None:
        lowered = line.lower()
        for word in words:
            _ = word in lowered

    simple = min(seconds(words_alone) for _ in range(2))
    assert min(seconds(LogReader(engine).feed) for _ in range(2)) < 25 * simple


def test_what_a_gpu_lacked_is_told_in_bytes() -> None:
    line = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of "
        "79.11 GiB of which 1.25 GiB is free."
    )
    found = classify((line,), engine="vllm")
    assert (found.cause, found.device) == ("out of memory", "3")
    assert (found.needed_bytes, found.available_bytes) == (2 * 2**30, 5 * 2**28)


def test_a_process_that_was_killed_is_not_blamed_on_what_it_said_long_before() -> None:
    """An optional import that failed is printed and done without; then comes the host's out-of-memory killer."""
    lines = ("ImportError: optional thing", *(f"Loading shard {number}" for number in range(60)))
    assert classify(lines, engine="vllm", exit_code=-9).cause == "killed"
    assert classify(lines, engine="vllm", exit_code=1).cause == "import error"
    assert classify((*lines, "CUDA out of memory"), engine="vllm", exit_code=-9).cause == "out of memory"
