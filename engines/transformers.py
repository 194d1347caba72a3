"""Transformers: ``transformers serve``, pinned to one model. Runs wherever PyTorch does, slowly."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment
from engines.options import checked_extra
from engines.shims import PYTHON_SERVER
from selector.contract import Candidate, Command
from selector.facts import ModelFacts


class Transformers(Engine):
    """The positional model pins the server: without it any request could load any model.

    Pinned, it refuses every name but the one it was started with. What a launch starts is its server with what
    5.23 leaves out mended (:mod:`engines.shims.python_server`); a plan shows what a person would type.
    """

    name = "transformers"
    behaviour = Behaviour(names_itself_by_path=True)

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        del model  # one command for text and vision
        launched = serving.executable_directory is not None
        program = (
            (serving.executable("python"), "-P", str(PYTHON_SERVER), "transformers") if launched else ("transformers",)
        )
        argv: tuple[str, ...] = (
            *program,
            "serve",
            serving.model,
            *("--host", serving.host),
            *("--port", str(serving.port)),
            # "auto" lets accelerate lay the layers over the devices that the environment leaves.
            *("--device", "auto" if candidate.parallel.devices else "cpu"),
            *("--dtype", "auto"),
        )
        extra = checked_extra(serving.extra, engine="transformers")
        environment = common_environment(candidate, serving)
        # It asks PyPI for a newer release at every start.
        environment["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
        if launched and candidate.parallel.devices:
            environment["AUTOLAUNCH_MAX_MEMORY"] = _planned_memory(candidate)
        return Command(argv=(*argv, *extra), env=environment)


def _planned_memory(candidate: Candidate) -> str:
    """What each device may hold of the weights: the rest is for the KV cache and for the work on a prompt.

    Devices are those that the environment leaves, in their order. Main memory is not among them, so that a model
    that turns out too large is refused and not served from there at a thousandth of the speed.
    """
    device = candidate.memory.per_device
    room = device.usable_bytes - device.kv_cache_bytes - device.activations_bytes - device.runtime_bytes
    return ",".join(f"{place}={max(room, device.weights_bytes)}" for place in range(candidate.parallel.ranks))
