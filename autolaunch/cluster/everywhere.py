"""What an engine needs on every node that its ranks are on: the same environment, and the weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from autolaunch.server import LaunchEvent
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import EngineFacts, Package


def prepare_nodes(
    cluster_address: str,
    plan: LaunchPlan,
    candidate: Candidate,
    *,
    environment: Path,
    package: Package,
    facts: EngineFacts,
    folder: Path,
    on_event: Callable[[LaunchEvent], None],
    cancelled: threading.Event | None,
) -> None:
    """The place where a launch has its nodes made ready. What is not on a node yet, vLLM's rank there says itself.

    Args:
        cluster_address: ``HOST:PORT`` of the head, of which this host is a node.
        plan: with the nodes, by :attr:`selector.hardware.HardwareReport.hosts`.
        candidate: what is started, on the devices that it has of them.
        environment: the engine's environment on this host.
        package: what is in it, the cluster's Ray included.
        facts: the engine, in the version that was planned.
        folder: the checkpoint on this host.
        on_event: is told how far it is.
        cancelled: set, it ends soon.

    Raises:
        EngineInstallError: the environment is not on a node.
        DownloadError: the weights are not.
    """
