"""Hosts of a fleet by what they are: hosts that hardly differ are one kind, and its devices that are alike one lot.

What is free of memory differs between any two recordings of equal hosts. So hosts are one kind where they differ in
nothing but names and, by a little, in free memory; a kind has the least of each figure, and what is planned on it holds
on every host of it.

A replica takes devices of one lot: of one make and, where others hold memory of some of them now, as free. So the
packing of a lot is a packing of equal slots. Where fast links join only some devices of a lot with each other
(islands), replicas take powers of two, which stand at multiples of their size (:mod:`selector.fleet.seats`): a number
that fits some islands and crosses others counts as crossing them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import gcd
from typing import NamedTuple

import msgspec

from selector.devices import MIB, Device, groups
from selector.facts import AcceleratorFacts
from selector.fleet.asked import HostGroup
from selector.hardware import Accelerator, Cpu, HardwareReport, Link, Node

#: Memory that differs by less than this share of its total is alike; on a device, also by less than these bytes,
#: since what drivers and displays hold of an idle one differs by as much.
_ALIKE = 0.02
_ALIKE_BYTES = 512 * MIB

#: What is free of each device of a host.
_Free = tuple[int | None, ...]


class Lot(NamedTuple):
    """Devices that are alike: indices of the report, island by island, and the sizes of the islands.

    Without ``devices`` it is the host's processor, one slot.
    """

    devices: tuple[int, ...]
    islands: tuple[int, ...]

    @property
    def slots(self) -> int:
        return len(self.devices) or 1

    @property
    def evened(self) -> int:
        """The size of the islands that every island is made of: a power of two."""
        least = gcd(*self.islands)
        return least & -least

    @property
    def uneven(self) -> bool:
        """Whether some numbers of devices fit inside some islands only."""
        return any(not self.takes(size) for size in (1 << bit for bit in range(self.slots.bit_length())))

    def takes(self, devices: int, *, evened: bool = False) -> bool:
        """Whether all replicas of so many devices that fit by number have as fast links as the best of them.

        ``evened``: where islands are taken to be no larger than :attr:`evened`.
        """
        if devices >= self.slots or len(self.islands) == 1:
            return devices <= self.slots
        if devices & (devices - 1):
            return False
        if evened or devices > max(self.islands):
            return evened or (min(self.islands) == max(self.islands) and devices % self.islands[0] == 0)
        # What is left beside the islands that it divides holds none.
        left = sum(size for size in self.islands if size < devices)
        return left < devices and all(size % devices == 0 for size in self.islands if size >= devices)


class HostKind(NamedTuple):
    """Hosts that are alike: what one is at the least, what it is called, its lots, and the groups of such hosts."""

    label: str
    report: HardwareReport
    lots: tuple[Lot, ...]
    groups: tuple[HostGroup, ...]

    @property
    def hosts(self) -> int:
        return sum(each.size for each in self.groups)


def kinds(
    hosts: Iterable[tuple[HostGroup, HardwareReport]], accelerator_for: Callable[[Accelerator], AcceleratorFacts | None]
) -> tuple[HostKind, ...]:
    """The kinds of host there are, in an order that is the same however the groups stand."""
    found: dict[bytes, list[tuple[HostGroup, HardwareReport]]] = {}
    for group, report in sorted(hosts, key=lambda each: each[0].name):
        found.setdefault(_identity(report), []).append((group, report))
    made: list[HostKind] = []
    for members in found.values():
        for alike in _by_memory(members):
            least = _least([report for _, report in alike])
            made.append(
                HostKind(_label(alike[0][1]), least, _lots(least, accelerator_for), tuple(group for group, _ in alike))
            )
    return tuple(sorted(made, key=lambda each: (each.label, each.groups[0].name)))


def told_apart(found: Iterable[HostKind]) -> tuple[HostKind, ...]:
    """The kinds with labels of their own."""
    kept = tuple(found)
    named = [each.label for each in kept]
    return tuple(
        each._replace(label=f"{each.label} ({each.groups[0].name})") if named.count(each.label) > 1 else each
        for each in kept
    )


def only(report: HardwareReport, lot: Lot, *, evened: bool = False) -> HardwareReport:
    """A host with nothing but the devices of a lot, counted from 0, each as free as the fullest of them.

    Of main memory nothing is told. ``evened`` leaves fast links inside :attr:`Lot.evened` devices alone.
    """
    report = msgspec.structs.replace(without_memory(report), network=())
    if not lot.devices:
        return report
    place = {index: number for number, index in enumerate(lot.devices)}
    taken = sorted((each for each in report.accelerators if each.index in place), key=lambda each: place[each.index])
    least = min((each.memory_free_bytes for each in taken if each.memory_free_bytes is not None), default=None)
    links = [each for each in report.links if each.from_ in place and each.to in place]
    if evened:
        size = lot.evened
        slow = ("pcie", "network")
        links = [each for each in links if each.kind in slow or place[each.from_] // size == place[each.to] // size]
    return msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(each, index=place[each.index], memory_free_bytes=least) for each in taken
        ),
        links=tuple(msgspec.structs.replace(each, from_=place[each.from_], to=place[each.to]) for each in links),
    )


def without_memory(report: HardwareReport) -> HardwareReport:
    """A host of which nobody told how much main memory it has."""
    host = msgspec.structs.replace(report.host, memory_total_bytes=None, memory_available_bytes=None)
    return msgspec.structs.replace(report, host=host)


def several(report: HardwareReport, count: int) -> HardwareReport:
    """``count`` hosts of one kind as one report; how they reach each other is what one tells of itself."""
    step = 1 + max((device.index for device in report.accelerators), default=0)
    return msgspec.structs.replace(
        report,
        nodes=count,
        accelerators=tuple(
            msgspec.structs.replace(device, index=device.index + node * step, node=node, uuid=None)
            for node in range(count)
            for device in report.accelerators
        ),
        links=tuple(
            Link(
                from_=link.from_ + node * step,
                to=link.to + node * step,
                kind=link.kind,
                bandwidth_bytes_per_second=link.bandwidth_bytes_per_second,
            )
            for node in range(count)
            for link in report.links
        ),
        hosts=tuple(
            Node(index=node, name=f"host {node + 1}", host=report.host, network=report.network)
            for node in range(count if report.network else 0)
        ),
    )


def _plain(report: HardwareReport) -> HardwareReport:
    """A host without what names a single one, and what no plan asks."""
    devices = tuple(
        msgspec.structs.replace(device, uuid=None, pci_bus_id=None, processes=()) for device in report.accelerators
    )
    cpu = Cpu() if devices else Cpu(brand=report.host.cpu.brand)
    host = msgspec.structs.replace(report.host, os_version=None, cpu=cpu, disk_free_bytes=None)
    network = tuple(msgspec.structs.replace(each, addresses=()) for each in report.network)
    return msgspec.structs.replace(report, accelerators=devices, host=host, network=network, findings=())


def _identity(report: HardwareReport) -> bytes:
    """What tells a kind of host: all but what names a single one, and how much memory is free."""
    plain = _plain(report)
    devices = tuple(
        msgspec.structs.replace(device, memory_free_bytes=_known(device.memory_free_bytes))
        for device in plain.accelerators
    )
    host = msgspec.structs.replace(
        plain.host,
        memory_total_bytes=_known(report.host.memory_total_bytes),
        memory_available_bytes=_known(report.host.memory_available_bytes),
    )
    return msgspec.json.encode(msgspec.structs.replace(plain, accelerators=devices, host=host))


def _known(figure: int | None) -> int | None:
    return None if figure is None else 1


def _by_memory(members: list[tuple[HostGroup, HardwareReport]]) -> Iterator[list[tuple[HostGroup, HardwareReport]]]:
    """Hosts that differ in memory alone, those together whose figures all lie within what is alike."""
    first = members[0][1]
    near = tuple(_near(each.memory_total_bytes or 0) for each in first.accelerators)
    of_free: dict[_Free, list[tuple[HostGroup, HardwareReport]]] = {}
    for member in members:
        of_free.setdefault(_free(member[1]), []).append(member)
    for alike in _ranges(of_free, near):
        together = [member for free in alike for member in of_free[free]]
        of_host: dict[_Free, list[tuple[HostGroup, HardwareReport]]] = {}
        for member in together:
            host = member[1].host
            of_host.setdefault((host.memory_available_bytes, host.memory_total_bytes), []).append(member)
        most = max(each.host.memory_total_bytes or 0 for _, each in together)
        devices = _least([each for _, each in together]).accelerators
        for hosts in _ranges(of_host, (int(_ALIKE * most),) * 2):
            found = sorted((member for each in hosts for member in of_host[each]), key=lambda each: each[0].name)
            # All of them have the same devices: hosts that main memory makes no difference to are planned once.
            yield [(group, msgspec.structs.replace(each, accelerators=devices)) for group, each in found]


def _near(total_bytes: int) -> int:
    """By how much what is free of alike devices differs at most."""
    return max(_ALIKE_BYTES, int(_ALIKE * total_bytes))


def _ranges(figures: Iterable[_Free], near: tuple[int, ...]) -> list[list[_Free]]:
    """Figures in as few sets as a first fit finds, each no wider than ``near`` in any of them."""
    found: list[tuple[list[_Free], list[int], list[int]]] = []
    for each in sorted(figures, key=lambda each: [-(figure or 0) for figure in each]):
        plain = [figure or 0 for figure in each]
        for members, low, high in found:
            if all(
                top - wide <= figure <= bottom + wide
                for figure, bottom, top, wide in zip(plain, low, high, near, strict=True)
            ):
                members.append(each)
                low[:] = map(min, low, plain)
                high[:] = map(max, high, plain)
                break
        else:
            found.append(([each], list(plain), list(plain)))
    return [members for members, _, _ in found]


def _least(reports: list[HardwareReport]) -> HardwareReport:
    """Hosts of a kind as one that has the least memory of them."""
    first = _plain(reports[0])
    free = [_lowest(each) for each in zip(*(_free(report) for report in reports), strict=True)]
    return msgspec.structs.replace(
        first,
        host=msgspec.structs.replace(
            first.host,
            memory_total_bytes=_lowest(each.host.memory_total_bytes for each in reports),
            memory_available_bytes=_lowest(each.host.memory_available_bytes for each in reports),
        ),
        accelerators=tuple(
            msgspec.structs.replace(device, memory_free_bytes=figure)
            for device, figure in zip(first.accelerators, free, strict=True)
        ),
    )


def _free(report: HardwareReport) -> _Free:
    return tuple(each.memory_free_bytes for each in report.accelerators)


def _lowest(figures: Iterable[int | None]) -> int | None:
    return min((each for each in figures if each is not None), default=None)


def _label(report: HardwareReport) -> str:
    """What a person calls such a host: the name it was made from, or its devices."""
    for finding in report.findings:
        if finding.probe == "specification" and finding.reason:
            return finding.reason.lower()
    counts: dict[str, int] = {}
    for device in report.accelerators:
        counts[device.name] = counts.get(device.name, 0) + 1
    told = " + ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
    return told or report.host.cpu.brand or "a host without accelerators"


def _lots(report: HardwareReport, accelerator_for: Callable[[Accelerator], AcceleratorFacts | None]) -> tuple[Lot, ...]:
    if not report.accelerators:
        return (Lot((), ()),)
    found, _ = groups(report, accelerator_for, None)
    lots = []
    for group in found:
        if group.kind == "cpu" or group.joint:
            continue
        levels: list[list[Device]] = []
        for device in sorted(group.devices, key=lambda each: (-each.free_bytes, each.index or 0)):
            if levels and levels[-1][0].free_bytes - device.free_bytes <= _near(device.total_bytes):
                levels[-1].append(device)
            else:
                levels.append([device])
        lots += [_lot(level) for level in levels]
    return tuple(sorted(lots))


def _lot(devices: list[Device]) -> Lot:
    islands: dict[int, list[int]] = {}
    for device in devices:
        islands.setdefault(device.island, []).append(device.index or 0)
    ordered = sorted((sorted(each) for each in islands.values()), key=lambda each: (-len(each), each))
    sizes = tuple(len(each) for each in ordered)
    # Without fast links no device is nearer to another than to the rest.
    alone = all(size == 1 for size in sizes)
    return Lot(tuple(index for each in ordered for index in each), (len(devices),) if alone else sizes)
