"""When an engine is ready: a real one-token completion came back, and it came back from our process.

A /health of 200 is not enough: an engine can answer it and fail its first request (MLX with bf16 experts
on a CPU does), and a stranger can answer on the port.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Literal, Protocol

from autolaunch.daemon.ports import Address
from autolaunch.daemon.process import STALL_SECONDS
from autolaunch.daemon.readable import readable
from engines.logs import Diagnosis, LogReader
from selector.errors import EngineStartError, PortTaken

POLL_SECONDS = 0.02
#: How often progress is looked at, and the share of one processor that counts as work.
PROGRESS_SECONDS, WORKING_SHARE = 1.0, 0.02
#: A finished load may still refuse a request or two; so many refusals in a row are its answer.
REFUSALS, REFUSAL_PAUSE_SECONDS = 3, 0.5
ANSWER_BYTES = 2**20

_LOADING = frozenset(
    {http.HTTPStatus.SERVICE_UNAVAILABLE, http.HTTPStatus.TOO_EARLY, http.HTTPStatus.TOO_MANY_REQUESTS}
)

#: A server's note of a request that it was sent, ours as a rule.
_ACCESS = re.compile(r'"(?:GET|POST|HEAD|OPTIONS) \S+ HTTP/[\d.]+"')
#: How many lines are looked through for the cause; a retry or two print below it.
CAUSE_LINES = 200

How = Literal["ended", "stalled", "late", "does not complete"]


class NotReady(EngineStartError):
    """An engine that will not serve.

    Attributes:
        how: it ended, did nothing for too long, took longer than it was given, or answers something else than tokens.
        diagnosis: why, where its lines tell.
    """

    def __init__(
        self, message: str, *, how: How, diagnosis: Diagnosis | None = None, lines: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=None if diagnosis is None else diagnosis.hint)
        self.how = how
        self.diagnosis = diagnosis
        for line in lines:
            self.add_note(line)


class Watched(Protocol):
    """What readiness asks of a process (:class:`autolaunch.daemon.process.EngineProcess`)."""

    def poll(self) -> int | None: ...
    def listens_on(self, port: int) -> bool | None: ...
    def cpu_seconds(self) -> float | None: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def output_bytes(self) -> int: ...
    def tail(self, count: int = 40) -> tuple[str, ...]: ...
    def wait(self, timeout_seconds: float) -> int | None: ...


def wait_until_ready(
    process: Watched,
    *,
    address: Address,
    model: str,
    engine: str,
    stall_seconds: float = STALL_SECONDS,
    timeout_seconds: float | None = None,
    on_progress: Callable[[float, str | None], None] = lambda _seconds, _line: None,
    reader: LogReader | None = None,
    api_key: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Waits for the first token of ``model``; returns the seconds it took.

    ``on_progress`` is told about once a second: seconds so far and the engine's last line. ``reader`` is the one that
    the process's lines are fed to; it is asked why the engine failed, and told when a token came.
    ``timeout_seconds`` is a total that the caller may want; by default there is none, only the stall.

    Raises:
        EngineStartError: it exited, stalled, or refuses to complete. The last lines are its notes.
        PortTaken: somebody else answers on the port.
    """
    reader = reader or LogReader(engine)
    wait = _Wait(process, address, model, engine, stall_seconds, timeout_seconds, on_progress, reader, clock, sleep)
    wait.api_key = api_key
    seconds = wait.run()
    reader.serves()
    return seconds


