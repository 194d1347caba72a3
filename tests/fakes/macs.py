"""Plays a Mac to the probe from a file of ``tests/data/machines/macs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from selector.probe.interfaces import Interface
from selector.probe.system import Completed, HostMemory, System

DATA = Path(__file__).parents[1] / "data/machines/macs"


class Mac(msgspec.Struct, frozen=True):
    """``sysctl`` by key; ``system_profiler`` and ``cpuinfo`` as JSON, or as the text that comes in its place."""

    note: str
    machine: str
    kernel: str
    cores: int
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    sysctl: dict[str, str]
    system_profiler: Any
    cpuinfo: Any

    def run(self, argv: tuple[str, ...]) -> Completed:
        if argv[0].endswith("sysctl"):
            return self._sysctl(argv[1:])
        told = self.system_profiler if argv[0].endswith("system_profiler") else self.cpuinfo
        return Completed(told if isinstance(told, str) else msgspec.json.encode(told).decode())

    def _sysctl(self, arguments: tuple[str, ...]) -> Completed:
        bare = arguments[0] == "-n"
        keys = arguments[1:] if bare else arguments
        known = [key for key in keys if key in self.sysctl]
        lines = (self.sysctl[key] if bare else f"{key}: {self.sysctl[key]}" for key in known)
        return Completed("".join(f"{line}\n" for line in lines), None if len(known) == len(keys) else "exited with 1")

    def system(self, environment: Mapping[str, str] | None = None) -> System:
        return System(
            root=Path("/nowhere"),
            platform="darwin",
            machine=self.machine,
            kernel=self.kernel,
            environment=environment or {},
            run=self.run,
            cores=lambda: self.cores,
            memory=lambda: HostMemory(self.memory_total_bytes, self.memory_available_bytes),
            process_name=lambda _: None,
            disk_free=lambda _: self.disk_free_bytes,
            interfaces=lambda: {"en0": Interface(up=True, megabits_per_second=10_000)},
        )


def mac(name: str) -> Mac:
    return msgspec.json.decode((DATA / f"{name}.json").read_bytes(), type=Mac)
