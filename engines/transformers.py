"""Transformers: ``transformers serve``, pinned to one model. Runs wherever PyTorch does, slowly."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment
from engines.options import checked_extra
from selector.contract import Candidate, Command
from selector.facts import ModelFacts

OWNED = frozenset({"--host", "--port", "--device", "--dtype", "--enable-cors", "--model-timeout", "--non-blocking"})


class Transformers(Engine):
    """The positional model pins the server: without it any request could load any model.

    Pinned, it refuses every name but the one it was started with. Its replies name the model
    ``NAME@main`` and its /v1/models is empty for a folder (transformers 5.23).
    """

    name = "transformers"
    behaviour = Behaviour(names_itself_by_path=True, ends_stream_with_done=False)
    starts = True

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        del model  # one command for text and vision
        argv = (
            serving.executable("transformers"),
            "serve",
            serving.model,
            *("--host", serving.host),
            *("--port", str(serving.port)),
            # "auto" lets accelerate lay the layers over the devices that the environment leaves.
            *("--device", "auto" if candidate.parallel.devices else "cpu"),
            *("--dtype", "auto"),
        )
        extra = checked_extra(serving.extra, owned=OWNED, engine="transformers")
        environment = common_environment(candidate, serving)
        # It asks PyPI for a newer release at every start.
        environment["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
        return Command(argv=(*argv, *extra), env=environment)
