"""A launch has the nodes of its cluster made ready: joined for as long as that takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from autolaunch.cluster import preparing
from autolaunch.cluster.ray_cluster import Cluster
from autolaunch.server import LaunchEvent
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import Package
from selector.facts import ModelFacts


def prepare_nodes(
    cluster_address: str,
    plan: LaunchPlan,
    candidate: Candidate,
    *,
    model: ModelFacts,
    environment: Path,
    package: Package,
    folder: Path,
    home: Path,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    cancelled: threading.Event | None = None,
    began: float | None = None,
) -> None:
    """:func:`autolaunch.cluster.preparing.prepare_nodes` on the cluster at ``HOST:PORT`` of its head.

    Raises:
        ClusterError, EngineInstallError, DownloadError: as there, or the cluster cannot be joined.
    """
    with Cluster(cluster_address, cancelled=cancelled) as cluster:
        preparing.prepare_nodes(
            cluster,
            plan,
            candidate,
            model=model,
            environment=environment,
            package=package,
            folder=folder,
            home=home,
            on_event=on_event,
            cancelled=cancelled,
            began=began,
        )
