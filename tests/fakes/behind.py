"""FAKE: a gateway in front of the fake engine, as processes. The gateway itself is real."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autolaunch.daemon.gateway.keys import key_of
from autolaunch.daemon.ports import free_port

ROOT = Path(__file__).parents[2]
KEY = "sk-of-the-tests-0123456789abcdef0123456789abcdef"
START_SECONDS = 20.0


class Behind:
    """The engine in one of its modes (:mod:`tests.fakes.engine`) as ``fake``, and the gateway; for a ``with``."""

    def __init__(self, folder: Path, mode: str, *, keyed: bool = True) -> None:
        self.engine_port, self.port = free_port("127.0.0.1", 0), free_port("127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        folder.mkdir(parents=True, exist_ok=True)
        self._said = folder / "said"
        keys: tuple[str, ...] = ()
        if keyed:
            file = folder / "keys"
            file.touch(mode=0o600)
            file.write_text(f"{key_of('tests', KEY).line}\n")
            keys = ("--keys", str(file))
        over = ("--port", str(self.port), "--upstream", f"fake={self.engine_port}", *keys)
        self._commands = (
            (sys.executable, "-m", "tests.fakes.engine", "--port", str(self.engine_port), "--mode", mode),
            (sys.executable, "-m", "tests.fakes.gateway", *over),
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            with self._said.open("ab") as said:
                for command in self._commands:
                    self._processes.append(subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said))
            until = time.monotonic() + START_SECONDS
            for port in (self.engine_port, self.port):
                while not answers(port):
                    assert time.monotonic() < until, self._said.read_text()
                    time.sleep(0.05)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def clients_that_left(self) -> int:
        """How many streams the engine ended because nobody was there any more."""
        connection = http.client.HTTPConnection("127.0.0.1", self.engine_port, timeout=5.0)
        try:
            connection.request("GET", "/left")
            found: dict[str, Any] = json.load(connection.getresponse())
            return int(found["left"])
        finally:
            connection.close()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except OSError:
            return False
        return True
