"""The seam between deciding and running: what autolaunch must know of an engine, and nothing more.

An engine module builds a command token by token and tells how its server behaves. It starts nothing:
processes, health and supervision are ``autolaunch.daemon``'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from engines.over_nodes import OverNodes
from selector.contract import Candidate, Command, EngineChoice
from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError
from selector.facts import EngineName, ModelFacts, Parsers
from selector.hardware import Accelerator, HardwareReport
from selector.values import Value

#: The variable by which a vendor's runtime is told its devices. Apple's has none: there is one GPU.
_VISIBLE = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "HIP_VISIBLE_DEVICES"}


class Serving(Value, frozen=True, kw_only=True):
    """Where and as what a command serves.

    ``model`` is what the engine is told to load: a hub id in a plan, a local folder at launch (or its
    last part, with ``working_directory`` set to the parent, for engines that answer to nothing but the
    name they were started with). ``executable_directory`` is the ``bin`` of the engine's environment;
    ``None`` leaves bare names, as a plan shows them. ``devices`` are the first replica's, ``visible``
    what the vendor's runtime calls them (:func:`visible_devices`). With ``dummy_weights`` the engine makes them up
    (vLLM and SGLang). ``api_key`` goes to the engine by
    :meth:`Engine.secrets` alone: it is in no command, and not in the ``repr`` of this value. ``over`` are the nodes of
    a cluster that it is launched on.
    """

    model: str
    served_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    executable_directory: str | None = None
    devices: tuple[Accelerator, ...] = ()
    visible: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    dummy_weights: bool = False
    api_key: str | None = None
    over: OverNodes | None = None

    def __repr__(self) -> str:
        shown = (name for name in self.__struct_fields__ if name != "api_key")
        return f"Serving({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def executable(self, name: str) -> str:
        """The path of a program of the environment, or its bare name in a plan."""
        return name if self.executable_directory is None else f"{self.executable_directory}/{name}"


class Behaviour(Value, frozen=True, kw_only=True):
    """What a client of this engine's server has to know.

    ``names_itself_by_path`` engines answer only to the string they were started with, so they are started
    in the model folder's parent under the served name. Engines that check an API key of their own are given it in the
    variable ``key_variable``: what stands in a command is everybody's to read. The ranks of an engine that gives its
    processes titles begin with one of ``worker_titles``: when one of them ends, the engine is no use any more.
    ``sockets_variable`` names the folder of the sockets by which an engine's own processes talk, and which trust
    whoever reaches them.
    """

    names_itself_by_path: bool = False
    key_variable: str | None = None
    worker_titles: tuple[str, ...] = ()
    sockets_variable: str | None = None


class Engine(ABC):
    """One inference engine."""

    name: ClassVar[EngineName]
    behaviour: ClassVar[Behaviour] = Behaviour()

    @abstractmethod
    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        """The argv and environment of one replica, rank 0's host.

        Every value is one token. The environment holds only what this engine needs set; it is laid over
        the caller's. No secret is in it (:meth:`secrets`).
        """

    def secrets(self, serving: Serving) -> dict[str, str]:
        """What the process is given in its environment and nobody is shown: it is laid over the command's own."""
        variable = self.behaviour.key_variable
        return {} if variable is None or serving.api_key is None else {variable: serving.api_key}


def common_environment(candidate: Candidate, serving: Serving) -> dict[str, str]:
    """What every engine is given: no hub traffic while serving, and the first replica's devices.

    A launch serves a local folder and is cut off from the hub; the command that a plan shows may fetch. Over several
    nodes the devices are Ray's to give.
    """
    launched = serving.executable_directory is not None
    environment = {"HF_HUB_OFFLINE": "1"} if launched else {}
    if candidate.parallel.nodes > 1 or serving.over is not None or not serving.visible:
        return environment
    variable = _VISIBLE.get(serving.devices[0].vendor) if serving.devices else None
    if variable is None:
        return environment
    if variable == "CUDA_VISIBLE_DEVICES" and serving.visible[0].isdigit():
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environment[variable] = ",".join(serving.visible)
    return environment


