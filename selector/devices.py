"""What the planner makes of a HardwareReport: devices with what may be allocated on each, in groups.

A group is what one replica may span: devices of one kind and size. The host's processor is a group of one
device, so that every engine is planned the same way. Where a machine has several kinds of NVIDIA GPU, they form
joint groups as well: every member counts as a device that has the least of each figure (memory, bandwidth, rates,
compute capability), because ranks wait for the slowest and an engine gives all of them the same share and layout.

An island is a set of devices of one node of which every two have a fast link; a device without one is an island
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from selector.facts import AcceleratorFacts
from selector.hardware import Accelerator, HardwareReport, Link
from selector.main_memory import of_first_node

if TYPE_CHECKING:
    from selector.interconnect import Reach

DeviceKind = Literal["nvidia", "amd", "apple", "cpu"]
Lookup = Callable[[Accelerator], AcceleratorFacts | None]

MIB = 1 << 20
GIB = 1 << 30

#: CUDA's total lies 0.35 to 0.8 GiB below NVML's (public vLLM logs of RTX 4090, A100, H100, H200, B200);
#: taken where a profile does not tell ``cuda_total_mib``.
DRIVER_RESERVE_BYTES = 600 * MIB
#: What others hold of a device is counted in steps of this.
TAKEN_STEP_BYTES = 64 * MIB
#: What an operating system and its services keep of a memory they share with the GPU (GB10: 8 GiB, assumed).
UNIFIED_RESERVE_BYTES = 8 * GIB

_FAST = frozenset({"nvlink", "nvswitch", "infinity-fabric"})
_RATES = ("bf16_tflops", "fp16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops", "pcie_gb_per_second")


class Device(msgspec.Struct, frozen=True):
    """One place for a rank.

    ``allocatable_bytes`` is what the runtime hands out on the device when it is empty, ``free_bytes`` what is
    left of that now. ``counted_bytes`` is the total
    that a runtime reports and an engine's share refers to: more than is allocatable where memory is shared with the
    system. ``None`` bandwidths and rates are unknown, and stay unknown in the estimate; ``free_known`` is false
    where nobody told what is free and ``free_bytes`` is that of an empty device.
    ``island`` and ``numa`` tell devices of one node that are near each other; ``family`` counts the kinds of device
    of a report. ``link_bytes_per_second`` and ``pcie_bytes_per_second`` are the slowest that the report tells of the
    device's fast links and of its other ways, one direction; ``None`` where it tells none. ``reach`` is how its node is
    reached from others (``None``: nobody told, or there are none), ``least`` whether it is of the kind of a joint group
    that all others are taken to be as small as.
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
    island: int = 0
    numa: int = -1
    family: int = 0
    free_known: bool = True
    link_bytes_per_second: int | None = None
    pcie_bytes_per_second: int | None = None
    reach: Reach | None = None
    least: bool = False

    @property
    def bandwidth_bytes_per_second(self) -> float | None:
        # A profile's bandwidth of 0 says that nobody knows it: nothing may be divided by it.
        return (
            None
            if self.facts is None or self.facts.bandwidth_gb_per_second <= 0
            else (self.facts.bandwidth_gb_per_second * 1e9)
        )

    def flops(self, kernel: str) -> float | None:
        """Dense operations a second for a kernel: weight-only kernels compute in 16 bits."""
        if self.facts is None:
            return None
        wide = self.facts.bf16_tflops or self.facts.fp16_tflops
        rate = {"fp8": self.facts.fp8_tflops or wide, "fp4": self.facts.fp8_tflops or wide}.get(kernel, wide)
        return rate * 1e12 if rate else None


class Alike:
    """A device as a key: equal to every other of its kind with as much memory, wherever it is and whoever holds it."""

    __slots__ = ("device", "key")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.key = (
            device.free_bytes,
            device.allocatable_bytes,
            device.counted_bytes,
            device.total_bytes,
            device.kind,
            device.name,
            device.capability,
            device.facts,
            device.link_bytes_per_second,
            device.pcie_bytes_per_second,
        )

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and self.key == other.key


#: ``network``: a tensor-parallel group lies on several nodes.
Way = Literal["fast", "pcie", "network", "none"]


