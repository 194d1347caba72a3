"""The daemon, as the control API steers it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autolaunch.daemon.control.contract import Kind
from autolaunch.daemon.control.happened import Happened
from autolaunch.daemon.control.places import daemon_socket
from autolaunch.daemon.control.serve import Control

if TYPE_CHECKING:
    from autolaunch.daemon.journal import Event
    from autolaunch.daemon.serve import Daemon
    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.server import LaunchEvent


class SteeredDaemon:
    """:class:`autolaunch.daemon.control.steered.Steered` of a daemon, which hears all that its journal is told."""

    kind: Kind = "daemon"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.happened = Happened()
        self.started = datetime.now(UTC).replace(microsecond=0)
        daemon.report.journal.heard = self.happened.append

    def say(self, event: Event) -> None:
        self._daemon.report.journal.tell(event)

    @property
    def supervisors(self) -> Mapping[str, Supervisor]:
        return self._daemon.supervisors

    @property
    def configuration_path(self) -> Path:
        return self._daemon.path

    @property
    def wrong(self) -> str | None:
        return self._daemon.report.wrong

    @property
    def gateway_url(self) -> str | None:
        return self._daemon.face.base_url

    def requests(self, unit: str) -> int | None:
        one = self._daemon.supervisors.get(unit)
        return None if one is None else one.traffic.under_way

    def doing(self, unit: str) -> LaunchEvent | None:
        return self._daemon.doing.get(unit)

    async def reload(self) -> str | None:
        return await self._daemon.reload()

    def end(self) -> None:
        """A daemon is ended by its keeper, not over its socket."""


def control_of(daemon: Daemon) -> Control:
    """The control API of a daemon, not started yet."""
    return Control(SteeredDaemon(daemon), daemon_socket(os.environ, daemon.home))