def rank_environment(candidate: Candidate) -> dict[str, str]:
    """Settings of the processes that share one replica's work, for engines with a process a rank.

    On one node Gloo, which PyTorch's ranks use beside NCCL, is kept on the loopback. By itself it takes the address
    that the host's name resolves to: its ports, which ask nobody for a key, would be open to the network, and where the
    name resolves to no address of this host the ranks do not find each other
    (https://docs.pytorch.org/docs/stable/distributed.html, GLOO_SOCKET_IFNAME; the failure:
    https://github.com/vllm-project/vllm/issues/7074).

    Nothing else is set. NCCL asks the driver which GPUs reach each other and how; vLLM 0.33 and SGLang 0.5.23 choose
    threads (``OMP_NUM_THREADS``) and NCCL's switches themselves when they start their ranks; and
    ``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`` is refused by vLLM 0.33 beside parts of it
    (``vllm/config/vllm.py``). Whoever wants one of those sets it: an engine gets the caller's environment.
    """
    parallel = candidate.parallel
    return {"GLOO_SOCKET_IFNAME": "lo"} if parallel.nodes == 1 and parallel.ranks > 1 else {}


def visible_devices(report: HardwareReport, devices: tuple[Accelerator, ...], *, launched: bool) -> tuple[str, ...]:
    """What the vendor's runtime calls ``devices``, in the order of the ranks.

    A launch names them by UUID where the driver tells them: an index means another card as soon as a variable
    reorders them. A MIG slice has no other name. A plan shows indices as the vendor counts them on that node, which
    is not the report's count over vendors and nodes.
    """
    sliced = any(device.mig_parent_uuid is not None for device in devices)
    uuids = tuple(device.uuid for device in devices if device.uuid is not None)
    if (launched or sliced) and len(uuids) == len(devices):
        return uuids
    return tuple(str(device.index - _first_index(report, device)) for device in devices)


def _first_index(report: HardwareReport, device: Accelerator) -> int:
    """Where the report's count of this vendor's devices on this node begins. (On one node NVML's own index is kept.)"""
    if device.vendor == "nvidia" and device.node == 0:
        return 0
    alike = (each.index for each in report.accelerators if (each.vendor, each.node) == (device.vendor, device.node))
    return min(alike, default=0)


def parsers(model: ModelFacts, engine: EngineName) -> Parsers | None:
    """What this engine calls the parsers of the model's tool calls and reasoning, if a profile tells."""
    return next((each for each in model.parsers if each.engine == engine), None)


def planned_package(facts: EngineFacts, chosen: EngineChoice) -> tuple[EngineFacts, Package]:
    """The environment that a plan names, in the version that it names (the profile's, or a pinned one).

    Raises:
        EngineInstallError: the profile has no such environment.
    """
    for package in facts.packages:
        if package.name == chosen.package:
            return (
                msgspec.structs.replace(facts, version=chosen.version),
                of_version(facts, package, chosen.version),
            )
    raise EngineInstallError(f"{facts.name} has no environment called {chosen.package!r}")


def of_version(facts: EngineFacts, package: Package, version: str) -> Package:
    """A package with the engine in ``version`` instead of the profile's.

    Raises:
        EngineInstallError: its requirement counts otherwise than the engine (a wheel of llama.cpp's build b11549).
    """
    known, first = package.version or facts.version, package.requirements[0]
    if version == known:
        return package
    if f"=={known}" not in first:
        raise EngineInstallError(
            f"{package.name} {version} cannot be installed by its version: autolaunch takes {known}",
            hint="one that is installed already is used with --engine-path",
        )
    changed = first.replace(f"=={known}", f"=={version}", 1)
    return msgspec.structs.replace(package, requirements=(changed, *package.requirements[1:]))


def first_replica(report: HardwareReport, candidate: Candidate) -> tuple[Accelerator, ...]:
    """The first replica's devices, in the order of its ranks."""
    by_index = {device.index: device for device in report.accelerators}
    indices = candidate.parallel.devices[: candidate.parallel.ranks]
    return tuple(by_index[index] for index in indices if index in by_index)
