"""A launch in the foreground, as the control API steers it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autolaunch.daemon.control.contract import Kind
from autolaunch.daemon.control.happened import Happened
from autolaunch.daemon.control.places import launch_socket
from autolaunch.daemon.control.serve import Control
from autolaunch.daemon.journal import Event

if TYPE_CHECKING:
    from autolaunch.daemon.happenings import Tell
    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.foreground import Foreground
    from autolaunch.server import LaunchEvent


class Steering:
    """:class:`autolaunch.daemon.control.steered.Steered` of a launch, and its control API, not started yet."""

    kind: Kind = "launch"

    def __init__(self, launch: Foreground, home: Path) -> None:
        self._launch = launch
        self.happened = Happened()
        self.started = datetime.now(UTC).replace(microsecond=0)
        self.control = Control(self, launch_socket(os.environ, home, os.getpid()))

    def tell(self, one: Supervisor, tell: Tell) -> None:
        """What a supervisor says, for whoever follows the events."""
        figures = {"run": one.state.run, "reason": tell.reason, "seconds": tell.seconds, "hint": tell.hint}
        self.happened.append(
            Event(
                level=tell.level,
                event=tell.name,
                message=tell.message,
                deployment=one.state.deployment.key,
                figures={name: value for name, value in figures.items() if value is not None},
            )
        )

    @property
    def supervisors(self) -> Mapping[str, Supervisor]:
        return self._launch.supervisors

    @property
    def configuration_path(self) -> Path | None:
        return None

    @property
    def wrong(self) -> str | None:
        return None

    @property
    def gateway_url(self) -> str | None:
        return self._launch.base_url

    def requests(self, unit: str) -> int | None:
        one = self._launch.supervisors.get(unit)
        return None if one is None else one.traffic.under_way

    def doing(self, unit: str) -> LaunchEvent | None:
        return self._launch.doing.get(unit)

    async def reload(self) -> str | None:
        return "a launch has no configuration to be read again"

    def end(self) -> None:
        self._launch.end()
