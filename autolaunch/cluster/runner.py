"""A program on a node, in Ray's worker there: its lines as they come, its end, and nothing of it left.

Sent to the node as text by ``program.py`` and made there: it imports nothing but the standard library, and runs in any
Python that Ray runs in.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: What a program gets to end by itself.
GRACE_SECONDS = 3.0
#: Who wants to know of a program asks every second. Nodes that lost their cluster's head go on for a minute, and with
#: them what nobody hears of any more.
UNHEARD_SECONDS = 30.0
MOST_LINE_BYTES = 64 * 1024
#: What Ray hides devices by, for a worker that asked for none of them.
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def node_environment() -> dict[str, str]:
    """The environment that the node was started with: a worker's has been changed by Ray.

    Ray hid the GPUs from a worker that asked for none, and does so still where RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO is
    set: https://github.com/ray-project/ray/issues/54868.
    """
    parent = os.getppid()
    try:
        of_raylet = Path(f"/proc/{parent}/comm").read_text().strip() == "raylet"
        pairs = Path(f"/proc/{parent if of_raylet else os.getpid()}/environ").read_bytes().split(b"\0")
    except OSError:  # not Linux, or another user's
        return {name: value for name, value in os.environ.items() if value or name not in HIDING}
    split = (each.partition(b"=") for each in pairs if b"=" in each)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in split}


def place_of(program: str, environment: Mapping[str, str]) -> str | None:
    """Where a program is on this node: beside its Python, on its PATH, or where its user's tools are."""
    if os.sep in program:
        return program if os.access(program, os.X_OK) else None
    own = str(Path(environment.get("HOME", "/"), ".local", "bin"))
    folders = (str(Path(sys.executable).parent), environment.get("PATH", os.defpath), own)
    return shutil.which(program, path=os.pathsep.join(folders))


class Runner:
    """One program on one node, run by ``keeper.py``.

    Everything of it is ended with the process that this is in, or once nobody has asked how it is for
    :data:`UNHEARD_SECONDS`.

    Args:
        keeper: the text of that program.
        argv: what is run; without a path it is looked for (:func:`place_of`).
        environment: variables over the node's own.
        timeout_seconds: then it is ended.
        most_bytes: of its output; what is more is counted and left out.
        input_text: what it may read; the end of it comes at once.
    """

    def __init__(
        self,
        keeper: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        timeout_seconds: float,
        most_bytes: int,
        input_text: str = "",
    ) -> None:
        self._changed = threading.Condition()
        self._lines: collections.deque[tuple[str, str]] = collections.deque()
        self._left_bytes, self._dropped_bytes = most_bytes, 0
        self._ended: dict[str, Any] | None = None
        self._cancelled = threading.Event()
        self._began = self._asked_at = time.monotonic()
        self._deadline = self._began + timeout_seconds
        whole = {**node_environment(), **environment}
        place = place_of(argv[0], whole)
        if place is None:
            self._ended = {"outcome": "missing", "message": f"{argv[0]} is not there"}
            return
        self._channel, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as stack:
            try:
                # A file without a name: nobody has to write while it reads, and nothing of it stays.
                told = stack.enter_context(tempfile.TemporaryFile())
                told.write(input_text.encode())
                told.seek(0)
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-",
                        *map(str, (theirs.fileno(), told.fileno(), GRACE_SECONDS)),
                        place,
                        *argv[1:],
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(theirs.fileno(), told.fileno()),
                    cwd="/",
                    env=whole,
                )
            except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
                self._channel.close()
                self._ended = {"outcome": "failed", "message": str(error)}
                return
        streams = (("stdout", self._process.stdout), ("stderr", self._process.stderr))
        self._readers = [threading.Thread(target=self._read, args=each, daemon=True) for each in streams]
        for each in (*self._readers, threading.Thread(target=self._attend, args=(keeper,), daemon=True)):
            each.start()

    def heard(self, seconds: float) -> tuple[list[tuple[str, str]], dict[str, Any] | None]:
        """What was written since, by stream, and how it ended; waits so long for either."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended is not None, seconds)
            self._asked_at = time.monotonic()
            lines = list(self._lines)
            self._lines.clear()
            if self._ended is None:
                return lines, None
            took = time.monotonic() - self._began
            return lines, {**self._ended, "seconds": took, "dropped_bytes": self._dropped_bytes}

    def cancel(self) -> None:
        """Has it ended, with all that descends from it."""
        self._cancelled.set()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        within = False
        with stream:
            while line := stream.readline(MOST_LINE_BYTES):
                went_on, within = within, not line.endswith(b"\n")
                with self._changed:
                    if went_on or self._left_bytes < len(line):  # of a line that is too long, the beginning is kept
                        self._dropped_bytes += len(line)
                        continue
                    self._left_bytes -= len(line)
                    self._lines.append((name, line.decode(errors="replace").rstrip("\r\n")))
                    self._changed.notify_all()

    def _attend(self, keeper: str) -> None:
        """Hands the keeper its program, and waits for its word; lets go of it at the deadline or when it is told to."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError), self._process.stdin as stdin:
                stdin.write(keeper.encode())
        why, told, give_up = None, b"", float("inf")
        with self._channel as channel:
            channel.settimeout(0.1)
            while time.monotonic() < give_up and not told.endswith(b"\n"):
                now = time.monotonic()
                unheard = now - self._asked_at >= UNHEARD_SECONDS
                unwanted = unheard or self._cancelled.is_set()
                if why is None and (unwanted or now >= self._deadline):
                    why = "cancelled" if unwanted else "timed_out"
                    channel.shutdown(socket.SHUT_WR)
                    give_up = time.monotonic() + 4 * GRACE_SECONDS
                try:
                    piece = channel.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    break
                if not piece:
                    break
                told += piece
        for each in self._readers:  # what is left of the output; a stranger that holds the pipe is not waited for
            each.join(2.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        word, _, rest = told.decode(errors="replace").strip().partition(" ")
        if word == "exited" and why is None:
            ended = {"outcome": "exited", "exit_code": int(rest)}
        else:
            ended = {"outcome": why or "failed", "message": rest if word == "failed" else None}
        with self._changed:
            self._ended = ended
            self._changed.notify_all()
