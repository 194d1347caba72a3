"""One engine as a process tree: started under the guard, its output drained, stopped with all it started.

See :mod:`autolaunch.daemon.guard` for what holds when the launcher dies. Everything here is synchronous;
one thread a process drains the output.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import psutil

from autolaunch.daemon import guard
from selector.errors import EngineStartError

#: What an engine gets to end by itself.
GRACE_SECONDS = 10.0
#: No output and no processor time for so long is a stall. A checkpoint of 700 GB loads for many minutes,
#: and shows one or the other all the while; a fixed total would be wrong for every machine but one.
STALL_SECONDS = 300.0
#: From the request to stop until the guard has ended everything or given up, beyond the grace.
BOUND_SECONDS = guard.FOLLOW_SECONDS + guard.KILL_SECONDS + 3.0
#: The guard answers in milliseconds; on a machine that swaps, later.
SPAWN_SECONDS = 30.0

#: Bounds on what is kept of the output: lines in memory, characters of a line, bytes of the log file.
RING_LINES, LINE_CHARACTERS, LOG_BYTES = 400, 2_000, 16 * 2**20

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?<=>]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BREAKS = re.compile(rb"[\r\n]+")


def printable(text: str) -> str:
    """``text`` without terminal escapes and control characters; tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class Output:
    """The engine's lines: the last few in memory, more of them in a log file, both bounded.

    A line longer than ``LINE_CHARACTERS`` keeps its beginning. When the file is full it is set aside as
    ``NAME.1`` and begun anew. A disk that fills up ends the file, not the reading. ``on_line`` is given every line
    that is not empty; while it works the engine's pipe fills, so it must be quick, and it must not raise.
    """

    def __init__(self, log_path: Path | None, on_line: Callable[[str], None] = lambda _: None) -> None:
        self.log_path = log_path
        self._on_line = on_line
        self.total_bytes = 0
        self._lines: deque[str] = deque(maxlen=RING_LINES)
        self._partial = b""
        self._lock = threading.Lock()
        self._written_bytes = 0
        self._file = self._open()

    def feed(self, chunk: bytes) -> None:
        """Takes in what was read."""
        *whole, rest = _BREAKS.split(chunk)
        lines = []
        for line in whole:
            lines.append(self._clean(self._partial + line[:LINE_CHARACTERS]))
            self._partial = b""
        room = max(0, 4 * LINE_CHARACTERS - len(self._partial))
        self._partial += rest[:room]
        with self._lock:
            self.total_bytes += len(chunk)
            self._lines.extend(line for line in lines if line)
        self._write("".join(line + "\n" for line in lines if line))
        for line in lines:
            if line:
                self._on_line(line)

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines, oldest first, fit to be shown."""
        with self._lock:
            lines = list(self._lines)[-count:]
        last = self._clean(self._partial)
        return (*lines, last)[-count:] if last else tuple(lines)

    def close(self) -> None:
        """Ends the log file with what was left of the last line."""
        if self._partial:
            self.feed(b"\n")
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def _clean(line: bytes) -> str:
        return printable(line.decode(errors="replace"))[:LINE_CHARACTERS].rstrip()

    def _open(self) -> BinaryIO | None:
        if self.log_path is None:
            return None
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Prompts may be in it: it is for its user alone.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            return os.fdopen(os.open(self.log_path, flags, 0o600), "wb")
        except OSError:
            return None  # serving goes on without a log file

    def _write(self, text: str) -> None:
        if self._file is None or self.log_path is None or not text:
            return
        data = text.encode()
        try:
            if self._written_bytes + len(data) > LOG_BYTES:
                self._file.close()
                self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
                self._file = self._open()
                self._written_bytes = 0
                if self._file is None:
                    return
            self._file.write(data)
            self._file.flush()
            self._written_bytes += len(data)
        except OSError:
            self._file = None


class EngineProcess:
    """A running engine.

    Attributes:
        pid: the engine's own process; it leads a session and a process group of its own.
        output: its standard output and error.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        working_directory: Path,
        log_path: Path | None = None,
        grace_seconds: float = GRACE_SECONDS,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Starts ``argv``; ``environment`` is all it gets, ``on_line`` gets all it prints (see :class:`Output`).

        Interrupted in here, the channel to the guard is dropped, and the guard ends what it has started.

        Raises:
            EngineStartError: the program could not be run.
        """
        self.argv = tuple(argv)
        self._grace_seconds = grace_seconds
        self._draining = True
        self._heard = b""
        self.output = Output(log_path, on_line)
        channel, theirs = socket.socketpair()
        self._channel = channel
        read_end, write_end = os.pipe()
        try:
            self._guard = subprocess.Popen(
                (sys.executable, "-I", guard.__file__, str(theirs.fileno()), str(grace_seconds), *argv),
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=dict(environment),
                cwd=working_directory,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            channel.close()
            os.close(read_end)
            self.output.close()
            raise EngineStartError(f"{argv[0]} could not be started: {error.strerror}") from error
        except BaseException:
            channel.close()
            os.close(read_end)
            raise
        finally:
            theirs.close()
            os.close(write_end)
        self._reader = threading.Thread(target=self._drain, args=(read_end,), name="engine-output", daemon=True)
        self._reader.start()
        try:
            self.pid = self._started()
        except BaseException:
            self.stop(grace_seconds=0.0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def poll(self) -> int | None:
        """``None`` while the engine's tree is there; then its exit code (negative: the signal's number)."""
        return self._guard.poll()

    @property
    def stopping(self) -> bool:
        """Whether the engine's main process has ended (its tree may still be on its way out)."""
        if self._guard.poll() is not None or b"exited" in self._heard:
            return True
        readable, _, _ = select.select([self._channel], [], [], 0) if self._channel.fileno() >= 0 else ([], [], [])
        return bool(readable)

    @property
    def output_bytes(self) -> int:
        """How much the engine has printed so far."""
        return self.output.total_bytes

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines it printed, oldest first."""
        return self.output.tail(count)

    def wait(self, timeout_seconds: float) -> int | None:
        """The exit code once everything has ended, ``None`` when that takes longer."""
        try:
            return self._guard.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, *, grace_seconds: float | None = None) -> int | None:
        """Ends the whole tree: SIGTERM, the grace time, SIGKILL. Returns the exit code.

        Bounded by the grace (the one given at the start, or 0 for at once) and ``BOUND_SECONDS``. A
        second interrupt while it waits forgoes the grace and is raised once the tree is gone. It may be
        called again.

        Raises:
            EngineStartError: processes are left that even SIGKILL did not end; they are named.
        """
        at_once = grace_seconds == 0.0
        try:
            self._hang_up(kill=at_once)
            self.wait((0.0 if at_once else self._grace_seconds) + BOUND_SECONDS)
        except BaseException:
            self._hang_up(kill=True)
            self.wait(BOUND_SECONDS)
            raise
        finally:
            self._finish()
        left = self._left()
        self._channel.close()
        if left:
            raise EngineStartError(
                f"the engine was stopped, but these processes would not end: {left}",
                hint="they are in the kernel's hands (often a GPU driver's); a reboot ends them",
            )
        return self._guard.returncode

    def cpu_seconds(self) -> float | None:
        """Processor time of the whole tree so far; ``None`` where it cannot be asked."""
        total = 0.0
        try:
            for process in self._tree():
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                total += times.user + times.system
        except psutil.Error:
            return None
        return total

    def resident_bytes(self) -> int | None:
        """Main memory that the whole tree holds, shared libraries counted once a process; ``None`` as above."""
        total = 0
        try:
            for process in self._tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
        except psutil.Error:
            return None
        return total

    def process_ids(self) -> frozenset[int]:
        """Every process of the tree, as far as the system tells."""
        try:
            return frozenset(process.pid for process in self._tree())
        except psutil.Error:
            return frozenset({self.pid})

    def listens_on(self, port: int) -> bool | None:
        """Whether a process of the tree listens on ``port``; ``None`` where the system does not tell."""
        unknown = False
        try:
            for process in self._tree():
                try:
                    connections = process.net_connections(kind="tcp")
                except psutil.NoSuchProcess:
                    continue
                except psutil.Error:
                    unknown = True
                    continue
                if any(c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port for c in connections):
                    return True
        except psutil.Error:
            return None
        return None if unknown else False

    def _tree(self) -> list[psutil.Process]:
        return psutil.Process(self._guard.pid).children(recursive=True)

    def _started(self) -> int:
        """The engine's process id, as the guard says it."""
        answer = b""
        deadline = time.monotonic() + SPAWN_SECONDS
        while b"\n" not in answer:
            readable, _, _ = select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))
            chunk = self._channel.recv(4096) if readable else b""
            if not chunk:
                lines = self.output.tail(1)
                raise EngineStartError(f"{self.argv[0]} could not be started" + (f": {lines[-1]}" if lines else ""))
            answer += chunk
        first, _, self._heard = answer.partition(b"\n")
        kind, _, rest = first.decode(errors="replace").partition(" ")
        if kind != "started":
            raise EngineStartError(f"{self.argv[0]} could not be started: {rest}")
        return int(rest)

    def _hang_up(self, *, kill: bool) -> None:
        try:
            if kill:
                self._channel.send(b"kill")
            self._channel.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the guard has gone already, or was told before

    def _left(self) -> str:
        """What the guard said it could not end."""
        if self._channel.fileno() < 0:
            return ""
        self._channel.setblocking(False)
        try:
            while chunk := self._channel.recv(4096):
                self._heard += chunk
        except OSError:
            pass
        lines = self._heard.decode(errors="replace").splitlines()
        return next((line.removeprefix("left ") for line in lines if line.startswith("left ")), "")

    def _finish(self) -> None:
        if self._guard.poll() is None:
            # It missed its own bound: the kernel then kills the engine with it (Linux).
            try:
                tree = self._tree()
            except psutil.Error:
                tree = []
            self._guard.kill()
            for process in tree:
                _kill(process)
            self.wait(1.0)
        self._draining = False
        self._reader.join(timeout=2.0)

    def _drain(self, descriptor: int) -> None:
        """Reads until the pipe closes, or until the tree is gone: a stranger may hold the pipe open."""
        try:
            while True:
                readable, _, _ = select.select([descriptor], [], [], 0.2)
                if not readable:
                    if not self._draining:
                        return
                    continue
                chunk = os.read(descriptor, 65_536)
                if not chunk:
                    return
                self.output.feed(chunk)
        finally:
            os.close(descriptor)
            self.output.close()


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):  # psutil makes sure that the id was not given to another
        process.send_signal(signal.SIGKILL)
