"""FAKE time and FAKE hands: a supervisor's week in seconds. No process is started; loop, sockets and tasks are real."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import psutil

from autolaunch.daemon.deployment import Changes, Deployment, Fault, Reason
from autolaunch.daemon.faults import Refusal
from autolaunch.daemon.hands import Decided, Hands, Run
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from tests.fakes.machine_world import CANDIDATE
from tests.fakes.plans import plan

T = TypeVar("T")

#: How long each of the hands takes, in simulated seconds.
SECONDS: Mapping[str, float] = {"plan": 2.0, "prepare": 3.0, "launch": 60.0, "probe": 0.5, "end": 4.0}


class Jumping(selectors.BaseSelector):
    """Waits for nothing: where nothing is ready, ``skip`` is told how long it would have waited."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        self._inner = selectors.DefaultSelector()
        self._skip = skip

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = self._inner.select(0)
        if not found and timeout != 0:
            assert timeout is not None, "nothing would ever happen again"
            self._skip(timeout)
        return found

    def close(self) -> None:
        self._inner.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer whenever nothing is ready. What is for a thread is a timer of its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(Jumping(self._skip))

    def _skip(self, seconds: float) -> None:
        self.seconds += seconds

    def time(self) -> float:
        return self.seconds

    def run_in_executor(  # type: ignore[override]  # the base's is typed for the event loop's stubs
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """``func`` is begun now (``begin`` of the hands says how long it takes) and called when that has passed."""
        future: asyncio.Future[T] = self.create_future()

        def complete() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - as an executor does
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        hands = getattr(func, "__self__", None)
        name = getattr(func, "__name__", "")
        if isinstance(hands, FakeHands) and name == "launch":
            hands.begin(*args)
        self.call_later(SECONDS.get(name, SECONDS["end"] if "lambda" in name else 0.01), complete)
        return future


class FakeWorker:
    """One rank of an engine."""

    pid = 4_194_999

    def __init__(self) -> None:
        self.lives = True

    def is_running(self) -> bool:
        return self.lives

    def status(self) -> str:
        return psutil.STATUS_RUNNING


class FakeProcess:
    """An engine that is two ends of a socket: it ends when the far one is closed."""

    pid = guard_pid = 4_194_998  # beyond what the kernel gives

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self.worker = FakeWorker()
        self.output_bytes = 0
        self.deaf = 0  # so many probes are not answered

    @property
    def ends_on(self) -> int:
        return self._near.fileno()

    @property
    def stopping(self) -> bool:
        return self._far.fileno() < 0

    def titled(self, prefixes: tuple[str, ...]) -> tuple[FakeWorker, ...]:
        return (self.worker,)

    def dies(self) -> None:
        self._far.close()

    def close(self) -> None:
        self._far.close()
        self._near.close()


class FakeHands(Hands):
    """Does nothing, and that well, unless it was told what goes wrong next.

    Attributes:
        wrong: by the hand's name, what it raises or returns the next times, first things first.
        living: the engines that there are.
        most: how many there have been at once.
    """

    def __init__(self, home: Path) -> None:
        self.made: LaunchPlan = plan(CANDIDATE)
        super().__init__(
            home=home, catalog=Catalog(), planner=lambda _deployment, _changes: Decided(self.made, CANDIDATE)
        )
        self.wrong: dict[str, list[Fault | Exception]] = {}
        self.living: dict[int, FakeProcess] = {}
        self.most = 0
        self.why: Fault | None = None
        self.remembered = self.forgotten = 0

    @contextlib.contextmanager
    def _may_fail(self, name: str) -> Iterator[Fault | None]:
        waiting = self.wrong.get(name)
        what = waiting.pop(0) if waiting else None
        if isinstance(what, Exception):
            raise what
        yield what

    def plan(self, run: Run, deployment: Deployment, changes: Changes) -> None:
        with self._may_fail("plan") as fault:
            if fault is not None:
                raise Refusal(fault)
        super().plan(run, deployment, changes)

    def prepare(self, run: Run, deployment: Deployment) -> None:
        with self._may_fail("prepare") as fault:
            if fault is not None:
                raise Refusal(fault)

    def begin(self, run: Run, _deployment: Deployment, _started: Callable[[], None]) -> None:
        """The engine's process is there at once, long before it serves."""
        with self._may_fail("start") as fault:
            if fault is not None:
                return
        process = FakeProcess()
        self.living[run.number] = process
        self.most = max(self.most, len(self.living))
        engine = SimpleNamespace(behaviour=SimpleNamespace(worker_titles=("worker",)))
        run.server = SimpleNamespace(process=process, engine=engine)  # type: ignore[assignment]  # FAKE

    def launch(self, run: Run, deployment: Deployment, on_started: Callable[[], None]) -> float:
        if run.server is None:
            raise Refusal(Fault(reason="port in use", permanent=False, message="port 8000 is taken"))
        on_started()
        with self._may_fail("launch") as fault:
            if run.cancelled.is_set():
                raise Refusal(Fault(reason="stopped", permanent=False, message="it was stopped"))
            if fault is not None:
                raise Refusal(fault)
        return SECONDS["launch"]

    def end(self, run: Run, *, wait_for_memory: bool) -> Fault | None:
        run.cancelled.set()
        process = self.living.pop(run.number, None)
        if process is None:
            return None
        process.close()
        with self._may_fail("end") as fault:
            return fault

    def probe(self, run: Run) -> str | None:
        process = self.living.get(run.number)
        if process is None:
            return "it has ended"
        with self._may_fail("probe"):
            process.output_bytes += 1
        if process.deaf:
            process.deaf -= 1
            return "no token within 30 s"
        return None

    def ended(self, run: Run, *, serving: bool) -> Fault:
        return self.why or Fault(reason="killed", permanent=False, message="it was killed", serving=True)

    def worker_died(self, run: Run, pid: int) -> Fault:
        return Fault(reason="worker died", permanent=False, message=f"process {pid} has ended", serving=True)

    def next_changes(
        self, run: Run, deployment: Deployment, changes: Changes, fault: Fault, *, repeated: bool
    ) -> Changes | None:
        helped: tuple[Reason, ...] = ("out of memory", "device lost")
        if fault.reason not in helped or len(changes.steps) >= 8:
            return None
        lost = tuple(dict.fromkeys((*changes.without_devices, *fault.devices)))
        return msgspec.structs.replace(changes, steps=(*changes.steps, "less"), without_devices=lost)

    def remember(self, run: Run, deployment: Deployment, fault: Fault | None) -> str | None:
        self.remembered += 1
        with self._may_fail("remember"):
            return None

    def forget(self, deployment: Deployment) -> str | None:
        self.forgotten += 1
        return None
