"""llama.cpp: ``llama-server``, or the same server out of the xllamacpp wheel."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment
from engines.options import checked_extra
from engines.shims import LLAMACPP_SERVER
from selector.contract import Candidate, Command
from selector.facts import ModelFacts

OWNED = frozenset(
    {
        "--alias",
        "--api-key",
        "--api-key-file",
        "--cors-origins",
        "--ctx-size",
        "--hf-repo",
        "--host",
        "--model",
        "--n-gpu-layers",
        "--parallel",
        "--port",
    }
)
#: The package of ``profiles/engines`` whose environment holds the wheel.
WHEEL = "llamacpp"
#: More layers than any model has: all of them on the devices.
ALL_LAYERS = 999


class Llamacpp(Engine):
    """One process that spreads whole layers over the devices; its KV cache is one pool for all slots."""

    name = "llamacpp"
    behaviour = Behaviour(takes_key=True)
    starts = True

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        del model  # the chat template and its parsers come with the file (--jinja)
        checkpoint, limits = candidate.checkpoint, candidate.limits
        argv = _program(candidate, serving)
        if serving.executable_directory is None:
            argv += ["--hf-repo", f"{serving.model}:{checkpoint.quantization}"]
        else:
            argv += ["--model", serving.model]
        argv += ["--alias", serving.served_name, "--host", serving.host, "--port", str(serving.port)]
        argv += ["--ctx-size", str(candidate.memory.kv_cache_tokens), "--parallel", str(limits.max_sequences)]
        # A page of another origin is not let in, and nobody reads the prompts of others.
        argv += ["--kv-unified", "--jinja", "--no-ui", "--no-slots"]
        argv += ["--cors-origins", f"http://{serving.host}:{serving.port}"]
        argv += ["--n-gpu-layers", str(ALL_LAYERS if candidate.parallel.devices else 0)]
        argv += checked_extra(serving.extra, owned=OWNED, engine="llamacpp")
        return Command(argv=tuple(argv), env=common_environment(candidate, serving))


def _program(candidate: Candidate, serving: Serving) -> list[str]:
    """The environment that we make holds the server in a wheel, which takes no command line of its own."""
    if serving.executable_directory is None or candidate.engine.package != WHEEL:
        return [serving.executable("llama-server")]
    return [serving.executable("python"), "-P", str(LLAMACPP_SERVER)]
