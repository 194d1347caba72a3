"""What two machines differ in, as far as a launch that was proved on the one depends on it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from selector.hardware import Accelerator, HardwareReport

if TYPE_CHECKING:
    from autolaunch.locked import Difference

#: Of the same memory two drivers, and two kernels, tell figures that differ by so much.
SAME_MEMORY = 0.02
_GIB = 1 << 30
_FEATURES_SHOWN = 6


def of_machines(before: HardwareReport, now: HardwareReport, devices: frozenset[int]) -> Iterator[Difference]:
    """``devices`` are the indices that the launch had; none: it ran on the processor, and GPUs are no matter."""
    from autolaunch.locked import Difference

    def told(what: str, one: object, other: object, *, matters: bool = True) -> Iterator[Difference]:
        if one != other:
            yield Difference(what=what, locked=_shown(one), now=_shown(other), matters=matters)

    old, new = before.host, now.host
    yield from told("operating system", old.os, new.os)
    yield from told("its version", old.os_version, new.os_version, matters=False)
    yield from told("architecture", old.machine, new.machine)
    yield from told("processor", old.cpu.brand, new.cpu.brand, matters=not devices)
    yield from told("processors", old.cpu.cores, new.cpu.cores, matters=not devices)
    missing = sorted(set(old.cpu.features) - set(new.cpu.features))
    if missing:
        more = f" and {len(missing) - _FEATURES_SHOWN} more" if len(missing) > _FEATURES_SHOWN else ""
        yield Difference(what="processor features", locked=" ".join(missing[:_FEATURES_SHOWN]) + more, now="not there")
    if not _same_memory(old.memory_total_bytes, new.memory_total_bytes):
        yield from told("main memory", _memory(old.memory_total_bytes), _memory(new.memory_total_bytes))
    yield from told("nodes", before.nodes, now.nodes)
    if not devices:
        return
    used = [each for each in before.accelerators if each.index in devices]
    here = {each.index: each for each in now.accelerators}
    for each in used:
        other = here.get(each.index)
        if other is None:
            yield Difference(what=f"device {each.index}", locked=each.name, now="none")
            continue
        yield from _of_devices(each, other)
    vendors = {each.vendor for each in used}
    for vendor in sorted(vendors):
        drivers = [next((one for one in report.drivers if one.vendor == vendor), None) for report in (before, now)]
        versions = ["unknown" if one is None else f"{one.version} ({one.runtime})" for one in drivers]
        yield from told(f"{vendor} driver", *versions)
    yield from told("links between them", _links(before, devices), _links(now, devices))


def _of_devices(old: Accelerator, new: Accelerator) -> Iterator[Difference]:
    from autolaunch.locked import Difference

    name = f"device {old.index}"
    pairs: tuple[tuple[str, object, object, bool], ...] = (
        (name, old.name, new.name, True),
        (f"{name}, node", old.node, new.node, True),
        (f"{name}, kind of memory", old.memory_kind, new.memory_kind, True),
        (f"{name}, compute capability", old.compute_capability, new.compute_capability, True),
        (f"{name}, a MIG slice", old.mig_parent_uuid is not None, new.mig_parent_uuid is not None, True),
        (f"{name}, UUID", old.uuid, new.uuid, False),
    )
    for what, one, other, matters in pairs:
        if one != other:
            yield Difference(what=what, locked=_shown(one), now=_shown(other), matters=matters)
    if not _same_memory(old.memory_total_bytes, new.memory_total_bytes):
        figures = (_memory(old.memory_total_bytes), _memory(new.memory_total_bytes))
        yield Difference(what=f"{name}, memory", locked=figures[0], now=figures[1])
    limits = [None if each.metal is None else each.metal.wired_limit_bytes for each in (old, new)]
    if limits[0] != limits[1]:
        yield Difference(what=f"{name}, wired limit", locked=_memory(limits[0]), now=_memory(limits[1]))


def _links(report: HardwareReport, devices: frozenset[int]) -> str:
    kinds = [each.kind for each in report.links if {each.from_, each.to} <= devices]
    return ", ".join(f"{kinds.count(kind)} by {kind}" for kind in sorted(set(kinds))) or "none known"


def _same_memory(one: int | None, other: int | None) -> bool:
    if one is None or other is None:
        return one == other
    return abs(one - other) <= SAME_MEMORY * max(one, other)


def _memory(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / _GIB:,.1f} GiB"


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ".".join(map(str, value))
    return str(value)
