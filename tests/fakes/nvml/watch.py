"""The program that :func:`tests.fakes.nvml.stub.watch` runs: a :class:`DeviceWatch` over a scenario, for a time.

It ends as soon as ``expected`` troubles were told and ``linger_seconds`` have gone by without another one.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from pathlib import Path

import msgspec

from autolaunch.daemon.devices import DeviceTrouble, DeviceWatch

request = json.loads(sys.argv[1])
told: list[DeviceTrouble] = []
watch = DeviceWatch(told.append, **request["options"])
threads_before = threading.active_count()
watch.start()
lived = watch.is_running
end = time.monotonic() + 20.0
while len(told) < request["expected"] and time.monotonic() < end:
    time.sleep(0.01)
while watch.finding is None:
    time.sleep(0.01)
cpu_seconds, began = time.process_time(), time.monotonic()
time.sleep(request["linger_seconds"])
cpu_share = (time.process_time() - cpu_seconds) / (time.monotonic() - began)
lives, finding = watch.is_running, watch.finding
began = time.monotonic()
watch.close()
answer = {
    "troubles": msgspec.to_builtins(told),
    "outcome": finding.outcome,
    "reason": finding.reason,
    "lived": lived,
    "lives": lives,
    "ended": not watch.is_running and threading.active_count() == threads_before,
    "close_seconds": time.monotonic() - began,
    "cpu_share": cpu_share,
    "left_open": 0,
    "sets_left": 0,
}
try:
    library = ctypes.CDLL("libnvidia-ml.so.1")
except OSError:  # the scenario has no library
    pass
else:
    answer |= {"left_open": library.nvml_stub_open_count(), "sets_left": library.nvml_stub_set_count()}
Path(request["answer"]).write_text(json.dumps(answer))
