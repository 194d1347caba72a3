"""SGLang: ``python -m sglang.launch_server``. Planned and printed by this release, not started."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment, parsers
from engines.options import checked_extra
from selector.contract import Candidate, Command
from selector.facts import ModelFacts
from selector.legality import vision_heads_indivisible

OWNED = frozenset(
    {
        "--api-key",
        "--chunked-prefill-size",
        "--context-length",
        "--dp-size",
        "--ep-size",
        "--host",
        "--kv-cache-dtype",
        "--max-running-requests",
        "--mem-fraction-static",
        "--model-path",
        "--port",
        "--pp-size",
        "--revision",
        "--served-model-name",
        "--tp-size",
    }
)


class Sglang(Engine):
    """Flags as of SGLang 0.5.23; it has no API key unless one is given."""

    name = "sglang"
    behaviour = Behaviour(takes_key=True)

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        parallel, limits = candidate.parallel, candidate.limits
        argv: list[str] = [serving.executable("python"), "-m", "sglang.launch_server"]
        argv += ["--model-path", serving.model, "--served-model-name", serving.served_name]
        argv += ["--host", serving.host, "--port", str(serving.port)]
        if candidate.checkpoint.revision is not None:
            argv += ["--revision", candidate.checkpoint.revision]
        argv += ["--tp-size", str(parallel.tensor)]
        if parallel.pipeline > 1:
            argv += ["--pp-size", str(parallel.pipeline)]
        if parallel.expert:
            argv += ["--ep-size", str(parallel.tensor)]
        argv += ["--context-length", str(limits.context_tokens)]
        argv += ["--max-running-requests", str(limits.max_sequences)]
        argv += ["--chunked-prefill-size", str(limits.batched_tokens)]
        argv += ["--mem-fraction-static", f"{limits.memory_utilization:g}"]
        if limits.kv_cache_dtype == "fp8":
            argv += ["--kv-cache-dtype", "fp8_e4m3"]
        if limits.speculative == "mtp":
            argv += ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", "3"]
            argv += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"]
        if limits.eager:
            argv += ["--disable-cuda-graph"]
        if vision_heads_indivisible(model.architecture, parallel):
            argv += ["--mm-enable-dp-encoder"]
        known = parsers(model, "sglang")
        if known is not None:
            argv += ["--tool-call-parser", known.tool]
            argv += [] if known.reasoning is None else ["--reasoning-parser", known.reasoning]
        argv += checked_extra(serving.extra, owned=OWNED, engine="sglang")
        environment = common_environment(candidate, serving)
        if candidate.checkpoint.hub == "modelscope" and serving.executable_directory is None:
            environment["SGLANG_USE_MODELSCOPE"] = "true"  # the id is ModelScope's: it would be asked of the other hub
        return Command(argv=tuple(argv), env=environment)
