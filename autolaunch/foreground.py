"""One deployment kept up inside a program: the daemon's supervisor, for a caller that waits for things one by one.

The supervisor's loop runs in a thread of its own; everything here may be called from the program's own thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from autolaunch.daemon import machine
from autolaunch.daemon.deployment import Deployment, Fault
from autolaunch.daemon.hands import Hands
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.machine import State
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.server import Server
from selector.errors import EngineError

#: How long a wait lasts before a signal is looked for; a thread that waits without end is deaf to them.
_LOOK_SECONDS = 0.25


class Foreground:
    """A deployment that is kept up until it is stopped. As a context manager it stops when left.

    ``on_tell`` is called from the supervisor's thread with what is to be said.
    """

    def __init__(
        self,
        deployment: Deployment,
        hands: Hands,
        on_tell: Callable[[Tell], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._supervisor = Supervisor(
            deployment,
            hands,
            on_change=lambda _: self._notify(),
            on_tell=lambda _, tell: on_tell(tell),
            clock=clock,
        )
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._stopped = False

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
        """Where it is."""
        return self._supervisor.state

    @property
    def server(self) -> Server:
        """The engine that runs, or the last that did.

        Raises:
            EngineError: none was started yet.
        """
        server = self._supervisor.run.server
        if server is None:
            raise EngineError("no engine was started yet")
        return server

    def wait_ready(self) -> Server:
        """Waits for the first token; the ladder's steps are taken meanwhile, but nothing is tried again unchanged.

        Raises:
            AutolaunchError: why it does not serve.
        """
        state = self._wait(lambda state: state.phase in (*machine.SERVING, "failed", "backing off"))
        if state.phase not in machine.SERVING:
            raise self._error(state)
        return self.server

    def wait_ended(self) -> None:
        """Waits while it is kept up.

        Raises:
            AutolaunchError: it was given up on.
        """
        raise self._error(self._wait(lambda state: state.phase == "failed"))

    def stop(self) -> None:
        """Ends the engine and all it started, within the grace time and a bound.

        Raises:
            EngineError: processes are left that would not end; they are named.
        """
        if self._stopped:
            return
        self._stopped = True
        if not self._thread.is_alive():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._supervisor.close(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        fault = self.state.fault
        if fault is not None and fault.reason == "processes left":
            raise EngineError(fault.message, hint=fault.hint)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._supervisor.begin)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, true: Callable[[State], bool]) -> State:
        with self._changed:
            while not true(self.state):
                self._changed.wait(_LOOK_SECONDS)
        return self.state

    def _error(self, state: State) -> Exception:
        known = self._supervisor.run.error
        fault = state.fault
        if fault is None:
            return EngineError("it was given up on")
        if known is not None and known.message == fault.message:
            return known
        return EngineError(fault.message, hint=_with_lines(fault))


def _with_lines(fault: Fault) -> str | None:
    lines = "\n".join(fault.lines[-12:])
    if not lines:
        return fault.hint
    return f"{fault.hint}\nthe last lines:\n{lines}" if fault.hint else f"the last lines:\n{lines}"
