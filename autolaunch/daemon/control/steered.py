"""What is steered over the control socket: the daemon, or a launch in the foreground."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autolaunch.daemon.control.contract import Kind

if TYPE_CHECKING:
    from autolaunch.daemon.control.happened import Happened
    from autolaunch.daemon.gateway.other_hosts import OtherHost
    from autolaunch.daemon.journal import Event
    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.server import LaunchEvent


class Steered(Protocol):
    """All of it is used on the loop that the supervisors are on."""

    @property
    def kind(self) -> Kind:
        """What it is; a launch ends when its deployment is stopped."""
        ...

    @property
    def supervisors(self) -> Mapping[str, Supervisor]:
        """By the names of units: several are of one deployment where it has replicas."""
        ...

    @property
    def happened(self) -> Happened:
        """What its events are; everything that is said is among them."""
        ...

    def say(self, event: Event) -> None:
        """Says it where such things are said, and adds it to what has happened."""
        ...

    @property
    def started(self) -> datetime: ...

    @property
    def configuration_path(self) -> Path | None:
        """The file that it was told by, where there is one."""
        ...

    @property
    def wrong(self) -> str | None:
        """What is wrong with the configuration as the file has it now, where an older one holds."""
        ...

    @property
    def gateway_url(self) -> str | None:
        """Where clients ask (``http://127.0.0.1:8000/v1``)."""
        ...

    @property
    def hosts(self) -> tuple[OtherHost, ...]:
        """Other hosts that the gateway sends requests to."""
        ...

    def requests(self, unit: str) -> int | None:
        """How many requests are under way at a unit."""
        ...

    def doing(self, unit: str) -> LaunchEvent | None:
        """What a launch said last: how far it is with weights, environment and load."""
        ...

    def added(self, name: str) -> bool:
        """Whether a deployment was added while it runs, and is none of the configuration."""
        ...

    async def deploy(self, given: Mapping[str, object]) -> str:
        """Adds a deployment, as the configuration would have it; its name.

        Raises:
            AutolaunchError: it cannot be.
        """
        ...

    async def undeploy(self, name: str) -> None:
        """Ends and forgets one that was added.

        Raises:
            AutolaunchError: it cannot be.
        """
        ...

    async def reload(self) -> str | None:
        """Reads the configuration again; what is wrong with it, if anything: the old one holds then."""
        ...

    def end(self) -> None:
        """Begins to end all of it; only a launch is asked to."""
        ...
