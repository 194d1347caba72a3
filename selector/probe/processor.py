"""The processor's name and what programs may use of it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from selector.hardware import Cpu
from selector.probe.system import System
from selector.probe.text import printable, read_text
from selector.values import Value, readable

_CACHE_FILE = "processor.json"
_FEATURES_LIMIT = 1024


class _Kept(Value, frozen=True, kw_only=True):
    schema: int
    boot: str
    cpu: Cpu


class _CpuInfo(msgspec.Struct):
    """The keys of py-cpuinfo's JSON that we read."""

    brand_raw: str | None = None
    flags: list[str] = []


def probe_processor(system: System, cache_directory: Path | None) -> Cpu:
    """Brand, usable cores and feature names; what is not told is ``None`` or empty.

    On Linux the kernel's own list is read: it is quick, and it names what the kernel lets programs use, which can
    be less than the chip has. Elsewhere py-cpuinfo is asked, which takes a second: its answer is kept for the boot.
    """
    cores = system.cores()
    if system.platform == "linux":
        brand, features = _from_kernel(system.root)
        return Cpu(brand=brand, cores=cores, features=features)
    boot = _boot(system)
    path = None if cache_directory is None or boot is None else cache_directory / _CACHE_FILE
    kept = None if path is None else _read(path)
    if kept is not None and kept.boot == boot:
        return msgspec.structs.replace(kept.cpu, cores=cores)
    cpu = _from_cpuinfo(system)
    if path is not None and boot is not None and cpu is not None:
        _write(path, _Kept(schema=1, boot=boot, cpu=cpu))
    return Cpu(cores=cores) if cpu is None else msgspec.structs.replace(cpu, cores=cores)


def _from_kernel(root: Path) -> tuple[str | None, tuple[str, ...]]:
    """The first processor's block of /proc/cpuinfo: a big host has hundreds, and the kernel takes its time for each."""
    values: dict[str, str] = {}
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            while (line := file.readline(1 << 16)).strip():
                key, _, value = line.partition(":")
                values[key.strip()] = value.strip()
    except OSError:
        pass
    # Arm's kernel names no model; a board says it in its device tree.
    board = (read_text(root / "sys/firmware/devicetree/base/model") or "").rstrip("\0")
    features = values.get("flags") or values.get("Features") or ""
    return printable(values.get("model name") or board), tuple(features.split()[:_FEATURES_LIMIT])


def _from_cpuinfo(system: System) -> Cpu | None:
    # In a process of its own: it starts programs and raises bare Exception where it does not know the machine.
    answer = system.run((sys.executable, "-m", "cpuinfo", "--json"))
    try:
        told = msgspec.json.decode(answer.output, type=readable(_CpuInfo))
    except msgspec.DecodeError:
        return None
    flags = (printable(flag, 40) for flag in told.flags[:_FEATURES_LIMIT])
    return Cpu(brand=printable(told.brand_raw), features=tuple(flag for flag in flags if flag))


def _boot(system: System) -> str | None:
    answer = system.run(("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"))
    return None if answer.failure else printable(answer.output, 60)


def _read(path: Path) -> _Kept | None:
    text = read_text(path)
    try:
        return None if text is None else msgspec.json.decode(text, type=readable(_Kept))
    except msgspec.DecodeError:  # half written or from another version: asked anew and replaced
        return None


def _write(path: Path, kept: _Kept) -> None:
    """Whole or not at all; a directory that cannot be written only costs the second again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(kept))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
