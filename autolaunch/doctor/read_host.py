"""Reads the host: limits, memory, containers, the clock. Everything of Linux comes from below ``system.root``."""

from __future__ import annotations

import datetime
import getpass
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from autolaunch.doctor.facts import UNLIMITED, DeviceNode, Host, Limit, Space, Unknown
from selector.errors import EngineInstallError
from selector.hardware import HardwareReport
from selector.probe.system import System
from selector.probe.text import printable, read_number, read_text, whole_number

_CHOSEN = re.compile(r"\[(\w+)\]")
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_NODES = ("dev/nvidiactl", "dev/nvidia-uvm", "dev/kfd")
_NODE_PATTERNS = ("nvidia[0-9]*", "dri/renderD*")


def read_host(system: System, report: HardwareReport) -> tuple[Host, tuple[Unknown, ...]]:
    """The host, and what of it could not be read."""
    unknown: list[Unknown] = []
    root, linux = system.root, system.platform == "linux"
    memory = _meminfo(root) if linux else {}
    shared = None
    if linux:
        shared = space_of(root / "dev/shm")
        if shared is None:
            unknown.append(Unknown(what="shared memory", why="there is no /dev/shm that can be asked"))
    synchronised = _synchronised() if linux else None
    if synchronised is None:
        why = "the kernel does not say" if linux else "only root may ask macOS (systemsetup -getusingnetworktime)"
        unknown.append(Unknown(what="whether the clock is set by the network", why=why))
    total, limit = memory.get("MemTotal"), report.host.memory_total_bytes
    host = Host(
        os=report.host.os,
        user=_user(),
        container=_container(system) if linux else None,
        limits=_limits(),
        tasks_limit=_tasks_limit(root) if linux else None,
        shared_memory=shared,
        transparent_hugepages=_chosen(read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        hugepages_bytes=memory.get("Hugetlb"),
        memory_total_bytes=total,
        memory_limit_bytes=limit if linux else None,
        swap_total_bytes=memory.get("SwapTotal"),
        swap_used_bytes=_less(memory.get("SwapTotal"), memory.get("SwapFree")),
        overcommit=read_number(root / "proc/sys/vm/overcommit_memory") if linux else None,
        commit_limit_bytes=memory.get("CommitLimit"),
        committed_bytes=memory.get("Committed_AS"),
        iommu=_iommu(root, report),
        infiniband=any((root / "sys/class/infiniband").glob("*")),
        clock_synchronised=synchronised,
        clock_year=datetime.datetime.now(datetime.UTC).year,
        python=platform.python_version(),
        uv=_uv(system),
    )
    return host, tuple(unknown)


def space_of(path: Path) -> Space | None:
    """The size of the file system at ``path`` and what this user may still write, or ``None``."""
    try:
        found = os.statvfs(path)
    except (OSError, ValueError):
        return None
    return Space(total_bytes=found.f_blocks * found.f_frsize, free_bytes=found.f_bavail * found.f_frsize)


def read_nodes(system: System) -> tuple[DeviceNode, ...]:
    """The files of GPUs that are there, and whether this user may read and write them."""
    paths = [system.root / name for name in _NODES]
    for pattern in _NODE_PATTERNS:
        # A display's card says nothing where there is neither NVIDIA nor ROCm.
        if pattern.startswith("dri") and not (system.root / "dev/kfd").exists():
            continue
        paths += sorted((system.root / "dev").glob(pattern))
    return tuple(
        DeviceNode(
            path=f"/{path.relative_to(system.root)}", usable=os.access(path, os.R_OK | os.W_OK), group=_group(path)
        )
        for path in paths
        if path.exists()
    )


def _group(path: Path) -> str | None:
    try:
        return path.group()
    except (OSError, KeyError):
        return None


def _user() -> str:
    try:
        return printable(getpass.getuser()) or str(os.getuid())
    except (OSError, KeyError):
        return str(os.getuid())


def _meminfo(root: Path) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        kibibytes = whole_number(value.strip().removesuffix("kB"))
        if kibibytes is not None and kibibytes >= 0:
            values[key] = kibibytes * 1024
    return values


def _less(total: int | None, free: int | None) -> int | None:
    return None if total is None or free is None else max(0, total - free)


def _chosen(text: str | None) -> str | None:
    found = _CHOSEN.search(text or "")
    return None if found is None else found[1]


def _limits() -> dict[str, Limit]:
    import resource

    kinds = {"nofile": resource.RLIMIT_NOFILE, "memlock": resource.RLIMIT_MEMLOCK, "nproc": resource.RLIMIT_NPROC}
    found = {}
    for name, kind in kinds.items():
        soft, hard = (UNLIMITED if each == resource.RLIM_INFINITY else each for each in resource.getrlimit(kind))
        found[name] = Limit(soft=soft, hard=hard)
    return found


def _tasks_limit(root: Path) -> int | None:
    """The smallest pids.max of our control group and its parents; ``None``: no limit, or none that is told."""
    found = [limit for place in _groups(root) if (limit := read_number(place / "pids.max")) is not None]
    return min(found, default=None)


def _groups(root: Path) -> Iterator[Path]:
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        path = PurePosixPath(name.lstrip("/"))
        if ".." in path.parts:
            path = PurePosixPath()
        if hierarchy == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
        elif "pids" in controllers.split(","):
            mount = root / "sys/fs/cgroup/pids"
        else:
            continue
        yield from (mount / place for place in (path, *path.parents))


def _container(system: System) -> str | None:
    if system.environment.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if (system.root / ".dockerenv").exists():
        return "docker"
    if (system.root / "run/.containerenv").exists():
        return "podman"
    return printable(read_text(system.root / "run/systemd/container"), 20)


def _iommu(root: Path, report: HardwareReport) -> Literal["off", "passthrough", "translating"] | None:
    """How the IOMMU treats the first GPU whose group tells."""
    for device in report.accelerators:
        if device.pci_bus_id is None or "/" in device.pci_bus_id:
            continue
        place = root / "sys/bus/pci/devices" / device.pci_bus_id
        kind = (read_text(place / "iommu_group/type") or "").strip()
        if kind:
            return "passthrough" if kind == "identity" else "translating"
        if place.is_dir():
            return "off"
    return None


def _synchronised() -> bool | None:
    """What the kernel knows of its clock, whoever sets it; ``None`` where it may not be asked."""
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    # struct timex with no mode set only asks; it has 208 bytes.
    state = call(ctypes.create_string_buffer(512))
    return None if state < 0 else state != _TIME_ERROR


def _uv(system: System) -> str | None:
    from engines.environments.installer import find_uv

    try:
        return find_uv(system.environment)
    except EngineInstallError:
        return None
