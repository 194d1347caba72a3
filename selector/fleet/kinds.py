"""Hosts of a fleet by what they are: equal reports are one kind, and the devices of a kind that are alike one lot.

A replica takes devices of one lot: of one make and, where others hold memory of some of them now, as free. So the
packing of a lot is a packing of equal slots. Where fast links join only some devices of a lot with each other
(islands), replicas take devices in powers of two that divide the islands or are made of whole ones: then every set of
replicas that fits a lot by number fits it without crossing an island (:mod:`selector.fleet.seats`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from selector.devices import Device, groups
from selector.facts import AcceleratorFacts
from selector.fleet.asked import HostGroup
from selector.hardware import Accelerator, HardwareReport, Link, Node

#: Devices whose free memory differs by less than this share of their total are alike.
_ALIKE = 0.02


class Lot(NamedTuple):
    """Devices that are alike: indices of the report, island by island, and the sizes of the islands.

    Without ``devices`` it is the host's processor, one slot.
    """

    devices: tuple[int, ...]
    islands: tuple[int, ...]

    @property
    def slots(self) -> int:
        return len(self.devices) or 1

    def takes(self, devices: int) -> bool:
        """Whether replicas of so many devices can be packed by number alone."""
        if devices == self.slots or len(self.islands) == 1 or devices > self.slots:
            return devices <= self.slots
        return devices & (devices - 1) == 0 and all(size % devices == 0 or devices % size == 0 for size in self.islands)


class HostKind(NamedTuple):
    """Hosts that are equal: what one is, what it is called, its lots, and the groups of such hosts."""

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
    made = [
        HostKind(
            _label(members[0][1]),
            members[0][1],
            _lots(members[0][1], accelerator_for),
            tuple(group for group, _ in members),
        )
        for members in found.values()
    ]
    named = [each.label for each in made]
    return tuple(
        each._replace(label=f"{each.label} ({each.groups[0].name})") if named.count(each.label) > 1 else each
        for each in sorted(made, key=lambda each: (each.label, each.groups[0].name))
    )


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


def _identity(report: HardwareReport) -> bytes:
    """What tells a kind of host: all but what names a single one."""
    devices = tuple(
        msgspec.structs.replace(device, uuid=None, pci_bus_id=None, processes=()) for device in report.accelerators
    )
    host = msgspec.structs.replace(report.host, disk_free_bytes=None)
    network = tuple(msgspec.structs.replace(each, addresses=()) for each in report.network)
    return msgspec.json.encode(
        msgspec.structs.replace(report, accelerators=devices, host=host, network=network, findings=())
    )


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
            if levels and levels[-1][0].free_bytes - device.free_bytes <= _ALIKE * device.total_bytes:
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
