"""A real Ray cluster of several nodes on this machine, each with GPUs of its own as the stub of NVML tells them.

Nothing of it is shared with another cluster that may run here: its ports are free ones, its addresses those of
loopback, its files in a short folder of its own, and it is ended by the ids of the processes that carry its mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from engines.environments.store import without_secrets
from tests.fakes.nvml.scenarios import h100
from tests.fakes.nvml.stub import Scenario

ROOT = Path(__file__).parents[2]
MARK = "AUTOLAUNCH_TEST_CLUSTER"
START_SECONDS = 90.0
_MEMORY_BYTES = 80_000_000
_BOOKS = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
from ray._private import state
from ray.util import placement_group_table
nodes = {each["NodeID"]: each["NodeManagerAddress"] for each in ray.nodes()}
groups = [
    {"name": each["name"], "nodes": [nodes[one] for _, one in sorted(each["bundles_to_node_id"].items())]}
    for each in placement_group_table().values() if each["state"] != "REMOVED"
]
actors = [
    {"class": each["ActorClassName"], "node": each["Address"]["IPAddress"]}
    for each in state.actors().values() if each["State"] != "DEAD"
]
free = {nodes[node]: each.get("GPU", 0.0) for node, each in state.available_resources_per_node().items()}
ours = ray.get_runtime_context().get_job_id()
jobs = [each["JobID"] for each in state.jobs() if not each["IsDead"] and each["JobID"] != ours]
seen = len(state.actors())
print(json.dumps({"groups": groups, "actors": actors, "free": free, "jobs": jobs, "seen": seen}))
"""


