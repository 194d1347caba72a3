"""llama.cpp: ``llama-server``. Planned and printed by this release, not started."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment
from engines.options import checked_extra
from selector.contract import Candidate, Command
from selector.facts import ModelFacts

OWNED = frozenset(
    {
        "--alias",
        "--api-key",
        "--ctx-size",
        "--hf-repo",
        "--host",
        "--model",
        "--n-gpu-layers",
        "--parallel",
        "--port",
    }
)
#: More layers than any model has: all of them on the devices.
ALL_LAYERS = 999


class Llamacpp(Engine):
    """One process that spreads whole layers over the devices; its KV cache is one pool for all slots."""

    name = "llamacpp"
    behaviour = Behaviour(takes_key=True)

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        del model  # the chat template and its parsers come with the file (--jinja)
        checkpoint, limits = candidate.checkpoint, candidate.limits
        argv: list[str] = [serving.executable("llama-server")]
        argv += ["--hf-repo", f"{serving.model}:{checkpoint.quantization}"]
        argv += ["--alias", serving.served_name, "--host", serving.host, "--port", str(serving.port)]
        argv += ["--ctx-size", str(candidate.memory.kv_cache_tokens), "--parallel", str(limits.max_sequences)]
        argv += ["--kv-unified", "--jinja"]
        argv += ["--n-gpu-layers", str(ALL_LAYERS if candidate.parallel.devices else 0)]
        argv += checked_extra(serving.extra, owned=OWNED, engine="llamacpp")
        return Command(argv=tuple(argv), env=common_environment(candidate, serving))