class Group(NamedTuple):
    """Devices that may serve together, the emptiest first within a node. ``link`` is the slowest way between two.

    ``joint`` groups hold several kinds of device.
    """

    kind: DeviceKind
    name: str
    devices: tuple[Device, ...]
    link: Way
    nodes: tuple[int, ...]
    per_node: int
    joint: bool = False

    @classmethod
    def of(cls, devices: tuple[Device, ...], link: Way) -> Group:
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


class _Rates(NamedTuple):
    """The slowest fast link and the slowest other way of a device, as the report tells them."""

    link: int | None = None
    pcie: int | None = None


def _slowest_rates(links: Iterable[Link]) -> dict[int, _Rates]:
    found: dict[int, _Rates] = {}
    for link in links:
        rate = link.bandwidth_bytes_per_second
        if rate is None:
            continue
        for index in (link.from_, link.to):
            known = found.get(index, _Rates())
            if link.kind in _FAST:
                known = known._replace(link=rate if known.link is None else min(rate, known.link))
            else:
                known = known._replace(pcie=rate if known.pcie is None else min(rate, known.pcie))
            found[index] = known
    return found


def _accelerator(
    device: Accelerator, facts: AcceleratorFacts | None, island: int, rates: _Rates, reach: Reach | None
) -> Device | Unusable:
    total, told = device.memory_total_bytes, device.memory_free_bytes
    if total is None or total <= 0:
        return Unusable(device.name, device.index, "its driver does not tell how much memory it has")
    if told is not None and not 0 <= told <= total:
        return Unusable(device.name, device.index, f"its driver tells {told:,} bytes free of {total:,}")
    free = total if told is None else told
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
        allocatable = known if known is not None and alike else max(total - DRIVER_RESERVE_BYTES, 0)
    else:
        allocatable = total
    # Rounded up: what others hold changes by more than this between two looks, and a plan does not.
    taken = -(-(total - free) // TAKEN_STEP_BYTES) * TAKEN_STEP_BYTES if device.metal is None else 0
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
        island=island,
        numa=-1 if device.numa_node is None else device.numa_node,
        free_known=told is not None,
        link_bytes_per_second=rates.link,
        pcie_bytes_per_second=rates.pcie,
        reach=reach,
    )


def islands(accelerators: Iterable[Accelerator], links: Iterable[Link]) -> dict[int, int]:
    """The island of every device, by its index: the first of the earlier devices that it has fast links with.

    A device joins an island only when it is linked with every member, so the cube of an eight-GPU machine whose
    halves alone are fully linked gives two islands. Islands are named by their lowest index.
    """
    fast: dict[int, set[int]] = {}
    for link in links:
        if link.kind in _FAST:
            fast.setdefault(link.from_, set()).add(link.to)
            fast.setdefault(link.to, set()).add(link.from_)
    node = {each.index: each.node for each in accelerators}
    found: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for index in sorted(node):
        near = fast.get(index, set())
        first = sorted({found[other] for other in near if other in found and node[other] == node[index]})
        home = next((island for island in first if near.issuperset(members[island])), index)
        found[index] = home
        members.setdefault(home, []).append(index)
    return found


def slowest(devices: Iterable[Device]) -> Way:
    """The slowest way between two of the devices; ``none`` when there is one only, ``pcie`` for other nodes too."""
    homes: dict[int, int] = {}
    count, way = 0, "pcie"
    for device in devices:
        count += 1
        home = homes.setdefault(device.node, device.island)
        if home != device.island:
            return "pcie"
        if count > len(homes):
            way = "fast"
    return "none" if count < 2 else "fast" if way == "fast" else "pcie"


