"""A plan put together with all that keeps it up on this machine: what the command line and the Python API start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from autolaunch import api
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.hands import Hands
from autolaunch.daemon.host import Host
from autolaunch.daemon.leases import Leases
from autolaunch.daemon.ports import listening_socket
from autolaunch.daemon.store import Store
from autolaunch.foreground import Foreground
from autolaunch.reach import Reach

if TYPE_CHECKING:
    from autolaunch.daemon.happenings import Tell
    from autolaunch.server import LaunchEvent
    from selector.catalog import Catalog
    from selector.contract import LaunchPlan


def kept_up(
    decided: LaunchPlan,
    deployment: Deployment,
    *,
    known: Catalog,
    home: Path,
    reach: Reach | None,
    on_event: Callable[[str, LaunchEvent], None],
    on_tell: Callable[[Tell], None],
) -> Foreground:
    """``deployment`` as its plan of just now has it, not started yet; its address is held from here on.

    Args:
        decided: the plan of ``deployment``, with a chosen candidate.
        deployment: what was asked for; what is planned after a failure is planned of it.
        known: the catalogue.
        home: holds engines, miniatures, logs, leases, and what was learned.
        reach: where it is reached, port 0 at a free one; ``None``: by nobody but the caller, at the engine itself.
        on_event: what the launch of an engine says, with the key of its deployment; from the engines' threads.
        on_tell: what the supervisors say, from their thread.

    Raises:
        PortTaken, UsageError: the address.
    """
    host = Host(known, api.probe)
    leases, store = Leases(home / "leases"), Store(home / "learned.sqlite3")
    listening = None
    if reach is not None:
        listening = listening_socket(reach.gateway.host, reach.gateway.port)
        gateway = replace(reach.gateway, port=int(listening.getsockname()[1]))
        reach = replace(reach, gateway=gateway)

    def hands(one: Deployment) -> Hands:
        def hear(event: LaunchEvent) -> None:
            found.hear(one.key, event)
            on_event(one.key, event)

        return Hands(home=home, catalog=known, planner=host, store=store, leases=leases, on_event=hear)

    engines = [(each, hands(each)) for each in host.deal(deployment, decided)]
    found = Foreground(engines, on_tell, reach=reach, listening=listening)
    return found
