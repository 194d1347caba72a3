"""The program that :func:`tests.fakes.nvml.stub.ask` runs: one probe, written to a file as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import msgspec

from selector.probe.collect import collect
from selector.probe.system import this_system

request = json.loads(sys.argv[1])
system = this_system(request["environment"])
names = request["process_names"]
if names:
    system = msgspec.structs.replace(system, process_name=lambda pid: names.get(str(pid)))
if request["root"] is not None:
    host = request["host"]
    system = msgspec.structs.replace(
        system,
        root=Path(request["root"]),
        platform="linux",
        machine=host["machine"],
        kernel=host["kernel"],
        cores=lambda: host["cores"],
        disk_free=lambda _: host["disk_free_bytes"],
        interfaces=dict,
    )
report = collect(system)
try:
    left_open = ctypes.CDLL("libnvidia-ml.so.1").nvml_stub_open_count()
except OSError:  # the scenario has no library
    left_open = 0
told = {"report": json.loads(report.to_json()), "left_open": left_open}
Path(request["answer"]).write_text(json.dumps(told))