def groups(
    report: HardwareReport, lookup: Lookup, only: tuple[int, ...] | None = None
) -> tuple[tuple[Group, ...], tuple[Unusable, ...]]:
    """Sort a report's devices into groups; ``only`` are the indices a user allowed (none of them: the processor).

    Ordered by memory, largest first, then the joint groups, the host's processor last. The order of the report's
    accelerators does not matter.
    """
    usable: dict[tuple[str, str, int, bool], list[Device]] = {}
    unusable: list[Unusable] = []
    known: dict[tuple[object, ...], AcceleratorFacts | None] = {}
    home = islands(report.accelerators, report.links)
    rates = _slowest_rates(report.links)
    reaches: dict[int, Reach] = {}
    if report.nodes > 1 and report.hosts:
        from selector import interconnect  # most reports are of one machine

        reaches = interconnect.reaches(report)
    for accelerator in sorted(report.accelerators, key=lambda each: each.index):
        if only is not None and accelerator.index not in only:
            continue
        alike = (
            accelerator.vendor,
            accelerator.name,
            accelerator.memory_total_bytes,
            accelerator.compute_capability,
            accelerator.metal,
            accelerator.mig_parent_uuid,
        )
        if alike not in known:
            known[alike] = lookup(accelerator)
        index = accelerator.index
        device = _accelerator(
            accelerator, known[alike], home[index], rates.get(index, _Rates()), reaches.get(accelerator.node)
        )
        if isinstance(device, Unusable):
            unusable.append(device)
        else:
            usable.setdefault((device.kind, device.name, device.total_bytes // GIB, device.sliced), []).append(device)
    found = [_group(devices) for devices in usable.values()]
    found.sort(
        key=lambda group: (-sum(each.allocatable_bytes for each in group.devices), group.name, group.devices[0].index)
    )
    joint = [_joint(kinds) for kinds in _unions([group for group in found if _joins(group)])]
    host = None if only else _host(report)
    return (*found, *joint, *([] if host is None else [host])), tuple(unusable)


def _group(devices: Iterable[Device]) -> Group:
    ordered = tuple(sorted(devices, key=lambda each: (each.node, -each.free_bytes, each.index or 0)))
    return Group.of(ordered, slowest(ordered))


def _joins(group: Group) -> bool:
    """Whether devices of this kind may serve with another kind's: whole NVIDIA GPUs with memory of their own."""
    first = group.devices[0]
    unified = first.counted_bytes == first.total_bytes
    return group.kind == "nvidia" and not first.sliced and not unified


def _unions(kinds: list[Group]) -> tuple[tuple[Group, ...], ...]:
    """Kinds to join: every two, and all of them."""
    pairs = tuple(combinations(kinds, 2))
    return (*pairs, tuple(kinds)) if len(kinds) > 2 else pairs


def _joint(kinds: tuple[Group, ...]) -> Group:
    """Devices of several kinds as one group, each as small, slow and old as the least of them."""
    name = " + ".join(sorted(group.name for group in kinds))
    everyone = [(family, device) for family, group in enumerate(kinds) for device in group.devices]
    least = [group.devices[0] for group in kinds]
    total = min(each.total_bytes for each in least)
    allocatable = min(each.allocatable_bytes for each in least)
    counted = min(each.counted_bytes for each in least)
    smallest = min(range(len(least)), key=lambda family: least[family].allocatable_bytes)
    capabilities = [each.capability for each in least if each.capability is not None]
    capability = min(capabilities) if len(capabilities) == len(least) else None
    facts = _slowest_facts([each.facts for each in least], name)
    return _group(
        msgspec.structs.replace(
            device,
            name=name,
            total_bytes=total,
            allocatable_bytes=allocatable,
            counted_bytes=counted,
            # An engine takes one share of every device: a larger one that others half fill allows half of that share.
            free_bytes=min(device.free_bytes, counted * device.free_bytes // max(1, device.counted_bytes)),
            capability=capability,
            facts=facts,
            family=family,
            least=family == smallest,
        )
        for family, device in everyone
    )._replace(joint=True)


def _slowest_facts(each: list[AcceleratorFacts | None], name: str) -> AcceleratorFacts | None:
    """The least of every rate; a rate that one of them does not have, or that nobody published, is unknown."""
    known = [facts for facts in each if facts is not None]
    if len(known) < len(each):
        return None
    slow = min(known, key=lambda facts: (facts.bandwidth_gb_per_second, facts.id))
    least = {}
    for rate in _RATES:
        values = [getattr(facts, rate) for facts in known]
        least[rate] = None if None in values else min(values)
    return msgspec.structs.replace(slow, id=name, name=name, **least)


def _host(report: HardwareReport) -> Group | None:
    """The processor. Of several nodes the first one's, and only where none of them has a device."""
    memory = of_first_node(report) if report.nodes == 1 or not report.accelerators else None
    if memory is None:
        return None
    total, allocatable, free, known = memory
    brand = report.host.cpu.brand or "CPU"
    device = Device(None, "cpu", brand, 0, total, allocatable, free, allocatable, None, None, free_known=known)
    return Group.of((device,), "none")
