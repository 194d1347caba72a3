"""A launch in the hands of a program: what it is, what happens in it, waiting for it, and its end.

One core (:class:`autolaunch.foreground.Foreground`, in threads of its own) with two faces: :class:`Launch` for code
that may wait, :class:`AsyncLaunch` for asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from autolaunch.daemon.control.views import keys_of, shown
from autolaunch.daemon.machine import SERVING
from autolaunch.daemon.shown import shown_phase
from autolaunch.events import Event, Events
from selector.contract import Candidate, LaunchPlan
from selector.errors import LockError

if TYPE_CHECKING:
    from autolaunch.comparison import Comparison
    from autolaunch.daemon.control.contract import Phase
    from autolaunch.daemon.happenings import Tell
    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.foreground import Foreground
    from autolaunch.locked import Lock
    from autolaunch.server import LaunchEvent, Server

#: How long the end of a launch waits for a callback that hears of it.
_CALLBACK_SECONDS = 1.0


class Told:
    """What is said of a launch, on its way to who reads it: without keys, tokens and control characters."""

    def begin(self, kept: Foreground, events: Events, key: str | None) -> None:
        self._kept, self._events, self._key = kept, events, key

    def heard(self, unit: str, event: LaunchEvent) -> None:
        self._events.heard(unit, event, self._clean(event.message))
        self._kept.notify()

    def tell(self, tell: Tell) -> None:
        hint = None if tell.hint is None else self._clean(tell.hint)
        self._events.told(tell.name, self._clean(tell.message), tell.level, hint=hint, reason=tell.reason)
        self._kept.notify()

    def _clean(self, text: str) -> str:
        return shown(text, self._key, *keys_of(*(one.run for one in self._kept.supervisors.values())))


class _Launched:
    """What is known of a launch at any moment; nothing here waits."""

    def __init__(self, kept: Foreground, plan: LaunchPlan, name: str, events: Events, api_key: str | None) -> None:
        self._kept = kept
        self._events = events
        self._api_key = api_key
        #: The plan that it began with.
        self.plan = plan
        #: The model's name in requests.
        self.served_name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.served_name} {self.phase} at {self.base_url}>"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes, as ``http://127.0.0.1:41234/v1``. The same from the first moment on."""
        return self._kept.address_url or self._kept.base_url

    @property
    def api_key(self) -> str | None:
        """The key that requests carry (``Authorization: Bearer KEY``).

        ``None`` of a launch that is ``keyless``, or that has a file of keys.
        """
        return self._api_key

    @property
    def phase(self) -> Phase:
        """``planned``, ``preparing``, ``loading``, ``ready``, ``degraded``, ``draining``, ``backing off``, ``failed``
        or ``stopped``; of several engines that of the one which is furthest.
        """
        return "stopped" if self._kept.over else shown_phase(self._kept.state)

    @property
    def candidate(self) -> Candidate:
        """What runs, or is about to: the plan's choice, less what was changed because it failed."""
        assert self.plan.chosen is not None, "checked when it was launched"  # noqa: S101 - for the type alone
        return self._kept.state.candidate or self.plan.chosen

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the engines that run, one a replica; each leads a session of its own."""
        return tuple(server.pid for server in self._servers() if server.poll() is None)

    @property
    def log_path(self) -> Path | None:
        """All that the engine prints, or the last one did (bounded); ``None`` before one was started."""
        found = self._servers(ended=True)
        return found[0].log_path if found else None

    @property
    def measurements(self) -> tuple[Comparison, ...]:
        """What the plan foretold beside what was measured since: memory in bytes of the fullest device, KV cache in
        tokens. Empty until an engine has told; more comes while it serves.
        """
        from autolaunch.measured import comparisons, of_start

        one = next(iter(self._serving_first()))
        server = one.run.server
        if server is None or one.state.candidate is None or server.poll() is not None:
            return ()
        seen = of_start(server.figures, resident_bytes=server.memory_bytes(), load_seconds=one.load_seconds)
        return comparisons(one.state.candidate, seen)

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines that the engine printed, or the last engine did."""
        found = self._servers(ended=True)
        return found[0].tail(count) if found else ()

    def _news(self, serial: int) -> Callable[[], bool]:
        """Whether there is something after event ``serial``, or nothing will be."""
        return lambda: self._events.serial > serial or self._kept.finished

    def _serving_first(self) -> list[Supervisor]:
        return sorted(self._kept.supervisors.values(), key=lambda one: one.state.phase not in SERVING)

    def _servers(self, *, ended: bool = False) -> list[Server]:
        """Engines, those that serve first; with ``ended`` those of the tries before, too."""
        runs = [run for one in self._serving_first() for run in ((one.run, one.ran) if ended else (one.run,))]
        return [run.server for run in runs if run.server is not None]


