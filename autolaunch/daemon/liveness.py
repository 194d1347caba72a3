"""Whether an engine that was ready still gives tokens. Health pages do not tell: an engine can answer them and hang."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from autolaunch.daemon.health import WORKING_SHARE, request_token, what_came
from autolaunch.daemon.process import QUIET_SECONDS
from autolaunch.daemon.readable import readable

if TYPE_CHECKING:
    from autolaunch.daemon.process import EngineProcess
    from autolaunch.server import Server

#: How long a token may take of an engine that is busy: it may have long prompts before ours, and one that serves a
#: request at a time makes us wait for all of it.
BUSY_SECONDS = 600.0
_POLL_SECONDS = 0.5


def ask_for_token(
    server: Server,
    *,
    quiet_seconds: float = QUIET_SECONDS,
    busy_seconds: float = BUSY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> str | None:
    """``None`` when a token came, or the engine is busy and says so; else one sentence of what happened instead.

    It waits for ``quiet_seconds`` without a sign of work (output, processor time), for ``busy_seconds`` with it.
    """
    address, name = server.address, server.engine.name
    connection = http.client.HTTPConnection(address.reachable_host, address.port, timeout=quiet_seconds)
    work = _Work(server.process, clock)
    try:
        request_token(connection, server.served_name, server.api_key)
        while connection.sock is not None and not readable(connection.sock, _POLL_SECONDS):
            if server.process.stopping:
                return f"{name} ended while it was asked for a token"
            work.look()
            if work.quiet_seconds() > quiet_seconds:
                return f"{name} gave no token within {quiet_seconds:.0f} s, and did nothing meanwhile"
            if work.total_seconds() > busy_seconds:
                return f"{name} gave no token within {busy_seconds:.0f} s"
        came = what_came(connection.getresponse())
    except (OSError, http.client.HTTPException) as error:
        return f"{name} did not answer: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    # A full queue is no hang: it refuses because it works.
    return None if not came else f"{name} does not complete: {came}"


class _Work:
    """When a process last showed that it works."""

    def __init__(self, process: EngineProcess, clock: Callable[[], float]) -> None:
        self._process = process
        self._clock = clock
        self._began = self._worked = self._looked = clock()
        self._bytes = process.output_bytes
        self._cpu_seconds = process.cpu_seconds()

    def look(self) -> None:
        now, cpu_seconds, seen_bytes = self._clock(), self._process.cpu_seconds(), self._process.output_bytes
        worked = seen_bytes != self._bytes
        if cpu_seconds is not None and self._cpu_seconds is not None:
            worked = worked or cpu_seconds - self._cpu_seconds > WORKING_SHARE * (now - self._looked)
        if worked:
            self._worked = now
        self._looked, self._bytes, self._cpu_seconds = now, seen_bytes, cpu_seconds

    def quiet_seconds(self) -> float:
        return self._clock() - self._worked

    def total_seconds(self) -> float:
        return self._clock() - self._began
