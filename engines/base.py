"""The seam between deciding and running: what autolaunch must know of an engine, and nothing more.

An engine module builds a command token by token and tells how its server behaves. It starts nothing:
processes, health and supervision are ``autolaunch.daemon``'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from selector.contract import Candidate, Command
from selector.facts import EngineName, ModelFacts
from selector.values import Value


class Serving(Value, frozen=True, kw_only=True):
    """Where and as what a command serves.

    ``model`` is what the engine is told to load: a hub id in a plan, a local folder at launch (or its
    last part, with ``working_directory`` set to the parent, for engines that answer to nothing but the
    name they were started with). ``executable_directory`` is the ``bin`` of the engine's environment;
    ``None`` leaves bare names, as a plan shows them.
    """

    model: str
    served_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    executable_directory: str | None = None
    extra: tuple[str, ...] = ()

    def executable(self, name: str) -> str:
        """The path of a program of the environment, or its bare name in a plan."""
        return name if self.executable_directory is None else f"{self.executable_directory}/{name}"


class Behaviour(Value, frozen=True, kw_only=True):
    """What a client of this engine's server has to know.

    ``names_itself_by_path`` engines answer only to the string they were started with, so they are started
    in the model folder's parent under the served name. ``ends_stream_with_done`` is false where the
    stream of server-sent events just ends. ``takes_key`` engines check an API key of their own.
    """

    health_path: str = "/health"
    names_itself_by_path: bool = False
    ends_stream_with_done: bool = True
    takes_key: bool = False


class Engine(ABC):
    """One inference engine."""

    name: ClassVar[EngineName]
    behaviour: ClassVar[Behaviour] = Behaviour()
    #: Whether this release starts it (a plan and its command are given for all of them).
    starts: ClassVar[bool] = False

    @abstractmethod
    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        """The argv and environment of one replica, rank 0's host.

        Every value is one token. The environment holds only what this engine needs set; it is laid over
        the caller's.
        """


def common_environment(candidate: Candidate, uuids: tuple[str | None, ...] = ()) -> dict[str, str]:
    """What every engine is given: no hub traffic while serving, and the first replica's devices.

    ``uuids`` are the devices' UUIDs in the order of ``candidate.parallel.devices``, where the driver knows
    them; without them devices go by index.
    """
    environment = {"HF_HUB_OFFLINE": "1"}
    devices = candidate.parallel.devices[: candidate.parallel.ranks]
    if devices:
        known = [uuid for uuid in uuids[: len(devices)] if uuid is not None]
        names = known if len(known) == len(devices) else [str(device) for device in devices]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    return environment
