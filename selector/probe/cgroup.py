"""What the control groups leave of the host's memory: Linux, version 1 and 2, the whole chain of parents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from selector.probe.system import HostMemory
from selector.probe.text import read_number, read_text, whole_number


class _Files(NamedTuple):
    """What a version calls its files. ``inactive`` is the key of ``memory.stat`` over the whole subtree."""

    limit: str
    usage: str
    inactive: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def within_limits(root: Path, memory: HostMemory) -> HostMemory:
    """``memory`` lowered to the tightest limit of the groups this process is in.

    What a group may still take is its limit less what it uses, not counting the page cache that the kernel gives
    up first (``inactive_file``): a download fills that cache without taking memory from anyone.
    """
    total, available = memory
    for group, files in _groups(root):
        limit = read_number(group / files.limit)
        # "max" is no number; version 1 writes no limit as a figure beyond any memory.
        if limit is None or limit < 0 or (memory.total_bytes is not None and limit >= memory.total_bytes):
            continue
        total = limit if total is None else min(total, limit)
        usage = read_number(group / files.usage)
        left = limit if usage is None else max(0, limit - max(0, usage - _inactive(group, files)))
        available = left if available is None else min(available, left)
    return HostMemory(total, available)


def _inactive(group: Path, files: _Files) -> int:
    for line in (read_text(group / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == files.inactive:
            return max(0, whole_number(value) or 0)
    return 0


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The directories of our groups and all their parents, those that exist."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if hierarchy == "0" and not controllers:
            mount, files = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        path = PurePosixPath(name.lstrip("/"))
        # Inside a namespace a group outside of it is written with "..": nothing below the mount is ours to read.
        inside = () if ".." in path.parts else (path, *path.parents)
        # A container may see its own group as the mount's root, under a name that exists on the host only.
        for place in dict.fromkeys((*inside, PurePosixPath())):
            directory = mount / place
            if directory.is_dir():
                yield directory, files