class Launch(_Launched):
    """A launch, for code that may wait; ``async with`` gives its twin, :class:`AsyncLaunch`. See :func:`launch`.

    Everything may be called from any thread, and again.
    """

    _handing_on: threading.Thread | None = None
    _keeping: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> AsyncLaunch:
        return AsyncLaunch(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _stopped(self)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the model has answered with a first token; of several replicas one of them.

        Without ``timeout`` (seconds) only an engine that shows no sign of life ends the waiting: a large checkpoint
        loads for many minutes.

        Raises:
            WaitTimedOut: it took longer. It goes on: wait again, or stop it.
            EngineStartError, EngineInstallError, DownloadError, PortTaken, DevicesTaken: why it does not serve.
                Everything is stopped then.
            EngineError: it was stopped meanwhile.
        """
        if not self._kept.wait_until(lambda: self._kept.settled, timeout):
            raise self._kept.late(timeout)
        try:
            self._kept.outcome()
        except Exception:
            self.stop()
            raise
        self.wait_kept()

    def wait(self) -> None:
        """Waits while it is kept up; returns when it was stopped, also by ``autolaunch stop``.

        Raises:
            AutolaunchError: it was given up on; why.
        """
        self._kept.wait_ended()

    def events(self) -> Iterator[Event]:
        """What happens, from the beginning on; ends when the launch was stopped or given up on.

        Each call reads for itself. Nothing waits for a reader: who is slower than a thousand events is told how many
        were missed.

            for event in server.events():
                print(f"{event.seconds:6.1f} s  {event.message}")
        """
        serial = 0
        while True:
            finished = self._kept.finished  # before what there is is looked at: of that nothing is left out
            for event in self._events.after(serial):
                serial = event.serial
                yield event
            if finished:
                return
            self._kept.wait_until(self._news(serial))

    def stop(self) -> None:
        """Ends the engines and all they started, within their grace of 10 s and a bound; whoever calls it, waits.

        What loads or downloads is broken off; what has come of a download is kept. A second Ctrl-C while it waits
        forgoes the grace.

        Raises:
            EngineError: processes are left that would not end; they are named.
        """
        self._kept.stop()
        self.wait_kept()
        heard = self._handing_on
        if heard is not None and heard is not threading.current_thread():
            heard.join(_CALLBACK_SECONDS)

    def keep_in(self, path: Path, lock: Callable[[], Lock], tell: Callable[[Tell], None]) -> None:
        """Writes ``lock`` to ``path`` once it serves, in a thread of its own; says so, or what was in the way."""

        def keep_in() -> None:
            self._kept.wait_until(lambda: self._kept.state.phase in SERVING or self._kept.ended)
            if self._kept.ended:
                return
            from autolaunch.daemon.happenings import Tell
            from autolaunch.locked import write_lock

            try:
                write_lock(path, lock())
            except (LockError, OSError) as error:
                said = f"it serves, and is kept in no lock: {error}"
                tell(Tell(name="lock.failed", level="warning", message=said))
            else:
                tell(Tell(name="lock.written", level="info", message=f"kept in {path}"))

        self._keeping = threading.Thread(target=keep_in, name="lock", daemon=True)
        self._keeping.start()

    def wait_kept(self) -> None:
        """Waits while a lock is written, if one is."""
        if self._keeping is not None and self._keeping is not threading.current_thread():
            self._keeping.join()

    def hand_on(self, on_event: Callable[[Event], None]) -> None:
        """Calls ``on_event`` with each event, in a thread of its own."""

        def hand_on() -> None:
            for event in self.events():
                on_event(event)

        self._handing_on = threading.Thread(target=hand_on, name="events", daemon=True)
        self._handing_on.start()


class AsyncLaunch(_Launched):
    """As :class:`Launch`, for asyncio: what waits there is awaited here. It is had by ``async with``.

        async with autolaunch.launch(plan) as server:
            await server.wait_ready(timeout=900)

    A task that is cancelled leaves the ``async with``, and by that stops the launch.
    """

    def __init__(self, one: Launch) -> None:
        super().__init__(one._kept, one.plan, one.served_name, one._events, one._api_key)  # noqa: SLF001 - its twin
        self._one = one

    async def wait_ready(self, timeout: float | None = None) -> None:
        """As :meth:`Launch.wait_ready`."""
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: self._kept.settled)
        except TimeoutError as error:
            raise self._kept.late(timeout) from error
        try:
            self._kept.outcome()
        except Exception:
            await self.stop()
            raise
        await asyncio.to_thread(self._one.wait_kept)

    async def wait(self) -> None:
        """As :meth:`Launch.wait`."""
        await self._until(lambda: self._kept.ended)
        self._kept.refuse_given_up()

    async def events(self) -> AsyncIterator[Event]:
        """As :meth:`Launch.events`, for ``async for``."""
        serial = 0
        while True:
            finished = self._kept.finished  # before what there is is looked at: of that nothing is left out
            for event in self._events.after(serial):
                serial = event.serial
                yield event
            if finished:
                return
            await self._until(self._news(serial))

    async def stop(self) -> None:
        """As :meth:`Launch.stop`. A task that is cancelled while it waits leaves when nothing runs any more."""
        await _stopped(self._one)

    async def _until(self, true: Callable[[], bool]) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(changed.set)

        with self._kept.followed(tell):
            while not true():
                await changed.wait()
                changed.clear()


async def _stopped(one: Launch) -> None:
    """Stops it in a thread. Who is cancelled meanwhile leaves when it is over: it is to be over then."""
    stopping = asyncio.ensure_future(asyncio.to_thread(one.stop))
    cancelled: asyncio.CancelledError | None = None
    while not stopping.done():
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
