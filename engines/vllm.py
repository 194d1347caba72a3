"""vLLM: ``vllm serve``. Planned and printed by this release, not started."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment, parsers
from engines.options import checked_extra
from selector.contract import Candidate, Command
from selector.facts import ModelFacts
from selector.legality import vision_heads_indivisible

OWNED = frozenset(
    {
        "--api-key",
        "--data-parallel-size",
        "--gpu-memory-utilization",
        "--host",
        "--kv-cache-dtype",
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--model",
        "--pipeline-parallel-size",
        "--port",
        "--revision",
        "--served-model-name",
        "--tensor-parallel-size",
        "--allowed-local-media-path",
    }
)


class Vllm(Engine):
    """Flags as of vLLM 0.33: ``--swap-space`` and ``--max-seq-len-to-capture`` of the model cards are gone."""

    name = "vllm"
    behaviour = Behaviour(takes_key=True)

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        parallel, limits = candidate.parallel, candidate.limits
        argv: list[str] = [serving.executable("vllm"), "serve", serving.model]
        argv += ["--served-model-name", serving.served_name]
        argv += ["--host", serving.host, "--port", str(serving.port)]
        if candidate.checkpoint.revision is not None:
            argv += ["--revision", candidate.checkpoint.revision]
        argv += ["--tensor-parallel-size", str(parallel.tensor)]
        if parallel.pipeline > 1:
            argv += ["--pipeline-parallel-size", str(parallel.pipeline)]
        if parallel.nodes > 1:
            argv += ["--distributed-executor-backend", "ray"]
        if parallel.expert:
            argv += ["--enable-expert-parallel"]
        argv += ["--max-model-len", str(limits.context_tokens)]
        argv += ["--max-num-seqs", str(limits.max_sequences)]
        argv += ["--max-num-batched-tokens", str(limits.batched_tokens)]
        argv += ["--gpu-memory-utilization", f"{limits.memory_utilization:g}"]
        if limits.kv_cache_dtype == "fp8":
            argv += ["--kv-cache-dtype", "fp8"]
        if limits.speculative == "mtp":
            argv += ["--speculative-config.method", "mtp", "--speculative-config.num_speculative_tokens", "1"]
        if limits.eager:
            argv += ["--enforce-eager"]
        if vision_heads_indivisible(model.architecture, parallel):
            argv += ["--mm-encoder-tp-mode", "data"]
        known = parsers(model, "vllm")
        if known is not None:
            argv += ["--enable-auto-tool-choice", "--tool-call-parser", known.tool]
            argv += [] if known.reasoning is None else ["--reasoning-parser", known.reasoning]
        argv += checked_extra(serving.extra, owned=OWNED, engine="vllm")
        environment = common_environment(candidate, serving)
        if candidate.checkpoint.hub == "modelscope" and serving.executable_directory is None:
            environment["VLLM_USE_MODELSCOPE"] = "True"  # the id is ModelScope's: it would be asked of the other hub
        return Command(argv=tuple(argv), env=environment)
