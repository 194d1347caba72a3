"""MLX: mlx-lm for text, mlx-vlm for vision; on Apple's GPUs, and on a CPU under Linux."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment
from engines.options import checked_extra
from engines.shims import PYTHON_SERVER
from selector.contract import Candidate, Command
from selector.facts import ModelFacts

#: What an answer may be long where the request does not say; assumed, and never past the context.
DEFAULT_ANSWER_TOKENS = 8_192
#: Prompts that mlx-lm works on at once unless told otherwise (mlx-lm 0.32, ``--prompt-concurrency``).
PROMPT_CONCURRENCY = 8


class Mlx(Engine):
    """Answers under whatever name a request gives, and loads that name: it is started under the served one."""

    name = "mlx"
    behaviour = Behaviour(names_itself_by_path=True)

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        extra = checked_extra(serving.extra, engine="mlx")
        if model.architecture.model_type == "glm4v_moe":
            argv = _vision_argv(candidate, serving)
        else:
            argv = _text_argv(candidate, serving)
        return Command(argv=(*argv, *extra), env=common_environment(candidate, serving))


def _answer_tokens(candidate: Candidate) -> str:
    return str(min(DEFAULT_ANSWER_TOKENS, candidate.limits.context_tokens))


def _text_argv(candidate: Candidate, serving: Serving) -> tuple[str, ...]:
    sequences = candidate.limits.max_sequences
    argv: tuple[str, ...] = (
        *_program(serving, "mlx-lm", "mlx_lm.server"),
        *("--model", serving.model),
        *("--host", serving.host),
        *("--port", str(serving.port)),
        # Its default is *: any page in a browser on this machine could talk to the model.
        *("--allowed-origins", f"http://{serving.host}:{serving.port}"),
        *("--max-tokens", _answer_tokens(candidate)),
        *("--decode-concurrency", str(sequences)),
        *("--prompt-concurrency", str(min(PROMPT_CONCURRENCY, sequences))),
    )
    kept_bytes = candidate.memory.per_device.kv_cache_bytes // 2
    if kept_bytes > 0:
        # It keeps the KV cache of the last ten prompts without a bound in bytes; half of what was
        # planned for the KV cache may be such memory, the other half is for requests under way.
        argv = (*argv, "--prompt-cache-bytes", str(kept_bytes))
    return argv


def _vision_argv(candidate: Candidate, serving: Serving) -> tuple[str, ...]:
    return (
        *_program(serving, "mlx-vlm", "mlx_vlm.server"),
        *("--model", serving.model),
        # Its default is 0.0.0.0.
        *("--host", serving.host),
        *("--port", str(serving.port)),
        *("--max-tokens", _answer_tokens(candidate)),
        *("--max-num-seqs", str(candidate.limits.max_sequences)),
    )


def _program(serving: Serving, package: str, program: str) -> tuple[str, ...]:
    """What a launch starts is the package's server behind a gate; a plan shows what a person would type."""
    if serving.executable_directory is None:
        return (program,)
    return (serving.executable("python"), "-P", str(PYTHON_SERVER), package)
