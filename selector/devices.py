"""What the planner makes of a HardwareReport: devices with what may be allocated on each, in groups.

A group is what one replica may span: devices of one kind and size. The host's processor is a group of one
device, so that every engine is planned the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

from selector.facts import AcceleratorFacts
from selector.hardware import Accelerator, HardwareReport, Link

DeviceKind = Literal["nvidia", "amd", "apple", "cpu"]
Lookup = Callable[[Accelerator], AcceleratorFacts | None]

MIB = 1 << 20
GIB = 1 << 30

#: CUDA's total lies 0.35 to 0.8 GiB below NVML's (public vLLM logs of RTX 4090, A100, H100, H200, B200);
#: taken where a profile does not tell ``cuda_total_mib``.
DRIVER_RESERVE_BYTES = 600 * MIB
#: What an operating system and its services keep of a memory they share with the GPU (GB10: 8 GiB, assumed).
UNIFIED_RESERVE_BYTES = 8 * GIB
#: Share of main memory that a CPU engine may fill (assumed).
HOST_SHARE = 0.9


class Device(msgspec.Struct, frozen=True):
    """One place for a rank.

    ``allocatable_bytes`` is what the runtime hands out on the device when it is empty, ``free_bytes`` what is
    left of that now. ``counted_bytes`` is the total
    that a runtime reports and an engine's share refers to: more than is allocatable where memory is shared with the
    system. ``None`` bandwidths and rates are unknown, and stay unknown in the estimate.
    """

    index: int | None
    kind: DeviceKind
    name: str
    node: int
    total_bytes: int
    allocatable_bytes: int
    free_bytes: int
    counted_bytes: int
    capability: tuple[int, int] | None
    facts: AcceleratorFacts | None
    sliced: bool = False
    holders: tuple[str, ...] = ()

    @property
    def bandwidth_bytes_per_second(self) -> float | None:
        return None if self.facts is None else self.facts.bandwidth_gb_per_second * 1e9

    def flops(self, kernel: str) -> float | None:
        """Dense operations a second for a kernel: weight-only kernels compute in 16 bits."""
        if self.facts is None:
            return None
        wide = self.facts.bf16_tflops or self.facts.fp16_tflops
        rate = {"fp8": self.facts.fp8_tflops or wide, "fp4": self.facts.fp8_tflops or wide}.get(kernel, wide)
        return None if rate is None else rate * 1e12


class Group(NamedTuple):
    """Devices that may serve together, the emptiest first within a node. ``link`` is the slowest way between two."""

    kind: DeviceKind
    name: str
    devices: tuple[Device, ...]
    link: Literal["fast", "pcie", "none"]
    nodes: tuple[int, ...]
    per_node: int

    @classmethod
    def of(cls, devices: tuple[Device, ...], link: Literal["fast", "pcie", "none"]) -> Group:
        """A group of devices that are alike; how many a node holds is counted once."""
        counts: dict[int, int] = {}
        for device in devices:
            counts[device.node] = counts.get(device.node, 0) + 1
        first = devices[0]
        return cls(first.kind, first.name, devices, link, tuple(sorted(counts)), max(counts.values()))

    def first(self, count: int) -> Group:
        """The group cut to its first devices."""
        return Group.of(self.devices[:count], self.link)


class Unusable(msgspec.Struct, frozen=True):
    """A device that cannot be planned with, and why."""

    name: str
    index: int | None
    reason: str


def _accelerator(device: Accelerator, facts: AcceleratorFacts | None) -> Device | Unusable:
    total = device.memory_total_bytes
    if total is None or total <= 0:
        return Unusable(device.name, device.index, "its driver does not tell how much memory it has")
    free = total if device.memory_free_bytes is None else min(device.memory_free_bytes, total)
    if device.metal is not None:
        metal = device.metal
        allocatable = metal.wired_limit_bytes or metal.recommended_working_set_bytes or total * 3 // 4
        allocatable = min(allocatable, total)
    elif device.memory_kind == "unified":
        allocatable = max(total - UNIFIED_RESERVE_BYTES, 0)
    elif device.vendor == "nvidia" and device.mig_parent_uuid is None:
        known = None if facts is None or facts.cuda_total_mib is None else facts.cuda_total_mib * MIB
        # A profile's figure is for the card of that name; one with another memory has the usual reserve.
        alike = known is not None and 0 <= total - known <= 2 * DRIVER_RESERVE_BYTES
        allocatable = known if known is not None and alike else total - DRIVER_RESERVE_BYTES
    else:
        allocatable = total
    taken = total - free if device.metal is None else 0
    return Device(
        index=device.index,
        kind=device.vendor,
        name=device.name,
        node=device.node,
        total_bytes=total,
        allocatable_bytes=allocatable,
        free_bytes=max(0, min(allocatable - taken, free)),
        counted_bytes=total if device.memory_kind == "unified" else allocatable,
        capability=device.compute_capability,
        facts=facts,
        sliced=device.mig_parent_uuid is not None,
        holders=tuple(f"{process.name or 'process'} ({process.pid})" for process in device.processes),
    )


def _link(devices: Iterable[Device], links: tuple[Link, ...]) -> Literal["fast", "pcie", "none"]:
    inside = {device.index for device in devices}
    if len(inside) < 2:
        return "none"
    fast = {
        frozenset((link.from_, link.to))
        for link in links
        if link.kind in ("nvlink", "nvswitch", "infinity-fabric") and link.from_ in inside and link.to in inside
    }
    nodes: dict[int, int] = {}
    for device in devices:
        nodes[device.node] = nodes.get(device.node, 0) + 1
    pairs = sum(count * (count - 1) // 2 for count in nodes.values())
    return "fast" if pairs and len(fast) >= pairs else "pcie"


def groups(
    report: HardwareReport, lookup: Lookup, only: tuple[int, ...] | None = None
) -> tuple[tuple[Group, ...], tuple[Unusable, ...]]:
    """Sort a report's devices into groups; ``only`` are the indices a user allowed.

    Ordered by memory, largest first, the host's processor last.
    """
    usable: dict[tuple[str, int], list[Device]] = {}
    unusable: list[Unusable] = []
    for accelerator in report.accelerators:
        if only is not None and accelerator.index not in only:
            continue
        device = _accelerator(accelerator, lookup(accelerator))
        if isinstance(device, Unusable):
            unusable.append(device)
        else:
            usable.setdefault((device.name, device.total_bytes // GIB), []).append(device)
    found = []
    for devices in usable.values():
        ordered = tuple(sorted(devices, key=lambda each: (each.node, -each.free_bytes, each.index or 0)))
        found.append(Group.of(ordered, _link(ordered, report.links)))
    found.sort(key=lambda group: (-sum(device.allocatable_bytes for device in group.devices), group.name))
    host = _host(report) if only is None else None
    return (*found, *([] if host is None else [host])), tuple(unusable)


def _host(report: HardwareReport) -> Group | None:
    total = report.host.memory_total_bytes
    shared = any(device.memory_kind == "unified" for device in report.accelerators)
    if total is None or report.nodes > 1 or shared:
        # Memory shared with a GPU is planned on the GPU, which is never the slower of the two.
        return None
    allocatable = int(total * HOST_SHARE)
    available = report.host.memory_available_bytes
    free = allocatable if available is None else min(available, allocatable)
    brand = report.host.cpu.brand or "CPU"
    device = Device(None, "cpu", brand, 0, total, allocatable, free, allocatable, None, None)
    return Group.of((device,), "none")
