"""A daemon as a child process, what it says, and every process that comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from autolaunch.daemon.lock import holder
from autolaunch.daemon.ports import free_port
from autolaunch.launching import RUN_MARK
from tests.fakes.supervised import leased

ROOT = Path(__file__).parents[2]


def entry(name: str, port: int | None, **more: object) -> str:
    """A deployment of the miniature, as the configuration has it."""
    flat: dict[str, object] = {} if port is None else {"port": port}
    for key, value in more.items():
        flat |= {f"{key}.{below}": one for below, one in value.items()} if isinstance(value, dict) else {key: value}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in flat.items()]
    return f'[[deployments]]\nmodel = "glm-tiny"\nname = "{name}"\n{"".join(lines)}'


class Served:
    """``autolaunch serve`` on a home of its own, with the fake engine unless ``real``."""

    def __init__(self, folder: Path, *, real: bool = False, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.configuration = folder / "autolaunch.toml"
        self.port, self.gateway_port = free_port("127.0.0.1", 0), free_port("127.0.0.1", 0)
        self.configure(entry("a", self.port))
        self.module = "autolaunch" if real else "tests.fakes.daemon"
        self.environ = {**os.environ, "AUTOLAUNCH_HOME": str(self.home), **(environ or {})}
        self.said = folder / "said"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, *entries: str, **gateway: object) -> None:
        """The deployments, behind a gateway of its own; ``gateway`` is what else is set of that."""
        settings = {"port": self.gateway_port, **gateway}
        lines = [f"gateway.{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.configuration.write_text("\n".join((*lines, *entries)))

    def start(self, *, seen: bool = True) -> subprocess.Popen[bytes]:
        """Begins; without ``seen`` nobody reads what it says."""
        self.said.write_bytes(b"")
        command = (sys.executable, "-m", self.module, "serve", "--config", str(self.configuration), "--json")
        with self.said.open("ab") as said:
            stream = said if seen else subprocess.PIPE
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environ, stdout=stream, stderr=stream)
        if not seen:
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()
        return self.process

    def begin(self) -> int:
        """Starts it and waits until deployment ``a`` serves; returns the engine's process id."""
        self.start()
        self.until(lambda: self.told("engine.ready"))
        return self.engine("a")

    # --- what it says

    def events(self) -> list[dict[str, Any]]:
        """Every whole line that was said."""
        lines = self.said.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def told(self, event: str, deployment: str | None = None) -> list[dict[str, Any]]:
        return [
            each
            for each in self.events()
            if each.get("event") == event and deployment in (None, each.get("deployment"))
        ]

    def state(self) -> dict[str, Any]:
        """The state file, which is whole at any moment."""
        found: dict[str, Any] = json.loads((self.home / "daemon" / "state.json").read_bytes())
        return found

    def until(self, true: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not happen in time: {self.said.read_text()[-3000:]}")
            time.sleep(0.02)

    # --- what runs

    def processes(self) -> list[psutil.Process]:
        """Everything that came of it, wherever in the tree of processes it is now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get("AUTOLAUNCH_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def engines(self) -> list[psutil.Process]:
        """The engines' own processes, which lead a session each."""
        found = []
        for process in self.processes():
            try:
                marked = RUN_MARK in process.environ() and os.getsid(process.pid) == process.pid
                if marked and "guard.py" not in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def engine(self, name: str) -> int:
        """The process id that the state file has of a deployment's engine."""
        self.until(lambda: self.state()["deployments"].get(name, {}).get("run"))
        return int(self.state()["deployments"][name]["run"]["engine_pid"])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the daemon alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, seconds: float = 20.0, *, swept: bool = True) -> int:
        """SIGTERM; the exit code. Nothing of it may be left; not ``swept``: but for folders of an earlier daemon."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.nothing_left(swept=swept)
        return code

    def nothing_left(self, seconds: float = 0.0, *, swept: bool = True) -> None:
        """No process, no lease and no lock is left, and no run's folder if ``swept``; ``seconds`` are for a guard."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert leased(self.home) == []
        assert holder(self.home / "daemon") is None
        if swept:
            run = self.home / "run"
            assert not run.exists() or list(run.iterdir()) == []

    def close(self) -> None:
        """Ends whatever there is; for after a test that failed too."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue
        if self.process is not None:
            self.process.wait(10)
