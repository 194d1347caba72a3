"""An engine over several nodes of a Ray cluster: where its ranks are, by which interface they talk, what they are told.

Gloo takes one name for all ranks, and one that a node has not ends its rank there (``GLOO_SOCKET_IFNAME``,
https://docs.pytorch.org/docs/stable/distributed.html); it is set where all nodes call theirs the same. Elsewhere each
node tells its own: what ``ray start`` had in its environment there wins over what the engine hands on. NCCL takes a
list, of which a node uses those that it has (``NCCL_SOCKET_IFNAME``, ``=`` for whole names; ``NCCL_IB_HCA`` likewise:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from selector.hardware import Node
from selector.values import Value

#: What a cluster with authentication asks of whoever joins it.
CLUSTER_TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable
#: The file in VLLM_CONFIG_ROOT by whose names vLLM leaves variables with its driver (vllm/ray/ray_env.py, 0.32).
KEPT_BACK_FILE = "ray_non_carry_over_env_vars.json"
#: What of the head's environment is for the ranks, beside what the command itself sets: settings of theirs.
_FOR_RANKS = ("VLLM_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "CUDA_", "UCX_", "OMP_", "HF_HUB_OFFLINE", "RAY_")
#: Of those what is the head's alone: its key, its folders, its address, its way into the cluster.
_HEADS = (
    "VLLM_API_KEY",
    "VLLM_CONFIG_ROOT",
    "VLLM_RPC_BASE_PATH",
    "VLLM_HOST_IP",
    "CUDA_VISIBLE_DEVICES",
    CLUSTER_TOKEN,
)
_LOOPBACK = "lo"


class OverNodes(Value, frozen=True, kw_only=True):
    """Where a Ray cluster runs the ranks of one engine.

    ``address`` is ``HOST:PORT`` of the cluster's head, ``ranks`` the address of each rank's node in the order of the
    ranks, ``here`` that of the host whose engine it is. ``group`` names Ray's placement group, ``wait_seconds`` is how
    long its devices are waited for. ``environment`` is what the ranks and the server need set
    (:func:`network_environment`).
    """

    address: str
    ranks: tuple[str, ...]
    here: str
    group: str
    wait_seconds: float = 60.0
    environment: tuple[tuple[str, str], ...] = ()


def network_environment(nodes: Iterable[Node], here: str, environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The interfaces by which ``nodes`` reach each other: those that hold their addresses; what ``environ`` has stays.

    ``here`` is the address of the host whose engine it is. What is not known is not set: NCCL and Gloo look then.
    """
    every = tuple(nodes)
    found = {"VLLM_HOST_IP": here}
    names = [interface_of(each) for each in every]
    known = sorted({each for each in names if each is not None})
    if known and None not in names:
        found["NCCL_SOCKET_IFNAME"] = "=" + ",".join(known)
        if len(known) == 1:
            found["GLOO_SOCKET_IFNAME"] = known[0]
    adapters = sorted({device for each in every for device in _adapters(each)})
    if adapters:
        found["NCCL_IB_HCA"] = "=" + ",".join(adapters)
    return tuple((name, value) for name, value in found.items() if name == "VLLM_HOST_IP" or name not in environ)


def interface_of(node: Node) -> str | None:
    """What the node calls the interface that holds its address; ``None`` where that is not known."""
    if node.address is None:
        return None
    from ipaddress import ip_address  # no plan needs it, and every plan is made with this module

    try:
        address = ip_address(node.address)
    except ValueError:
        return None
    if address.is_loopback:  # a cluster on one machine: no probe tells of that interface
        return _LOOPBACK
    for port in node.network:
        if any(ip_address(each) == address for each in port.addresses):
            return port.interface
    return None


def _adapters(node: Node) -> tuple[str, ...]:
    """InfiniBand's, of a node that has other RDMA beside it: NCCL would join both, as if they were one network."""
    kinds = {port.kind for port in node.network if port.device is not None}
    if kinds != {"infiniband", "roce"}:
        return ()
    return tuple(port.device for port in node.network if port.device is not None and port.kind == "infiniband")


def kept_back(environment: Iterable[str], command: Iterable[str]) -> tuple[str, ...]:
    """The variables of the server's ``environment`` that its ranks on other nodes are not to have.

    vLLM would hand all of them on: keys, and paths that only this host has. ``command`` are those that the command
    itself sets.
    """
    ours = frozenset(command)
    names = {*environment, *_HEADS}
    return tuple(
        sorted(name for name in names if name in _HEADS or (name not in ours and not name.startswith(_FOR_RANKS)))
    )
