"""The process that joins a cluster for us, and what is said with it. Ray is in that process and never in ours."""

from __future__ import annotations

import itertools
import os
import queue
import re
import select
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import msgspec

from autolaunch.cluster.addresses import Address
from autolaunch.cluster.wire import MOST_LINE_BYTES, Answer, Asked, Joined, Refused
from engines.environments.store import without_secrets
from engines.leash import on_leash
from selector.errors import ClusterError, NoCluster
from selector.probe.text import printable

PROGRAM = Path(__file__).with_name("program.py")
#: What the program takes to end what runs on the nodes and to leave (``program.LEAVE_SECONDS`` and Ray's own).
LEAVE_SECONDS = 15.0
#: A request is read at once whatever Ray does: who reads nothing for so long hangs.
READ_SECONDS = 20.0
_TAIL_BYTES = 4096
#: When, which process and where in Ray's source: ``[2026-11-01 10:00:00,123 E 42 43] rpc_client.h:204: ``.
_IN_RAYS_LOG = re.compile(r"^\[[^\]]{1,80}\] [\w./-]{1,80}:\d{1,6}: ")
_SILENT = "Failed to connect to GCS"
_WELL = "`ray status` on its head says whether it is well"
_POLL_SECONDS = 0.25
#: Made once, before there are threads to read with it (:func:`selector.values.readable`).
_ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)  # type: ignore[arg-type, unused-ignore] # a union
#: What is ours alone: whatever it points at, the program is to join the address that it is given, on Ray's own terms.
_NOT_PASSED = frozenset({"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "RAY_ADDRESS", "RAY_RUNTIME_ENV_HOOK"})
#: Of a lost head it is known within this time, and not after Ray's minute.
_LOST_SECONDS = 10
#: How long Ray looks for itself on a host that is of no cluster, and asks a head that does not answer.
_ASK_SECONDS = 15


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours for the program: without credentials but Ray's own, and with Ray held to what is needed."""
    own = {name: value for name, value in environ.items() if name.startswith("RAY_")}
    passed = {name: value for name, value in (without_secrets(environ) | own).items() if name not in _NOT_PASSED}
    return {
        # A patch of Python apart is none to what is sent to the nodes; Ray's client knows no other measure.
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(_LOST_SECONDS),
        "RAY_GCS_SERVER_REQUEST_TIMEOUT_SECONDS": str(_ASK_SECONDS),
    } | passed | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run autolaunch` would have every node make our environment
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


class Conversation:
    """With a program that was started for one address. Any thread may ask; answers come to who asked.

    Raises:
        ClusterError: no process could be made.
    """

    def __init__(self, python: Path, address: Address) -> None:
        self._what = "the Ray cluster of this host" if address.kind == "auto" else f"the Ray cluster at {address}"
        self._first: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._heard: dict[int, queue.SimpleQueue[Answer | None]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        #: Held for as long as a request is written; never wanted by who holds the other.
        self._writing = threading.Lock()
        self._tail = bytearray()
        self._over = False
        self._stack = ExitStack()
        read_end, self._requests = os.pipe()
        os.set_blocking(self._requests, False)
        argv = (str(python), str(PROGRAM), str(read_end), str(address))
        try:
            self._process = self._stack.enter_context(
                on_leash(
                    argv,
                    environment=environment(os.environ),
                    stdout=subprocess.PIPE,
                    working_directory=Path("/"),
                    pass_fds=(read_end,),
                )
            )
        except OSError as error:
            os.close(self._requests)
            raise ClusterError(f"{python} could not be started: {error.strerror or error}") from error
        finally:
            os.close(read_end)
        streams = ((self._listen, self._process.stdout), (self._drain, self._process.stderr))
        self._threads = [threading.Thread(target=target, args=(stream,), daemon=True) for target, stream in streams]
        for each in self._threads:
            each.start()

    def first(self, timeout_seconds: float, cancelled: threading.Event | None) -> Joined | Refused:
        """Whether the cluster was joined.

        Raises:
            ClusterError: it took too long, was cancelled, or the program ended without a word.
        """
        answer = _next(self._first, time.monotonic() + timeout_seconds, cancelled)
        if isinstance(answer, Joined | Refused):
            return answer
        if answer is not None:
            raise ClusterError(f"{self._what} could not be joined: what joins it spoke out of turn")
        if self.is_over:
            told = self.last_words()
            if _SILENT in told:  # Ray ends the process itself, where it could say no more
                raise NoCluster(
                    f"{self._what} does not answer: something listens there that is no head of a cluster, or hangs",
                    hint=_WELL,
                )
            raise ClusterError(f"{self._what} could not be joined{told}")
        if cancelled is not None and cancelled.is_set():
            raise ClusterError(f"joining {self._what} was cancelled")
        raise ClusterError(
            f"{self._what} was not joined within {timeout_seconds:.0f} s{self.last_words()}",
            hint=_WELL,
        )

    @property
    def is_over(self) -> bool:
        """Whether the program has ended, or was let go."""
        with self._lock:
            return self._over

    def begin(self) -> tuple[int, queue.SimpleQueue[Answer | None]]:
        """A number for a request, and where its answers come; ``None`` is the end of all of them."""
        with self._lock:
            number = next(self._numbers)
            answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
            self._heard[number] = answers
            if self._over:
                answers.put(None)
            return number, answers

    def forget(self, number: int) -> None:
        """Nobody listens for that number any more."""
        with self._lock:
            self._heard.pop(number, None)

    def ask(self, request: Asked, stops: Iterable[threading.Event] = (), *, seconds: float = READ_SECONDS) -> None:
        """Sends a request; with one of ``stops`` set it is not waited for who does not read.

        Raises:
            ClusterError: the program has ended, or does not read; nothing can be asked any more.
        """
        every = tuple(stops)
        line = memoryview(msgspec.json.encode(request) + b"\n")
        deadline = time.monotonic() + seconds
        with self._writing:
            while line:
                if self.is_over:
                    raise self.lost()
                try:
                    if _writable(self._requests, min(_POLL_SECONDS, seconds)):
                        line = line[os.write(self._requests, line) :]
                        continue
                except BlockingIOError:
                    pass
                except OSError as error:  # the reading end is closed
                    raise self.lost() from error
                cancelled = any(each.is_set() for each in every)
                if cancelled or time.monotonic() >= deadline:
                    self._end()  # half a request may lie there: another would be read as the rest of it
                    raise ClusterError(f"asking {self._what} was cancelled") if cancelled else self.hangs()

    def lost(self) -> ClusterError:
        """What is to be said when the program has ended and should not have."""
        return ClusterError(f"{self._what} was lost{self.last_words()}", hint=_WELL)

    def hangs(self) -> ClusterError:
        """What is to be said when the program is there and does nothing any more."""
        return ClusterError(
            f"what joined {self._what} does not answer any more{self.last_words()}",
            hint=_WELL,
        )

    def last_words(self) -> str:
        """The last line that the program, or Ray in it, wrote to standard error, after a colon."""
        lines = bytes(self._tail).decode(errors="replace").strip().splitlines()
        told = printable(_IN_RAYS_LOG.sub("", lines[-1]), 300) if lines else None
        return f": {told}" if told else ""

    def close(self, *, at_once: bool = False) -> None:
        """Has the program end what it began and leave; ends it where it does not, or ``at_once``."""
        with self._lock:
            self._over = True  # whoever writes sees that, and lets go
        with self._writing:
            if self._requests >= 0:
                os.close(self._requests)
            self._requests = -1
        try:
            self._process.wait(0.0 if at_once else LEAVE_SECONDS)
        except subprocess.TimeoutExpired as error:
            self._stack.__exit__(type(error), error, None)
        else:
            self._stack.close()
        for each in self._threads:
            each.join(1.0)

    def _listen(self, stream: IO[bytes]) -> None:
        # Closed while it is read: whoever asked has left. What is no answer ends the listening, too.
        with suppress(ValueError):
            while line := stream.readline(MOST_LINE_BYTES):
                answer = _ANSWERS.decode(line)
                if isinstance(answer, Joined | Refused):
                    self._first.put(answer)
                    continue
                with self._lock:
                    heard = self._heard.get(answer.id)
                if heard is not None:
                    heard.put(answer)
        self._end()

    def _end(self) -> None:
        """Nothing is asked any more, and no answer comes."""
        with self._lock:
            self._over = True
            queues = list(self._heard.values())
        for each in (self._first, *queues):
            each.put(None)

    def _drain(self, stream: IO[bytes]) -> None:
        with suppress(ValueError):  # as above
            while piece := os.read(stream.fileno(), 65536):
                self._tail.extend(piece)
                del self._tail[:-_TAIL_BYTES]


def _writable(descriptor: int, seconds: float) -> bool:
    """Whether something may be written there, or nobody reads any more; waits so long for that."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def _next(
    answers: queue.SimpleQueue[Answer | None], deadline: float, cancelled: threading.Event | None
) -> Answer | None:
    """The next answer; ``None`` at the end of all, at the deadline, or when it is cancelled."""
    while (left := deadline - time.monotonic()) > 0 and not (cancelled is not None and cancelled.is_set()):
        with suppress(queue.Empty):
            return answers.get(timeout=min(left, _POLL_SECONDS))
    return None
