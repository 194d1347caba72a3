"""``autolaunch probe`` on every node of a Ray cluster at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import autolaunch
from autolaunch.cluster.answers import Answer, answered, dead, version_in
from autolaunch.cluster.given_out import with_given_out
from autolaunch.cluster.members import Member
from autolaunch.cluster.merging import merged
from autolaunch.cluster.ray_cluster import Cluster
from selector.hardware import HardwareReport

#: A host of eight GPUs answers in two seconds; one whose driver hangs never does.
PROBE_SECONDS = 90.0
VERSION_SECONDS = 45.0


def probe_cluster(
    address: str = "auto",
    *,
    cancelled: threading.Event | None = None,
    probe_seconds: float = PROBE_SECONDS,
    given_out: bool = False,
) -> HardwareReport:
    """One report of all nodes of a cluster; ``given_out``: GPUs that Ray has given to other work are held there.

    Raises:
        UsageError: the address is none.
        ClusterError: the cluster cannot be joined or was lost, or none of its nodes could be probed.
    """
    with Cluster(address, cancelled=cancelled) as cluster:
        members = cluster.members()
        answers = asked(cluster, members, probe_seconds=probe_seconds)
        alive = sum(each.alive for each in members)
        nodes = f"{alive:,} {'node' if alive == 1 else 'nodes'}"
        ray = f"Ray {cluster.ray_version} at {cluster.address}, {nodes}"
    report = merged(answers, ray=ray, version=autolaunch.__version__)
    return with_given_out(report, members) if given_out else report


def asked(cluster: Cluster, members: tuple[Member, ...], *, probe_seconds: float = PROBE_SECONDS) -> tuple[Answer, ...]:
    """What each member answers; of those that died, one word for each address where nobody else lives."""
    living = tuple(each for each in members if each.alive)
    with ThreadPoolExecutor(2) as both:  # a worker of Ray's takes longer to start than either to answer
        version = both.submit(cluster.ran, ("autolaunch", "--version"), on=living, timeout_seconds=VERSION_SECONDS)
        probed = both.submit(cluster.ran, ("autolaunch", "probe", "--json"), on=living, timeout_seconds=probe_seconds)
        try:
            versions = {ran.member.id: version_in(ran) for ran in version.result()}
            answers = [answered(ran.member, versions[ran.member.id], ran) for ran in probed.result()]
        except BaseException:
            cluster.close()  # and with it both of them, for which the pool waits
            raise
    # A host that was started again is in Ray's books twice, and one of an autoscaled cluster many times.
    taken = {(each.address, each.name) for each in living}
    for each in members:
        if not each.alive and (each.address, each.name) not in taken:
            taken.add((each.address, each.name))
            answers.append(dead(each))
    return tuple(answers)
