"""FAKE cluster: one machine that is several nodes by turns, without Ray. What is run on a node is run for real.

All of them have the same absolute paths below one folder, as the nodes of a cluster have; whose turn it is has its own
files there, and the others' lie aside. A node in ``sharing`` sees this host's files.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autolaunch.cluster import Cluster, End, Member, Output

ROOT = Path(__file__).parents[2]


class ByTurns(Cluster):
    """``place`` is the folder of which each node has its own; ``environ`` is what every node was started with."""

    def __init__(self, members: Sequence[Member], place: Path, environ: Mapping[str, str]) -> None:
        super().__init__("10.0.0.1:6379")
        self._nodes, self._place, self._environ = tuple(members), place, dict(environ)
        self.sharing: frozenset[str] = frozenset()
        self.ran_there: list[tuple[str, str]] = []
        for each in self._nodes:
            if not each.is_here:
                self.files_of(each.name).mkdir()

    @property
    def address(self) -> str:
        return "10.0.0.1:6379"

    def members(self, *, timeout_seconds: float = 0.0) -> tuple[Member, ...]:
        del timeout_seconds
        return self._nodes

    def files_of(self, name: str) -> Path:
        """Where a node's files lie when it is not its turn."""
        return self._place.with_name(f"{self._place.name}-{name}")

    @contextmanager
    def turn_of(self, name: str) -> Generator[None, None, None]:
        """Within it the place is that node's."""
        if name in self.sharing:
            yield
            return
        here = self._place.with_name(f"{self._place.name}-here")
        self._place.rename(here)
        self.files_of(name).rename(self._place)
        try:
            yield
        finally:
            self._place.rename(self.files_of(name))
            here.rename(self._place)

    def run(
        self,
        argv: Sequence[str],
        *,
        on: Iterable[Member] | None = None,
        timeout_seconds: float,
        environment: Mapping[str, str] | None = None,
        input_text: str = "",
        cancelled: threading.Event | None = None,
        **_: Any,
    ) -> Generator[Output | End, None, None]:
        del cancelled, timeout_seconds
        for member in tuple(self._nodes if on is None else on):
            self.ran_there.append((member.name, argv[2] if argv[1] == "engines" else argv[1]))
            with self.turn_of(member.name):
                done = subprocess.run(
                    (sys.executable, "-m", "autolaunch", *argv[1:]),
                    input=input_text,
                    env={**self._environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                    cwd="/",
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
            for text in done.stdout.splitlines():
                yield Output(member=member, stream="stdout", text=text)
            for text in done.stderr.splitlines():
                yield Output(member=member, stream="stderr", text=text)
            yield End(member=member, outcome="exited", exit_code=done.returncode, seconds=1.0)
