"""One deployment kept up inside a program: the daemon's supervisors, for a caller that waits for things one by one.

The loop runs in a thread of its own; everything here may be called from the program's own thread. Where clients are to
reach it, the gateway and the control socket are the daemon's too; they are read in while the engine loads.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from autolaunch.daemon import machine
from autolaunch.daemon.control.of_launch import SteeredLaunch, begun_control
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.faults import error_of
from autolaunch.daemon.hands import Hands, Run
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.loop import new_loop, take_files
from autolaunch.daemon.machine import State
from autolaunch.daemon.ports import Address
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.daemon.threads import DaemonThreads
from autolaunch.server import LaunchEvent, Server
from selector.errors import AutolaunchError, EngineError, WaitTimedOut

if TYPE_CHECKING:
    import socket

    from autolaunch.daemon.control.serve import Control
    from autolaunch.daemon.gateway.face import Face
    from autolaunch.reach import Reach

#: How long a wait lasts before a signal is looked for; a thread that waits without end is deaf to them.
_LOOK_SECONDS = 0.25
#: The gateway opens when an engine's process is there, and at the latest after this: a download may take hours.
OPEN_SECONDS = 1.0


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
        self._hands = DaemonThreads("launch")
        self.supervisors = {
            deployment.key: Supervisor(
                deployment,
                hands,
                executor=self._hands,
                on_change=self._changed_state,
                on_tell=self._tell,
                clock=clock,
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
        self._stopping = threading.Lock()
        self._stopped = self._over = self._rests = False
        self._asked_to_end = False
        self._following: set[Callable[[], None]] = set()

    def start(self) -> None:
        """Plans, prepares and starts, in the background."""
        self._thread.start()
        atexit.register(self._at_exit)

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
    def address_url(self) -> str | None:
        """Where clients will ask, also before the gateway is open; ``None`` where they are to ask the engine."""
        if self._reach is None:
            return None
        return Address(host=self._reach.gateway.host, port=self._reach.gateway.port).base_url

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

    def wait_ready(self, timeout_seconds: float | None = None) -> Server:
        """Waits for the first tokens; the ladder's steps are taken meanwhile, but nothing is tried again unchanged.

        Of several engines all have to serve or to have failed: one that serves is enough.

        Raises:
            WaitTimedOut: it took longer; it goes on.
            AutolaunchError: why it does not serve.
        """
        if not self.wait_until(lambda: self.settled, timeout_seconds):
            raise self.late(timeout_seconds)
        return self.outcome()

    @property
    def settled(self) -> bool:
        """Whether :meth:`outcome` has an answer: it serves, or does not come to it by itself."""
        settled = (*machine.SERVING, "failed", "backing off")
        return (
            self._shut is not None
            or self._asked_to_end
            or self._stopped
            or (self._is_open() and all(one.state.phase in settled for one in self.supervisors.values()))
        )

    def outcome(self) -> Server:
        """The engine that serves, of one that is settled.

        Raises:
            AutolaunchError: why none does.
        """
        if self._shut is not None:
            raise self._shut
        if self._stopped:
            raise EngineError("it was stopped")
        if self.state.phase not in machine.SERVING:
            raise EngineError("it was asked to end") if self._asked_to_end else error_of(self._first)
        return self.server

    def late(self, timeout_seconds: float | None) -> WaitTimedOut:
        """It was not settled in time."""
        told = f"after {timeout_seconds:g} s" if timeout_seconds is not None else "in time"
        return WaitTimedOut(
            f"{told} {self._first.state.deployment.name} is {self.state.phase}",
            hint="it goes on: wait again, or stop it",
        )

    @property
    def ended(self) -> bool:
        """Whether :meth:`wait_ended` returns: its end was asked for, it was stopped, or it was given up on."""
        if self._asked_to_end or self._stopped or self._shut is not None:
            return True
        return all(one.state.phase == "failed" for one in self.supervisors.values())

    @property
    def over(self) -> bool:
        """Whether it was stopped, and nothing of it runs any more."""
        return self._over

    @property
    def finished(self) -> bool:
        """Whether nothing more is said of it by itself: it is over, or has ended and rests. What there is has been
        told before this is true.
        """
        return self._over or (self.ended and not self._stopped and self._rests)

    def wait_ended(self) -> None:
        """Waits while it is kept up; returns when somebody asked for its end over the control socket.

        Raises:
            AutolaunchError: it was given up on.
        """
        self.wait_until(lambda: self.ended)
        self.refuse_given_up()

    def refuse_given_up(self) -> None:
        """What :meth:`wait_ended` raises, of one that has ended."""
        if self._shut is not None:
            raise self._shut
        if not self._asked_to_end and not self._stopped:
            raise error_of(self._first)

    @contextmanager
    def followed(self, tell: Callable[[], None]) -> Iterator[None]:
        """Within it ``tell`` is called, from whatever thread, after everything that may change an answer here."""
        with self._changed:
            self._following.add(tell)
        try:
            yield
        finally:
            with self._changed:
                self._following.discard(tell)

    def wait_until(self, true: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Whether it came to be true of what :meth:`followed` tells of; ``False``: the time was over before."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while not true():
                left = _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def hear(self, key: str, event: LaunchEvent) -> None:
        """What the launch of an engine says, by the key of its deployment. From any thread."""
        self._steered.hear(key, event)

    def end(self) -> None:
        """Has ``wait_ended`` return. From any thread."""
        self._asked_to_end = True
        self.notify()

    def stop(self) -> None:
        """Ends the engines and all they started, within the grace time and a bound.

        From any thread but the supervisors' own, and again. A Ctrl-C while it waits forgoes the grace, and is raised
        once nothing runs any more.

        Raises:
            EngineError: processes are left that would not end; they are named.
        """
        atexit.unregister(self._at_exit)
        with self._stopping:  # whoever comes second waits until it is over, too
            if self._over:
                return
            self._stopped = True
            self.notify()
            try:
                self._end_everything()
            finally:
                self._over = True
                self.notify()
        for one in self.supervisors.values():
            fault = one.state.fault
            if fault is not None and fault.reason == "processes left":
                raise EngineError(fault.message, hint=fault.hint)

    def _at_exit(self) -> None:
        """The program ends and has not stopped it. No thread can be begun any more, and what cannot be done here the
        engine's guard does when this process has gone.
        """
        for one in self.supervisors.values():
            if one.run.server is not None:
                with suppress(EngineError):
                    one.run.server.stop()
        if self._control is not None:
            with suppress(OSError):
                self._control.path.unlink()

    def _end_everything(self) -> None:
        if not self._thread.is_alive():
            if self._listening is not None:
                self._listening.close()
            self._loop.close()
            return
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            try:
                closing.result()
            except KeyboardInterrupt:
                for one in self.supervisors.values():
                    if one.run.server is not None:
                        one.run.server.process.hurry()
                closing.result()
                raise
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._hands.shutdown()

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
        if reach.own_process:
            take_files()
        # What they are made of takes a tenth of a second to be read in, which nothing here has to wait for.
        await self._loop.run_in_executor(None, _read_in)
        from autolaunch.daemon.gateway.face import Face

        try:
            face = Face(reach.gateway, self.supervisors, keys=reach.keys, on_fault=self._fault)
            listening, self._listening = self._listening, None
            await face.start(listening)
            self._face = face
            self._steered.gateway_url = face.base_url
            self._control = await begun_control(self._steered, reach.home)
        except AutolaunchError as error:
            self._shut = error
        self.notify()

    def _is_open(self) -> bool:
        return self._reach is None or (self._opening is not None and self._opening.done())

    def _changed_state(self, one: Supervisor) -> None:
        if one.state.phase not in ("planned", "preparing"):
            self._open_soon()
        if self._face is not None:
            self._face.changed(one)
        self._rests = all(each.state.at_rest for each in self.supervisors.values())
        self.notify()

    def _tell(self, one: Supervisor, tell: Tell) -> None:
        if self._face is not None:
            self._face.tell(one, tell)
        self._steered.tell(one, tell)
        self._on_tell(tell)

    def _fault(self, error: BaseException) -> None:
        message = f"a fault of autolaunch, not of yours: {type(error).__name__}: {error}"
        self._on_tell(Tell(name="internal", level="error", message=message))

    def notify(self) -> None:
        """Has everybody who waits, or follows, look again. From any thread."""
        with self._changed:
            self._changed.notify_all()
            following = tuple(self._following)
        for tell in following:
            tell()


def _read_in() -> None:
    from autolaunch.daemon.control import serve  # noqa: F401 - read in, for whoever imports it next
    from autolaunch.daemon.gateway import face  # noqa: F401 - as above
