"""A deployment on the nodes of a cluster, as its configuration wishes it."""

from __future__ import annotations

from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.wrong_key import WrongKey, at


def checked_nodes(key: str, each: Deployment) -> None:
    """That ``nodes`` of the entry ``key`` is an address, and goes with the rest of it.

    Raises:
        WrongKey: it does not.
    """
    from autolaunch.cluster.addresses import address_of  # most have none

    with at(f"{key}.nodes"):
        address = address_of(each.nodes or "", {}, named="")
    if address.kind == "client":
        raise WrongKey(
            f"{key}.nodes",
            f"{address} is the way in from outside, and engines are started from one of the nodes",
            'nodes = "auto" is the cluster that this host is of',
        )
    if each.lock is not None:
        raise WrongKey(f"{key}.lock", "keeps a launch on one machine, and nodes is about all of a cluster")
    if (each.pinned.data_parallel or 1) > 1:
        raise WrongKey(
            f"{key}.pinned.data_parallel", "is for one host: on the nodes of a cluster one engine is started"
        )
    if each.pinned.engine not in (None, "vllm"):
        raise WrongKey(f"{key}.pinned.engine", f"{each.pinned.engine} is not started on a cluster's nodes: vllm is")
