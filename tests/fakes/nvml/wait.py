"""The program that :func:`tests.fakes.nvml.stub.wait` runs: what was free, and a wait until it is again."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import msgspec

from autolaunch.daemon.device_memory import free_memory, wait_for_memory

request = json.loads(sys.argv[1])
uuids = frozenset(request["uuids"])
free = free_memory(uuids)
slept: list[float] = []
clock_seconds = 0.0


def sleep(seconds: float) -> None:
    """Time goes by at once."""
    global clock_seconds  # noqa: PLW0603 - the clock of this program
    clock_seconds += seconds
    slept.append(seconds)


holders = wait_for_memory(
    uuids,
    frozenset(request["process_ids"]),
    free_before=request["free_before"],
    timeout_seconds=30.0,
    clock=lambda: clock_seconds,
    sleep=sleep,
)
try:
    left_open = ctypes.CDLL("libnvidia-ml.so.1").nvml_stub_open_count()
except OSError:
    left_open = 0
told = {"free": free, "holders": msgspec.to_builtins(holders), "slept": slept, "left_open": left_open}
Path(request["answer"]).write_text(json.dumps(told))
