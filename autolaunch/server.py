"""A launched engine: its address, its figures, whether it is ready, how it ends."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from autolaunch.daemon.ports import Address
from autolaunch.daemon.process import EngineProcess
from autolaunch.hubs.speed import Transfer
from engines.base import Engine
from engines.logs import Diagnosis, Figures, LoadProgress, LogReader
from selector.contract import Command
from selector.errors import EngineStartError
from selector.values import Value

Stage = Literal["port", "weights", "environment", "starting", "loading", "ready", "stopping", "stopped"]


class LaunchEvent(Value, frozen=True, kw_only=True):
    """One thing that happened. ``seconds`` since the launch began; ``fraction`` 0 to 1 where it is known."""

    stage: Stage
    message: str
    fraction: float | None = None
    seconds: float = 0.0
    transfer: Transfer | None = None


class Server:
    """A launched engine. As a context manager it stops when left.

    Attributes:
        base_url: what an OpenAI client takes, such as ``http://127.0.0.1:8000/v1``.
        served_name: the model's name in requests.
        api_key: what a request has to carry, or ``None``.
        command: what runs.
        log_path: everything the engine prints (bounded).
    """

    def __init__(
        self,
        *,
        process: EngineProcess,
        reader: LogReader,
        address: Address,
        served_name: str,
        engine: Engine,
        command: Command,
        log_path: Path,
        run_directory: Path,
        run_lock: int,
        extra: tuple[str, ...],
        devices: frozenset[str],
        api_key: str | None,
        stall_seconds: float,
        say: Callable[[Stage, str, float | None], None],
    ) -> None:
        self.address = address
        self.base_url = address.base_url
        self.served_name = served_name
        self.engine = engine
        self.command = command
        self.log_path = log_path
        self._process = process
        self._reader = reader
        self._run_directory = run_directory
        self._run_lock = run_lock
        self._extra = extra
        self._devices = devices
        self.api_key = api_key
        self._stall_seconds = stall_seconds
        self._say = say
        self._stopped = False
        self._stopping = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The engine's process; it leads its own session."""
        return self._process.pid

    @property
    def process(self) -> EngineProcess:
        """The engine's process tree."""
        return self._process

    @property
    def progress(self) -> LoadProgress | None:
        """Where the load is, as far as the engine's lines tell."""
        return self._reader.progress

    def poll(self) -> int | None:
        """``None`` while it runs, then its exit code (negative: a signal)."""
        return self._process.poll()

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines the engine printed."""
        return self._process.tail(count)

    def memory_bytes(self) -> int | None:
        """What its processes hold: of the fullest of its devices, or of main memory where it has none.

        ``None`` where the driver does not tell (in a container it may know processes by other ids).
        """
        if not self._devices:
            return self._process.resident_bytes()
        from selector.probe import probe

        ours = self._process.process_ids()
        held = [
            sum(each.used_bytes or 0 for each in device.processes if each.pid in ours)
            for device in probe().accelerators
            if device.uuid in self._devices
        ]
        return max(held, default=0) or None

    @property
    def figures(self) -> Figures:
        """What the engine has reported of itself so far: its weights, its KV cache, its times."""
        return self._reader.figures

    def diagnosis(self) -> Diagnosis:
        """Why it ended, from its last lines and its exit code."""
        from autolaunch.daemon.health import CAUSE_LINES

        return self._reader.diagnose(self._process.tail(CAUSE_LINES), self._process.exit_code)

    def wait_ready(self, timeout: float | None = None) -> float:
        """Waits until a one-token completion came back; returns the seconds it took.

        Without ``timeout`` (seconds) only a stall ends the waiting. On an error everything is stopped.

        Raises:
            EngineStartError: it exited, stalled, or refuses; its last lines are the error's notes.
            PortTaken: another program answers on the port.
        """
        try:
            return self.first_token(timeout)
        except BaseException as error:
            code = self.stop()
            if isinstance(error, EngineStartError):
                self.explain(error, code)
            raise

    def first_token(self, timeout: float | None = None) -> float:
        """As ``wait_ready``, but that whoever calls it has to stop the engine when this raises."""
        from autolaunch.daemon.health import wait_until_ready  # while the engine begins, and not before it

        seconds = wait_until_ready(
            self._process,
            address=self.address,
            model=self.served_name,
            engine=self.engine.name,
            stall_seconds=self._stall_seconds,
            timeout_seconds=timeout,
            on_progress=self._tell_progress,
            reader=self._reader,
            api_key=self.api_key,
        )
        self._say("ready", f"{self.served_name} answers at {self.base_url}", 1.0)
        return seconds

    def explain(self, error: EngineStartError, code: int | None) -> None:
        """Puts into an error of ``first_token`` what a person needs to go on from; ``code`` is the exit code."""
        if self._extra and (code == 0 or "bad argument" in error.message):
            self._blame_options(error, code)
        error.hint = error.hint or f"its output is in {self.log_path}"

    def _tell_progress(self, _seconds: float, line: str | None) -> None:
        progress = self._reader.progress
        if progress is None:
            self._say("loading", line or "loading", None)
        else:
            self._say("loading", progress.message, progress.fraction)

    def _blame_options(self, error: EngineStartError, code: int | None) -> None:
        """Whoever passes options on to an engine wants to hear that it ended on them, not that it failed to load."""
        passed = " ".join(self._extra)
        if code == 0:  # as on --help
            error.message = f"{self.engine.name} ended on the options passed to it after --: {passed}"
        error.hint = f"{self.engine.name} was given, after --: {passed}; all it printed is in {self.log_path}"
        error.args = (error.message,)

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the engine ends (``None``: as long as it takes); its exit code, or ``None``."""
        if timeout is not None:
            return self._process.wait(timeout)
        while (code := self._process.wait(3600.0)) is None:
            pass
        return code

    def stop(self) -> int | None:
        """Ends the engine and all it started, within the grace time and a bound; then its traces go.

        May be called again, and from another thread than the one that waits for it to be ready.

        Raises:
            EngineStartError: processes are left that would not end; they are named.
        """
        with self._stopping:
            if self._stopped:
                return self._process.poll()
            self._say("stopping", f"stopping {self.engine.name}", None)
            try:
                code = self._process.stop()
            finally:
                self._stopped = True
                shutil.rmtree(self._run_directory, ignore_errors=True)
                os.close(self._run_lock)
            self._say("stopped", f"{self.engine.name} has ended", None)
            return code