def free_port(address: str = "127.0.0.1") -> int:
    with socket.create_server((address, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def ranks(books: Mapping[str, Any]) -> list[str]:
    """The addresses of the nodes that have ranks of vLLM's."""
    return sorted(each["node"] for each in books["actors"] if each["class"] == "RayWorkerProc")


class RayNodes:
    """Starts nodes, and ends them all.

    Args:
        programs: the folder of Ray's programs.
        library: the folder of NVML's stub (:func:`tests.fakes.nvml.stub.build`).
        port: of the head; ``None`` is a free one.
    """

    def __init__(self, programs: Path, library: Path, *, port: int | None = None) -> None:
        self.programs, self.library = programs, library
        # Ray's sockets lie below, and a socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="al-ray-", dir="/tmp"))  # for the length of its name
        self.mark = uuid.uuid4().hex
        self.host = "127.0.0.2"
        self.port, self.client_port = port or free_port(self.host), free_port("0.0.0.0")  # noqa: S104 - Ray listens there
        self._started: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: set[int] = set()

    @property
    def address(self) -> str:
        """Of the head."""
        return f"{self.host}:{self.port}"

    @property
    def client_address(self) -> str:
        return f"ray://127.0.0.1:{self.client_port}"

    def begin(
        self,
        number: int,
        *,
        gpus: int,
        scenario: Scenario | None,
        autolaunch: str | None = None,
        within: Sequence[str] = (),
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """Starts the node at ``127.0.0.NUMBER``; the first is the head.

        ``gpus`` are those that Ray is told of, ``scenario`` those that there are. ``autolaunch`` is a script that
        stands for it on this node; ``""``: it has none. ``within`` is a program that starts the one after it.
        """
        folder = self.folder / f"n{number}"
        binaries = folder / "bin"
        binaries.mkdir(parents=True)
        if autolaunch != "":
            self._program(binaries / "autolaunch", scenario, folder, autolaunch)
        head = (
            ("--head", f"--port={self.port}", f"--ray-client-server-port={self.client_port}")
            if not self._started
            else (f"--address={self.address}",)
        )
        argv = (
            *within,
            str(self.programs / "ray"),
            "start",
            *head,
            *(("--include-dashboard=false", f"--temp-dir={self.folder / 't'}") if not self._started else ()),
            f"--node-ip-address=127.0.0.{number}",
            "--num-cpus=2",  # as many workers may start at once
            f"--num-gpus={gpus}",
            f"--object-store-memory={_MEMORY_BYTES}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
            "--block",
        )
        log = (folder / "log").open("wb")
        environment = without_secrets(os.environ) | {
            MARK: self.mark,
            "PATH": os.pathsep.join((str(binaries), str(self.programs), os.defpath)),
            "HOME": str(folder),
            "AUTOLAUNCH_HOME": str(folder / "home"),
            # As Ray did everywhere before 2.5x: the probe has to see what the node has all the same.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
            # A node that is gone is known to be after seconds; one that hangs is not taken for dead.
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_initial_delay_ms": "500",
            **environ,
        }
        environment.pop("RAY_ADDRESS", None)
        with log:
            process = subprocess.Popen(
                argv, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._started[number] = process
        return process

    def begin_alike(self, count: int, *, first: int = 2) -> None:
        """Starts so many nodes of an H100 each, at ``127.0.0.FIRST`` and on, and waits for them."""
        for number in range(first, first + count):
            self.begin(number, gpus=1, scenario=Scenario(gpus=(h100(number - 2),), numa=(0,)))
            self.wait()  # who joins has a bound of Ray's to do it in, which two at once on a slow machine do not keep

    def wait(self) -> None:
        """Until all of them have joined.

        Raises:
            AssertionError: one has not.
        """
        deadline = time.monotonic() + START_SECONDS
        logs = [self.folder / path for path in sorted(self.folder.glob("n*/log"))]
        while not all("Ray runtime started" in each.read_text(errors="replace") for each in logs):
            told = {each.parent.name: each.read_text(errors="replace")[-2000:] for each in logs}
            assert all(each.poll() is None for each in self._started.values() if each.pid not in self._killed), told
            assert time.monotonic() < deadline, told
            time.sleep(0.1)  # nothing tells of a line in a file

    def books(self) -> dict[str, Any]:
        """What Ray itself has in its books, with nodes' addresses.

        ``groups`` and ``actors`` that are there, ``free`` GPUs that nobody has, ``jobs`` (drivers) beside the one that
        asks, and how many actors were ever ``seen``.
        """
        done = subprocess.run(
            (str(self.programs / "python"), "-c", _BOOKS, self.address),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def cleared(self, seconds: float) -> None:
        """Until nobody has anything of it by Ray's books.

        Raises:
            AssertionError: somebody has.
        """
        deadline = time.monotonic() + seconds
        while (found := self.books())["groups"] or found["actors"] or set(found["free"].values()) != {1.0}:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)  # nobody tells of Ray's books

    def processes(self) -> list[psutil.Process]:
        """What runs of the cluster."""
        found = []
        for each in psutil.process_iter():
            try:
                if each.status() != psutil.STATUS_ZOMBIE and each.environ().get(MARK) == self.mark:
                    found.append(each)
            except psutil.Error:
                continue
        return found

    def of_node(self, number: int, name: str) -> list[psutil.Process]:
        """The processes of a node by how their program begins, such as ``raylet``."""
        found = []
        for each in self.processes():
            with contextlib.suppress(psutil.Error):
                if each.name().startswith(name) and each.environ().get("HOME") == str(self.folder / f"n{number}"):
                    found.append(each)
        return found

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """A node's power goes: all of its processes at once."""
        number = next(each for each, started in self._started.items() if started is process)
        self._killed.add(process.pid)
        while left := self.of_node(number, ""):  # again, for those that were just beginning
            for each in left:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            process.poll()
        process.wait(20)

    def started(self, number: int) -> subprocess.Popen[bytes]:
        """The node's first process."""
        return self._started[number]

    def close(self) -> None:
        """Ends all of it, and takes its files away."""
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            for each in left:
                try:
                    each.send_signal(signal.SIGKILL)
                except psutil.Error:
                    continue
            for process in self._started.values():
                process.poll()
            time.sleep(0.05)  # for those that were just beginning
        for process in self._started.values():
            process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert left == [], "nodes of the test's cluster did not end"

    def _program(self, path: Path, scenario: Scenario | None, folder: Path, instead: str | None) -> None:
        (folder / "scenario.txt").write_text((scenario or Scenario()).text())
        variables = {
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": str(self.library),
            "NVML_STUB_SCENARIO": str(folder / "scenario.txt"),
        }
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        ours = f'exec {shlex.quote(sys.executable)} -m autolaunch "$@"'
        path.write_text("\n".join(("#!/bin/sh", *lines, instead or ours, "")))
        path.chmod(0o755)
