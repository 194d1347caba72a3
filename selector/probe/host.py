"""The machine around the accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from selector.hardware import Finding, Host
from selector.probe.cgroup import within_limits
from selector.probe.processor import probe_processor
from selector.probe.system import HostMemory, System
from selector.probe.text import printable, read_text, whole_number

OsName = Literal["linux", "darwin", "windows", "other"]


def probe_host(
    system: System, *, cache_directory: Path | None = None, model_directory: Path | None = None
) -> tuple[Host, Finding]:
    """The host, and ``failed`` where its memory is unknown: without that figure nothing can be planned on it."""
    names: dict[str, OsName] = {"linux": "linux", "darwin": "darwin", "win32": "windows"}
    name = names.get(system.platform, "other")
    total, available = _memory(system)
    if total is not None and available is not None and not 0 <= available <= total:
        available = None
    host = Host(
        os=name,
        os_version=_linux_version(system) if name == "linux" else _macos_version(system) if name == "darwin" else None,
        machine=system.machine,
        cpu=probe_processor(system, cache_directory),
        memory_total_bytes=total,
        memory_available_bytes=available,
        disk_free_bytes=system.disk_free(model_directory or hub_cache(system.environment)),
    )
    if total is None:
        return host, Finding(probe="host", outcome="failed", reason="the size of main memory is not told")
    return host, Finding(probe="host", outcome="found")


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps checkpoints, by its own rule (read here to save importing it)."""
    if place := environment.get("HF_HUB_CACHE"):
        return Path(place).expanduser()
    if place := environment.get("HF_HOME"):
        return Path(place).expanduser() / "hub"
    cache = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME") or "/") / ".cache")
    return Path(cache).expanduser() / "huggingface" / "hub"


def _memory(system: System) -> HostMemory:
    if system.platform != "linux":
        return system.memory()
    values: dict[str, int] = {}
    for line in (read_text(system.root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        kibibytes = whole_number(value.strip().removesuffix("kB"))
        if kibibytes is not None and kibibytes >= 0:
            values[key] = kibibytes * 1024
    # A kernel before 3.14 has no MemAvailable: free memory alone is a low, safe answer.
    memory = HostMemory(values.get("MemTotal") or None, values.get("MemAvailable", values.get("MemFree")))
    return within_limits(system.root, memory)


def _linux_version(system: System) -> str | None:
    release = read_text(system.root / "etc/os-release") or read_text(system.root / "usr/lib/os-release") or ""
    fields = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    distribution = fields.get("PRETTY_NAME", "").strip("\"'")
    kernel = f"Linux {system.kernel}" if system.kernel else ""
    return printable(", ".join(part for part in (distribution, kernel) if part))


def _macos_version(system: System) -> str | None:
    answer = system.run(("/usr/sbin/sysctl", "-n", "kern.osproductversion"))
    version = printable(answer.output, 40)
    return None if version is None or answer.failure else f"macOS {version}"
