"""What of a machine is dealt to deployments that are planned together: devices, or parts of main memory. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from autolaunch.daemon.planning import Share, limited, narrowed
from selector.devices import GIB, islands
from selector.hardware import Accelerator, HardwareReport

#: Parts that the main memory of a host without devices is dealt in.
PARTS = 8

Units = frozenset[int]


class Pool(ABC):
    """Units that deployments are dealt."""

    units: Units

    @abstractmethod
    def sets(self, free: Units, count: int) -> Iterator[Units]:
        """Sets of ``count`` units to try, the best first."""

    @abstractmethod
    def like(self, units: Units) -> object:
        """A key: equal for units on which every plan is as good."""

    @abstractmethod
    def report(self, units: Units) -> HardwareReport:
        """The machine with these units alone."""

    @abstractmethod
    def share(self, units: Units) -> Share:
        """What a deployment is told of its units."""


class Devices(Pool):
    """Devices by their indices; those of other nodes are left out."""

    def __init__(self, report: HardwareReport) -> None:
        self._report = narrowed(report, {each.index for each in report.accelerators if each.node == 0})
        self._device = {each.index: each for each in self._report.accelerators}
        self._island = islands(self._report.accelerators, self._report.links)
        self.units = frozenset(self._device)

    def sets(self, free: Units, count: int) -> Iterator[Units]:
        """Of one kind, the one with the least memory first; of it inside an island, the one with the least room."""
        if count == 0:
            yield frozenset()
            return
        kinds: dict[tuple[int, str], list[int]] = {}
        for index in sorted(free):
            kinds.setdefault(_kind(self._device[index]), []).append(index)
        for _, indices in sorted(kinds.items()):
            places: dict[int, list[int]] = {}
            for index in indices:
                places.setdefault(self._island[index], []).append(index)
            if len(indices) >= count:
                # Whole islands joined, the fullest first, where none has room for all.
                snug = sorted((len(each), each) for each in places.values() if len(each) >= count)
                joined = [each for _, each in sorted((-len(each), each) for each in places.values())]
                ground = snug[0][1] if snug else [index for island in joined for index in island]
                yield frozenset(sorted(ground, key=self._emptiest)[:count] if snug else ground[:count])
        if len(kinds) > 1 and len(free) >= count:
            yield frozenset(sorted(free, key=self._emptiest)[:count])

    def _emptiest(self, index: int) -> tuple[int, int]:
        return _taken(self._device[index]), index

    def like(self, units: Units) -> object:
        islands_here = [self._island[each] for each in sorted(units)]
        places = {island: place for place, island in enumerate(dict.fromkeys(islands_here))}
        return tuple(
            sorted(
                (places[self._island[each]], _kind(self._device[each]), _taken(self._device[each])) for each in units
            )
        )

    def report(self, units: Units) -> HardwareReport:
        return narrowed(self._report, units)

    def share(self, units: Units) -> Share:
        return Share(devices=units)


class Memory(Pool):
    """Parts of the main memory that is free."""

    def __init__(self, report: HardwareReport) -> None:
        self._report = report
        self._part_bytes = (report.host.memory_available_bytes or 0) // PARTS
        self.units = frozenset(range(PARTS))

    def sets(self, free: Units, count: int) -> Iterator[Units]:
        if count <= len(free):
            yield frozenset(sorted(free)[:count])

    def like(self, units: Units) -> object:
        return len(units)

    def report(self, units: Units) -> HardwareReport:
        return limited(self._report, len(units) * self._part_bytes)

    def share(self, units: Units) -> Share:
        return Share(memory_bytes=len(units) * self._part_bytes)


def _kind(device: Accelerator) -> tuple[int, str]:
    return device.memory_total_bytes or 0, device.name


def _taken(device: Accelerator) -> int:
    """What others have of a device, in GiB; what any idle device has in use is nothing."""
    total, free = device.memory_total_bytes, device.memory_free_bytes
    return 0 if total is None or free is None else max(0, total - free - GIB) // GIB
