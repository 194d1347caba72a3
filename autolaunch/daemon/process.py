"""One engine as a process tree: started under the guard, its output drained, stopped with all it started.

See :mod:`autolaunch.daemon.guard` for what holds when the launcher dies. Everything here is synchronous;
one thread a process drains the output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from autolaunch.daemon import guard
from autolaunch.daemon.output import Output
from autolaunch.daemon.readable import readable
from selector.errors import EngineStartError

#: What an engine gets to end by itself.
GRACE_SECONDS = 10.0
#: No output and no processor time for so long is a stall. A checkpoint of 700 GB loads for many minutes,
#: and shows one or the other all the while; a fixed total would be wrong for every machine but one.
STALL_SECONDS = 300.0
#: How long a token may take of an engine that serves and does nothing.
QUIET_SECONDS = 30.0
#: From the request to stop until the guard has ended everything or given up, beyond the grace.
BOUND_SECONDS = guard.FOLLOW_SECONDS + guard.KILL_SECONDS + 3.0
#: The guard answers in milliseconds; on a machine that swaps, later.
SPAWN_SECONDS = 30.0

#: What is waited for an engine's last lines once it has ended: they are in the pipe by then.
SETTLE_SECONDS = 0.1

#: The guard ended without saying how the engine did.
_UNTOLD = 1 << 16


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
        self._deaf = False
        self._hearing = threading.Lock()
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
        self._read_end = read_end
        self._idle = threading.Event()
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
    def guard_pid(self) -> int:
        """The process between us and the engine."""
        return self._guard.pid

    @property
    def ends_on(self) -> int:
        """A file descriptor that is readable once the engine's main process has ended; -1 when all is over."""
        return self._channel.fileno()

    @property
    def stopping(self) -> bool:
        """Whether the engine's main process has ended (its tree may still be on its way out)."""
        return self._guard.poll() is not None or self._ended_with() is not None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the engine's main process (negative: a signal), also while its tree is on its way out."""
        told = self._ended_with()
        return self._guard.poll() if told is None or told == _UNTOLD else told

    def _ended_with(self) -> int | None:
        """What the guard has told of the engine's end, if anything; ``_UNTOLD`` when it is gone without a word."""
        self._hear()
        for line in self._heard.decode(errors="replace").splitlines():
            if line.startswith("exited "):
                return int(line.removeprefix("exited "))
        return _UNTOLD if self._deaf else None

    def _hear(self) -> None:
        """Takes in what the guard has said since."""
        with self._hearing:
            while not self._deaf and self._channel.fileno() >= 0:
                if not readable(self._channel):
                    return
                try:
                    chunk = self._channel.recv(4096)
                except OSError:
                    chunk = b""
                self._heard += chunk
                self._deaf = not chunk

    @property
    def output_bytes(self) -> int:
        """How much the engine has printed so far."""
        return self.output.total_bytes

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines it printed, oldest first."""
        return self.output.tail(count)

    def settle(self, timeout_seconds: float = SETTLE_SECONDS) -> None:
        """Waits until what has been printed so far was taken in: who asks why it ended wants its last line too."""
        deadline = time.monotonic() + timeout_seconds
        while self._reader.is_alive() and time.monotonic() < deadline:
            # Empty first, idle then: what was read before the pipe was seen empty is not idle until it was handed on.
            if not self._pending() and self._idle.is_set():
                return
            time.sleep(0.001)  # the reader is about to take it in, and has no way to say that it has

    def _pending(self) -> bool:
        try:
            return readable(self._read_end)
        except (OSError, ValueError):
            return False  # closed by the reader, which has ended

    def wait(self, timeout_seconds: float) -> int | None:
        """The exit code once everything has ended, ``None`` when that takes longer."""
        try:
            code = self._guard.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        self.settle(SETTLE_SECONDS)
        return code

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
        with self._hearing:
            self._channel.close()
        if left:
            raise EngineStartError(
                f"the engine was stopped, but these processes would not end: {left}",
                hint="they are in the kernel's hands (often a GPU driver's); a reboot ends them",
            )
        return self._guard.returncode

    def hurry(self) -> None:
        """Has whoever is stopping it forgo the grace. From any thread."""
        self._hang_up(kill=True)

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

    def titled(self, prefixes: tuple[str, ...]) -> tuple[psutil.Process, ...]:
        """Those processes of the tree whose title (what ``ps`` shows) begins with one of ``prefixes``."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in self._tree() if prefixes else ():
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(prefixes):
                        found.append(process)
        return tuple(found)

    def listens_on(self, port: int) -> bool | None:
        """Whether a process of the tree listens on ``port``; ``None`` where the system does not tell."""
        all_told = True
        try:
            for process in self._tree():
                try:
                    connections = process.net_connections(kind="tcp")
                except psutil.NoSuchProcess:
                    continue
                except psutil.Error:
                    all_told = False
                    continue
                if any(
                    each.status == psutil.CONN_LISTEN and bool(each.laddr) and each.laddr.port == port
                    for each in connections
                ):
                    return True
        except psutil.Error:
            all_told = False
        return False if all_told else None

    def _tree(self) -> list[psutil.Process]:
        return psutil.Process(self._guard.pid).children(recursive=True)

    def _started(self) -> int:
        """The engine's process id, as the guard says it."""
        answer = b""
        deadline = time.monotonic() + SPAWN_SECONDS
        while b"\n" not in answer:
            told = readable(self._channel, max(0.0, deadline - time.monotonic()))
            chunk = self._channel.recv(4096) if told else b""
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
        self._hear()
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
                if not readable(descriptor):
                    self._idle.set()
                    if not readable(descriptor, 0.2):
                        if not self._draining:
                            return
                        continue
                self._idle.clear()
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
