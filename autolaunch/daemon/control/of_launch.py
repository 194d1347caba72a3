"""A launch in the foreground, as the control API steers it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autolaunch.daemon.control.contract import Kind
from autolaunch.daemon.control.happened import Happened
from autolaunch.daemon.control.places import MOST_LAUNCHES, launch_socket
from autolaunch.daemon.journal import Event
from selector.errors import DaemonRunning, UsageError

if TYPE_CHECKING:
    from autolaunch.daemon.control.serve import Control
    from autolaunch.daemon.gateway.other_hosts import OtherHost
    from autolaunch.daemon.happenings import Tell
    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.server import LaunchEvent

#: Held while a launch of this process makes its socket; each has a loop, and a thread, of its own.
_BEGINNING = threading.Lock()


class SteeredLaunch:
    """:class:`autolaunch.daemon.control.steered.Steered` of a launch.

    Whoever launches hands it what is said (:meth:`tell`, :meth:`hear`, from any thread) and sets ``gateway_url`` when
    it is known. ``end`` is called on the loop when somebody has stopped the deployment: it begins the end of the
    launch, and does not wait for it.
    """

    kind: Kind = "launch"
    configuration_path: Path | None = None
    wrong: str | None = None
    hosts: tuple[OtherHost, ...] = ()

    def __init__(self, supervisors: Mapping[str, Supervisor], end: Callable[[], None]) -> None:
        self.supervisors = supervisors
        self.happened = Happened()
        self.started = datetime.now(UTC).replace(microsecond=0)
        self.gateway_url: str | None = None
        self._doing: dict[str, LaunchEvent] = {}
        self._end = end

    def say(self, event: Event) -> None:
        """Its terminal is its user's: it is only kept to be asked for."""
        self.happened.append(event)

    def tell(self, one: Supervisor, tell: Tell) -> None:
        """What the machine of a unit says."""
        figures = {"run": one.state.run, "reason": tell.reason, "seconds": tell.seconds, "hint": tell.hint}
        unit = one.state.deployment.key
        self.say(Event(level=tell.level, event=tell.name, message=tell.message, deployment=unit, figures=figures))

    def hear(self, unit: str, event: LaunchEvent) -> None:
        """What the launch of a unit says."""
        self._doing[unit] = event

    def requests(self, unit: str) -> int | None:
        one = self.supervisors.get(unit)
        return None if one is None else one.traffic.under_way

    def doing(self, unit: str) -> LaunchEvent | None:
        return self._doing.get(unit)

    def added(self, name: str) -> bool:  # noqa: ARG002 (a launch has one, and was told of it when it began)
        return False

    async def deploy(self, given: Mapping[str, object]) -> str:
        del given
        raise UsageError("a launch in the foreground takes no further deployment", hint="the daemon does")

    async def undeploy(self, name: str) -> None:
        raise UsageError(f"{name} is a launch in the foreground", hint=f"autolaunch stop {name} ends it")

    async def reload(self) -> str | None:
        """There is nothing to be read again; nobody gets to ask for it."""
        return "a launch has no configuration"

    def end(self) -> None:
        self._end()


def control_of(steered: SteeredLaunch, home: Path, number: int = 1) -> Control:
    """The control API of a launch of this process, the ``number``-th, not started yet."""
    from autolaunch.daemon.control.serve import Control  # it takes its time to be read in

    return Control(steered, launch_socket(os.environ, home, os.getpid(), number))


async def begun_control(steered: SteeredLaunch, home: Path) -> Control:
    """The control API of a launch of this process, answering; beside those of its other launches.

    Raises:
        ConfigurationError: there can be no socket there.
        DaemonRunning: there are too many launches in this process.
    """
    # One that is bound and does not listen yet would be taken for one that was left.
    await asyncio.get_running_loop().run_in_executor(None, _BEGINNING.acquire)
    try:
        for number in range(1, MOST_LAUNCHES):
            control = control_of(steered, home, number)
            try:
                await control.start()
            except DaemonRunning:
                await control.close()
                if number == MOST_LAUNCHES - 1:
                    raise
            else:
                return control
    finally:
        _BEGINNING.release()
    raise AssertionError("the last number returns or raises")
