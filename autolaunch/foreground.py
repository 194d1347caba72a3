"""One deployment kept up inside a program: the daemon's supervisors, for a caller that waits for things one by one.

The loop runs in a thread of its own; everything here may be called from the program's own thread. Where clients are to
reach it, the gateway and the control socket are the daemon's too; they are read in while the engine loads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from autolaunch.daemon import machine
from autolaunch.daemon.control.of_launch import SteeredLaunch, control_of
from autolaunch.daemon.deployment import Deployment, Fault
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.hands import Hands, Run
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.loop import new_loop, take_files
from autolaunch.daemon.machine import State
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.server import LaunchEvent, Server
from selector.errors import AutolaunchError, EngineError
from selector.values import Value

if TYPE_CHECKING:
    import socket

    from autolaunch.daemon.control.serve import Control
    from autolaunch.daemon.gateway.face import Face

#: How long a wait lasts before a signal is looked for; a thread that waits without end is deaf to them.
_LOOK_SECONDS = 0.25
#: The gateway opens when an engine's process is there, and at the latest after this: a download may take hours.
OPEN_SECONDS = 1.0


class Reach(Value, frozen=True, kw_only=True):
    """Where clients and commands reach a launch. ``home`` may hold the control socket."""

    gateway: GatewayOptions
    home: Path


class Foreground:
    """A deployment that is kept up until it is stopped. As a context manager it stops when left.

    Args:
        engines: its engines, one or a replica each, and who starts them.
        on_tell: called from the supervisors' thread with what is to be said.
        reach: where it is reached; ``None``: by nobody but the caller, at the engine itself.
        listening: a socket that listens at the gateway's address already.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engines: Sequence[tuple[Deployment, Hands]],
        on_tell: Callable[[Tell], None] = lambda _: None,
        *,
        reach: Reach | None = None,
        listening: socket.socket | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = threading.Condition()
        self._loop = new_loop()
        self._on_tell = on_tell
        self._reach = reach
        self._listening = listening
        self.supervisors = {
            deployment.key: Supervisor(
                deployment, hands, on_change=self._changed_state, on_tell=self._tell, clock=clock
            )
            for deployment, hands in engines
        }
        self._steered = SteeredLaunch(self.supervisors, self.end)
        self._first = next(iter(self.supervisors.values()))
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._opening: asyncio.Task[None] | None = None
        self._face: Face | None = None
        self._control: Control | None = None
        self._shut: AutolaunchError | None = None
        self._stopped = False
        self._asked_to_end = False

    def start(self) -> None:
        """Plans, prepares and starts, in the background."""
        self._thread.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def state(self) -> State:
        """Where it is: the first engine that serves, or the first."""
        states = [one.state for one in self.supervisors.values()]
        return next((each for each in states if each.phase in machine.SERVING), states[0])

    @property
    def base_url(self) -> str:
        """Where clients ask: the gateway, or the engine itself where there is none."""
        return self.server.base_url if self._face is None else self._face.base_url

    @property
    def server(self) -> Server:
        """The engine that runs, or the last that did; of several one that serves.

        Raises:
            EngineError: none was started yet.
        """
        serving = [one for one in self.supervisors.values() if one.state.phase in machine.SERVING]
        server = (serving or [self._first])[0].run.server
        if server is None:
            raise EngineError("no engine was started yet")
        return server

    @property
    def run(self) -> Run:
        """What was planned and prepared for the engine that serves, or for the last that was started."""
        serving = [one for one in self.supervisors.values() if one.state.phase in machine.SERVING]
        return (serving or [self._first])[0].run

    def wait_ready(self) -> Server:
        """Waits for the first tokens; the ladder's steps are taken meanwhile, but nothing is tried again unchanged.

        Of several engines all have to serve or to have failed: one that serves is enough.

        Raises:
            AutolaunchError: why it does not serve.
        """
        settled = (*machine.SERVING, "failed", "backing off")
        self._wait(
            lambda: (
                self._shut is not None
                or self._asked_to_end
                or (self._is_open() and all(one.state.phase in settled for one in self.supervisors.values()))
            )
        )
        if self._shut is not None:
            raise self._shut
        if self.state.phase not in machine.SERVING:
            raise EngineError("it was asked to end") if self._asked_to_end else self._error(self._first)
        return self.server

    def wait_ended(self) -> None:
        """Waits while it is kept up; returns when somebody asked for its end over the control socket.

        Raises:
            AutolaunchError: it was given up on.
        """
        self._wait(lambda: self._asked_to_end or all(one.state.phase == "failed" for one in self.supervisors.values()))
        if not self._asked_to_end:
            raise self._error(self._first)

    def hear(self, key: str, event: LaunchEvent) -> None:
        """What the launch of an engine says, by the key of its deployment. From any thread."""
        self._steered.hear(key, event)

    def end(self) -> None:
        """Has ``wait_ended`` return. From any thread."""
        self._asked_to_end = True
        self._notify()

    def stop(self) -> None:
        """Ends the engines and all they started, within the grace time and a bound.

        Raises:
            EngineError: processes are left that would not end; they are named.
        """
        if self._stopped:
            return
        self._stopped = True
        if not self._thread.is_alive():
            if self._listening is not None:
                self._listening.close()
            return
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        for one in self.supervisors.values():
            fault = one.state.fault
            if fault is not None and fault.reason == "processes left":
                raise EngineError(fault.message, hint=fault.hint)

    # --- on the loop ------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._begin)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def _begin(self) -> None:
        for one in self.supervisors.values():
            one.begin()
        if self._reach is not None:
            self._loop.call_later(OPEN_SECONDS, self._open_soon)

    async def _close(self) -> None:
        await asyncio.gather(*(one.close() for one in self.supervisors.values()))
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        # After the engines: whose answers they break off are told so.
        if self._face is not None:
            await self._face.close()
        elif self._listening is not None:
            self._listening.close()
        if self._control is not None:
            await self._control.close()

    def _open_soon(self) -> None:
        if self._reach is not None and self._opening is None and not self._stopped:
            self._opening = self._loop.create_task(self._open(self._reach))

    async def _open(self, reach: Reach) -> None:
        take_files()
        # What they are made of takes a tenth of a second to be read in, which nothing here has to wait for.
        await self._loop.run_in_executor(None, _read_in)
        from autolaunch.daemon.gateway.face import Face

        try:
            face = Face(reach.gateway, self.supervisors, on_fault=self._fault)
            listening, self._listening = self._listening, None
            await face.start(listening)
            self._face = face
            self._steered.gateway_url = face.base_url
            self._control = control_of(self._steered, reach.home)
            await self._control.start()
        except AutolaunchError as error:
            self._shut = error
        self._notify()

    def _is_open(self) -> bool:
        return self._reach is None or (self._opening is not None and self._opening.done())

    def _changed_state(self, one: Supervisor) -> None:
        if one.state.phase not in ("planned", "preparing"):
            self._open_soon()
        if self._face is not None:
            self._face.changed(one)
        self._notify()

    def _tell(self, one: Supervisor, tell: Tell) -> None:
        if self._face is not None:
            self._face.tell(one, tell)
        self._steered.tell(one, tell)
        self._on_tell(tell)

    def _fault(self, error: BaseException) -> None:
        message = f"a fault of autolaunch, not of yours: {type(error).__name__}: {error}"
        self._on_tell(Tell(name="internal", level="error", message=message))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, true: Callable[[], bool]) -> None:
        with self._changed:
            while not true():
                self._changed.wait(_LOOK_SECONDS)

    def _error(self, one: Supervisor) -> Exception:
        known = one.run.error
        fault = one.state.fault
        if fault is None:
            return EngineError("it was given up on")
        if known is not None and known.message == fault.message:
            return known
        return EngineError(fault.message, hint=_with_lines(fault))


def _read_in() -> None:
    from autolaunch.daemon.control import serve  # noqa: F401 - read in, for whoever imports it next
    from autolaunch.daemon.gateway import face  # noqa: F401 - as above


def _with_lines(fault: Fault) -> str | None:
    lines = "\n".join(fault.lines[-12:])
    if not lines:
        return fault.hint
    return f"{fault.hint}\nthe last lines:\n{lines}" if fault.hint else f"the last lines:\n{lines}"