def request_token(connection: http.client.HTTPConnection, model: str, api_key: str | None) -> None:
    """Sends the request for one token of ``model``."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 1,
        "temperature": 0,
        "stream": False,
    }
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)


def what_came(response: http.client.HTTPResponse) -> str | None:
    """ "" when a token came, ``None`` while it loads (or takes no more), else what it said instead."""
    data = response.read(ANSWER_BYTES)
    if response.status in _LOADING:
        return None
    text = data.decode(errors="replace").strip()
    if response.status != http.HTTPStatus.OK:
        return f"{response.status} {text[:300]}"
    try:
        answer = json.loads(text)
        choices = answer["choices"]
        usage = answer.get("usage") or {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"an answer that is no completion: {text[:300]}"
    return "" if choices and usage.get("completion_tokens", 1) else "an empty completion"


class _Wait:
    def __init__(
        self,
        process: Watched,
        address: Address,
        model: str,
        engine: str,
        stall_seconds: float,
        timeout_seconds: float | None,
        on_progress: Callable[[float, str | None], None],
        reader: LogReader,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.process = process
        self.address = address
        self.model = model
        self.engine = engine
        self.stall_seconds = stall_seconds
        self.timeout_seconds = timeout_seconds
        self.on_progress = on_progress
        self.reader = reader
        self.clock = clock
        self.sleep = sleep
        self.started = self.looked = self.worked = clock()
        self.seen_bytes = -1
        self.seen_cpu_seconds: float | None = None
        self.api_key: str | None = None

    def run(self) -> float:
        refusals = 0
        while True:
            self._check()
            refusal = self._ask()
            if refusal == "":
                return self.clock() - self.started
            if refusal is None:
                refusals = 0
                self.sleep(POLL_SECONDS)
                continue
            refusals += 1
            if refusals == REFUSALS:
                raise self._failure(
                    f"{self.engine} started, but does not complete: {refusal}", "does not complete", lines_tell=True
                )
            self.sleep(REFUSAL_PAUSE_SECONDS)

    def _ask(self) -> str | None:
        """One try: "" when a token came, ``None`` while it loads, else what it said instead."""
        connection = http.client.HTTPConnection(self.address.reachable_host, self.address.port, timeout=30.0)
        try:
            try:
                connection.connect()
            except OSError:
                return None
            self._know_who_answers()
            try:
                return self._complete(connection)
            except (OSError, http.client.HTTPException):
                return None  # it closed on us: loading, or ending, which the next check sees
        finally:
            connection.close()

    def _complete(self, connection: http.client.HTTPConnection) -> str | None:
        request_token(connection, self.model, self.api_key)
        # Some engines take the request and answer once they have loaded: as long as there is progress.
        while connection.sock is not None and not readable(connection.sock, POLL_SECONDS):
            self._check()
        return what_came(connection.getresponse())

    def _know_who_answers(self) -> None:
        """Somebody took the connection; if the tree has no such socket it was a stranger."""
        if not self._is_foreign():
            return
        # Asked again: a socket may just have passed from one process of the tree to another.
        self.sleep(POLL_SECONDS)
        # And one that has closed since was our engine's, which is ending.
        if self._is_taken() and self._is_foreign() and self._is_taken():
            raise PortTaken(
                f"another program answers on port {self.address.port}, not {self.engine}",
                hint="choose another port with --port",
            )

    def _is_foreign(self) -> bool:
        return not self.process.stopping and self.process.listens_on(self.address.port) is False

    def _is_taken(self) -> bool:
        try:
            socket.create_connection((self.address.reachable_host, self.address.port), timeout=5.0).close()
        except OSError:
            return False
        return True

    def _check(self) -> None:
        """Raises when the process has ended or stalled."""
        if self.process.stopping:
            code = self.process.wait(20.0)
            raise self._failure(f"{self.engine} {how_it_ended(code)} while loading", "ended", lines_tell=True)
        now = self.clock()
        if self.timeout_seconds is not None and now - self.started > self.timeout_seconds:
            raise self._failure(f"{self.engine} was not ready within {self.timeout_seconds:.0f} s", "late")
        if now - self.looked < PROGRESS_SECONDS and self.seen_bytes >= 0:
            return
        self._look(now)
        if now - self.worked > self.stall_seconds:
            message = f"{self.engine} stalled: for {self.stall_seconds:.0f} s it printed nothing and did nothing"
            # What it said before may tell why it hangs (a lost GPU, a rank that has died); its last line alone not.
            raise self._failure(message, "stalled", lines_tell=self._diagnosis().cause != "unknown")

    def _look(self, now: float) -> None:
        cpu_seconds = self.process.cpu_seconds()
        seen_bytes = self.process.output_bytes
        elapsed_seconds = now - self.looked
        worked = seen_bytes != self.seen_bytes
        if cpu_seconds is not None and self.seen_cpu_seconds is not None:
            worked = worked or cpu_seconds - self.seen_cpu_seconds > WORKING_SHARE * elapsed_seconds
        if worked:
            self.worked = now
        self.looked, self.seen_bytes, self.seen_cpu_seconds = now, seen_bytes, cpu_seconds
        last = self.process.tail(1)
        self.on_progress(now - self.started, last[-1] if last else None)

    def _failure(self, message: str, how: How, *, lines_tell: bool = False) -> NotReady:
        lines = self.process.tail()
        told: Diagnosis | None = None
        if lines_tell:
            told = self._diagnosis()
            line = told.sentence or next((each for each in reversed(lines) if not _ACCESS.search(each)), "")[:200]
            message = f"{message}: {line}" if line else message
        return NotReady(message, how=how, diagnosis=told, lines=lines)

    def _diagnosis(self) -> Diagnosis:
        return self.reader.diagnose(self.process.tail(CAUSE_LINES), self.process.poll())


def how_it_ended(code: int | None) -> str:
    """``exited with code 1``, ``was ended by signal 9``, or ``ended`` where nobody knows."""
    if code is None:
        return "ended"
    return f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
