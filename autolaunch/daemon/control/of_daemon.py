"""The daemon, as the control API steers it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autolaunch.daemon.control.contract import Kind
from autolaunch.daemon.control.happened import Happened
from autolaunch.daemon.control.places import daemon_socket
from autolaunch.daemon.control.serve import Control
from selector.errors import AutolaunchError, NotServing

if TYPE_CHECKING:
    from autolaunch.daemon.deployed import Entry
    from autolaunch.daemon.gateway.other_hosts import OtherHost
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

    @property
    def hosts(self) -> tuple[OtherHost, ...]:
        return self._daemon.face.hosts.all

    def requests(self, unit: str) -> int | None:
        one = self._daemon.supervisors.get(unit)
        return None if one is None else one.traffic.under_way

    def doing(self, unit: str) -> LaunchEvent | None:
        return self._daemon.doing.get(unit)

    def added(self, name: str) -> bool:
        return any(one.deployment.name == name for one in self._daemon.deployed.entries)

    async def deploy(self, given: Mapping[str, object]) -> str:
        daemon = self._daemon
        names: list[str] = []

        def entries() -> tuple[Entry, ...]:
            added = daemon.deployed.added(given, daemon.configuration)
            names.append(added.deployment.name)
            return (*daemon.deployed.entries, added)

        await self._change(entries)
        return names[0]

    async def undeploy(self, name: str) -> None:
        await self._change(lambda: self._daemon.deployed.without(name))

    async def _change(self, entries: Callable[[], tuple[Entry, ...]]) -> None:
        """Has ``entries`` be what is kept up beside the configuration; what cannot be leaves all as it was."""
        daemon = self._daemon
        async with daemon.reading:
            if daemon.ending:
                raise NotServing("it is ending")
            old, before = daemon.deployed.entries, dict(daemon.host.shares)
            new = await asyncio.to_thread(entries)
            await asyncio.to_thread(daemon.deployed.write, new)
            try:
                await daemon.divide(daemon.deployed.beside(daemon.configuration))
            except AutolaunchError:
                await asyncio.to_thread(daemon.deployed.write, old)
                raise
            await daemon.take_over(before)

    async def reload(self) -> str | None:
        return await self._daemon.reload()

    def end(self) -> None:
        """A daemon is ended by its keeper, not over its socket."""


def control_of(daemon: Daemon) -> Control:
    """The control API of a daemon, not started yet."""
    return Control(SteeredDaemon(daemon), daemon_socket(os.environ, daemon.home))
