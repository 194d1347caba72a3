"""A plan on the nodes of a Ray cluster: whose engine it is, where its ranks are, what its environment needs of Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from autolaunch.cluster.ray_cluster import Cluster
from engines.environments import python_request
from engines.over_nodes import OverNodes, network_environment
from selector.contract import Candidate
from selector.engine_facts import EngineFacts
from selector.errors import ClusterError, EngineInstallError, Unsupported
from selector.hardware import HardwareReport
from selector.values import Value

#: How long the devices of a plan are waited for: Ray gives those of an engine that has ended back within seconds.
DEVICES_SECONDS = 60.0
#: Ray clears away what belonged to a process that has ended; with its node, when the node is known to be dead.
CLEARED_SECONDS = 45.0
#: A head that hangs has nobody wait longer for it.
_ASKED_SECONDS = 15.0
_POLL_SECONDS = 0.5


class Place(Value, frozen=True, kw_only=True):
    """The cluster that an engine is launched on, and where in it.

    ``ray_version`` and ``python_version`` are the cluster's, which the engine's environment has to have. ``ranks`` are
    the nodes' addresses in the order of the ranks, ``environment`` is what they are told of the network.
    """

    address: str
    ray_version: str
    python_version: str
    here: str
    node: str
    ranks: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def over(self, mark: str) -> OverNodes:
        """As the engine's command has it; ``mark`` is the run's."""
        return OverNodes(
            address=self.address,
            ranks=self.ranks,
            here=self.here,
            group=group_of(mark),
            wait_seconds=DEVICES_SECONDS,
            environment=self.environment,
        )


def group_of(mark: str) -> str:
    """What the placement group of a run is called in Ray's books."""
    return f"autolaunch-{mark[:16]}"


def place_in(
    address: str,
    report: HardwareReport,
    candidate: Candidate,
    environ: Mapping[str, str],
    *,
    cancelled: threading.Event | None = None,
) -> Place:
    """Joins the cluster at ``address`` and says where ``candidate``, planned on ``report``, is in it.

    Raises:
        Unsupported: it is an engine, or a plan, that is not started there, or this host is no node of the cluster.
        UsageError: the address is none; ClusterError: the cluster cannot be joined.
    """
    if candidate.engine.name != "vllm":
        raise Unsupported(
            f"{candidate.engine.name} is not started on the nodes of a cluster, and vLLM is", hint="--engine vllm"
        )
    if not candidate.parallel.devices:
        raise Unsupported(
            "on the nodes of a cluster engines are started on GPUs, and the plan has none",
            hint=f"leave --nodes out to serve {candidate.checkpoint.repo} from this host's processor",
        )
    with Cluster(address, cancelled=cancelled) as cluster:
        here = next((each for each in cluster.members() if each.is_here), None)
        if here is None:
            raise Unsupported(
                f"this host is no node of the Ray cluster at {cluster.address}: from here it is probed and planned for",
                hint="on one of its nodes: autolaunch MODEL --nodes auto; or `ray start --address=HEAD:6379` here",
            )
        by_index = {each.index: each.node for each in report.accelerators}
        used = tuple(by_index[each] for each in candidate.parallel.devices[: candidate.parallel.ranks])
        nodes = {each.index: each for each in report.hosts}
        addresses = tuple(nodes[each].address if each in nodes else None for each in used)
        if None in addresses:
            raise ClusterError("the plan's nodes have no addresses: it was not made of this cluster")
        return Place(
            address=cluster.address,
            ray_version=cluster.ray_version,
            python_version=cluster.python_version,
            here=here.address,
            node=here.id,
            ranks=tuple(each for each in addresses if each is not None),
            environment=network_environment([nodes[each] for each in dict.fromkeys(used)], here.address, environ),
        )


def with_ray(facts: EngineFacts, place: Place) -> EngineFacts:
    """The engine with the cluster's Ray in its environments, which vLLM's own requirements do not bring.

    ``client``: without the packages of that extra Ray's agent on a node does not start.
    """
    wanted = f"ray[client]=={place.ray_version}"
    packages = tuple(
        msgspec.structs.replace(each, requirements=(*each.requirements, wanted)) for each in facts.packages
    )
    return msgspec.structs.replace(facts, packages=packages)


def refuse_other_python(place: Place) -> None:
    """That environments made here have another Python than the cluster.

    Raises:
        EngineInstallError: they have.
    """
    minor = ".".join(place.python_version.split(".")[:2])
    if minor != python_request():
        raise EngineInstallError(
            f"the cluster's Ray runs on Python {place.python_version}, and environments that are made here have "
            f"{python_request()}: their processes would not understand each other",
            hint=f"install autolaunch with Python {minor}, or give an environment that has Ray with --engine-path",
        )


def cleared(
    place: Place,
    group: str,
    *,
    timeout_seconds: float = CLEARED_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Waits until Ray has taken back what the engine with ``group`` had; what it has not, in words.

    A cluster that is not there any more, or cannot be asked, has nothing of it that could be known.
    """
    deadline = clock() + timeout_seconds
    try:
        with Cluster(place.address, join_seconds=_ASKED_SECONDS) as cluster:
            while group in (cluster.groups() or ()):
                if clock() >= deadline:
                    return (
                        f"Ray has not taken back the devices of the engine that has ended within "
                        f"{timeout_seconds:.0f} s: its placement group {group} is there still"
                    )
                sleep(_POLL_SECONDS)  # nobody tells of changes in Ray's books
    except ClusterError:
        return None
    return None
