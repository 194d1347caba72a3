"""SGLang: ``python -m sglang.launch_server``; a launch starts it through a shim that hands it its key.

Flags as of SGLang 0.5.23, whose parser ``profiles/flags`` has. Its environment can be made and its command passes its
parser; on a GPU nobody here has run it yet.
"""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment, parsers, rank_environment
from engines.options import checked_extra, valued
from engines.shims import SGLANG_SERVER
from selector.contract import Candidate, Command
from selector.facts import ModelFacts
from selector.legality import vision_heads_indivisible

#: It takes a key on its command line only, and prints it in its log (0.5.23). Started through this file it does not.
SHIM = SGLANG_SERVER


class Sglang(Engine):
    """One replica a command: ``parallel.data`` are servers of their own, not SGLang's data parallel ranks."""

    name = "sglang"
    behaviour = Behaviour(
        key_variable="AUTOLAUNCH_ENGINE_KEY", worker_titles=("sglang::scheduler", "sglang::detokenizer")
    )

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        launched = serving.executable_directory is not None
        argv = (
            serving.executable("python"),
            *(("-P", str(SHIM)) if launched else ("-m", "sglang.launch_server")),
            *("--model-path", serving.model),
            *("--served-model-name", serving.served_name),
            *("--host", serving.host, "--port", str(serving.port)),
            *_revision(candidate),
            *_layout(candidate, model),
            *_limits(candidate),
            *_speculation(candidate),
            *_parsers(model),
            *(("--load-format", "dummy") if serving.dummy_weights else ()),
            # By itself it draws another seed at every start: a fault could not be shown twice.
            *("--random-seed", "0"),
            *checked_extra(serving.extra, engine="sglang"),
        )
        environment = common_environment(candidate, serving) | rank_environment(candidate)
        if candidate.checkpoint.hub == "modelscope" and not launched:
            environment["SGLANG_USE_MODELSCOPE"] = "true"  # the id is ModelScope's: it would be asked of the other hub
        return Command(argv=argv, env=environment)


def _revision(candidate: Candidate) -> tuple[str, ...]:
    revision = candidate.checkpoint.revision
    return () if revision is None else valued("--revision", revision)


def _layout(candidate: Candidate, model: ModelFacts) -> tuple[str, ...]:
    parallel = candidate.parallel
    argv: tuple[str, ...] = ("--tp-size", str(parallel.tensor))
    if parallel.pipeline > 1:
        argv += ("--pp-size", str(parallel.pipeline))
    if parallel.expert:
        argv += ("--ep-size", str(parallel.tensor))
    if vision_heads_indivisible(model.architecture, parallel):
        argv += ("--mm-enable-dp-encoder",)
    return argv


def _limits(candidate: Candidate) -> tuple[str, ...]:
    limits = candidate.limits
    argv: tuple[str, ...] = (
        *("--context-length", str(limits.context_tokens)),
        *("--max-running-requests", str(limits.max_sequences)),
        *("--chunked-prefill-size", str(limits.batched_tokens)),
        *("--mem-fraction-static", f"{limits.memory_utilization:g}"),
    )
    if limits.kv_cache_dtype == "fp8":
        argv += ("--kv-cache-dtype", "fp8_e4m3")
    if limits.eager:
        # Its older name, which 0.5.23 still takes: every version that is planned for knows it.
        argv += ("--disable-cuda-graph",)
    return argv


def _speculation(candidate: Candidate) -> tuple[str, ...]:
    if candidate.limits.speculative != "mtp":
        return ()
    return (
        *("--speculative-algorithm", "EAGLE", "--speculative-num-steps", "3"),
        *("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"),
    )


def _parsers(model: ModelFacts) -> tuple[str, ...]:
    known = parsers(model, "sglang")
    if known is None:
        return ()
    argv = ("--tool-call-parser", known.tool)
    return argv if known.reasoning is None else (*argv, "--reasoning-parser", known.reasoning)
