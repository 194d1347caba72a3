"""What all checkpoints share on one engine and group: the layouts to try, and where their replicas would lie."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import msgspec

from selector import candidates, legality
from selector.contract import Parallel
from selector.devices import Device
from selector.engine_facts import EngineFacts
from selector.facts import Architecture
from selector.legality import Refusal
from selector.placement import Floor, Placement, Replicas
from selector.request import Pins


class Place(NamedTuple):
    """Replicas of a layout on their devices. ``placed`` is ``None`` where there is no room for so many.

    ``fewest`` says that no smaller number of replicas is tried: when these do not fit, none do.
    """

    parallel: Parallel
    placed: Placement | None
    fewest: bool


class Lot:
    """A layout of one replica, and the numbers of replicas to try of it, way by way: one first, then the most.

    ``refusal`` says why the layout cannot be, on whatever weights. ``fullest`` is the fullest device of the emptiest
    replica (``None``: there is room for none), ``free_bytes`` what is free on it, ``level`` the same in steps, and
    ``fast`` too where the links are fast, else ``None``.
    """

    def __init__(self, bare: Parallel, refusal: Refusal | None, plot: Plot) -> None:
        self.bare, self.refusal, self._plot = bare, refusal, plot
        ways = plot.ways
        self.fullest: Device | None = max([way.fullest for way in ways if way.fullest], key=_free, default=None)
        self.free_bytes = 0 if self.fullest is None else self.fullest.free_bytes
        self.level = max([way.levels[0][0] for way in ways if way.levels], default=0)
        first = ways[0].levels[0] if ways[0].levels else (0, True, False)
        self.fast = first[0] if bare.tensor > 1 and not first[1] else None

    @property
    def tries(self) -> tuple[tuple[Place, ...], ...]:
        return self._plot.tries

    @property
    def nearest(self) -> Placement | None:
        """One replica in the nearest way, where there is room for it."""
        return self._plot.nearest

    @property
    def most_devices(self) -> int:
        """Devices under the largest number of replicas to try."""
        return self._plot.most_devices


class Plot:
    """Where replicas of a layout may lie, whatever the engine."""

    def __init__(self, plots: Plots, bare: Parallel) -> None:
        self._plots, self._bare = plots, bare
        self.ways = plots.floor.ways(bare.tensor, bare.pipeline, spans=plots.spans)

    @cached_property
    def tries(self) -> tuple[tuple[Place, ...], ...]:
        near = self.ways[0]
        return tuple([tuple(self._plots.places(self._bare, way, None if way is near else near)) for way in self.ways])

    @cached_property
    def nearest(self) -> Placement | None:
        return self.ways[0].first(1) if self._bare.ranks <= self._plots.room else None

    @cached_property
    def most_devices(self) -> int:
        counts = [place.parallel.data for places in self.tries for place in places if place.placed is not None]
        return self._bare.ranks * max(counts, default=self._plots.room)


class Plots:
    """What engines of the same abilities share on a group of devices, under the pins."""

    def __init__(
        self, arch: Architecture, parallel: frozenset[str], floor: Floor, pins: Pins, concurrency: int | None
    ) -> None:
        self.floor, self.room = floor, candidates.room(floor.group, pins)
        self.shapes = candidates.shapes(arch, parallel, floor, pins)
        self.spans = "nodes" in parallel
        self._parallel, self._pins, self._concurrency = parallel, pins, concurrency
        self._made: dict[tuple[int, int, bool], Plot] = {}

    def plot(self, bare: Parallel) -> Plot:
        key = (bare.tensor, bare.pipeline, bare.expert)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = Plot(self, bare)
        return found

    def places(self, bare: Parallel, way: Replicas, near: Replicas | None) -> list[Place]:
        """Numbers of replicas of one way. Of the emptiest, those that have more memory than the nearest."""
        group, pinned = self.floor.group, self._pins.data_parallel
        most = candidates.most_replicas(self._parallel, group, bare.ranks, self._pins, self._concurrency)
        counts = [pinned] if pinned is not None else way.level_ends(most) or [1]
        places = []
        for count in (counts[0], *reversed(counts[1:])):
            if near is not None and not _emptier(way, near, count):
                continue
            placed = way.first(count) if bare.ranks * count <= self.room else None
            if placed is not None and group.joint and placed.families == 1:
                continue  # the kind's own group has these devices as what they are
            nodes = 1 if placed is None else placed.nodes
            parallel = bare
            if count > 1 or nodes > 1:
                parallel = msgspec.structs.replace(bare, data=count, nodes=nodes)
            places.append(Place(parallel, placed, fewest=count == counts[0]))
        return places


class Ground:
    """An engine on a group of devices, under the pins."""

    def __init__(self, arch: Architecture, engine: EngineFacts, plots: Plots) -> None:
        self.engine, self.group, self.shapes = engine, plots.floor.group, plots.shapes
        devices = self.group.devices
        self.usable_bytes = devices[0].allocatable_bytes
        self.most_free_bytes = max([device.free_bytes for device in devices])
        self._arch, self._plots = arch, plots
        self._lots: dict[tuple[int, int, bool], Lot] = {}

    def lot(self, tensor: int, pipeline: int, *, expert: bool) -> Lot:
        key = (tensor, pipeline, expert)
        found = self._lots.get(key)
        if found is None:
            bare = Parallel(tensor=tensor, pipeline=pipeline, expert=expert)
            refusal = legality.layout(self._arch, self.engine, bare, self.group)
            found = self._lots[key] = Lot(bare, refusal, self._plots.plot(bare))
        return found


class Grounds:
    """The grounds of a plan: those of a group share what their engines have in common."""

    def __init__(self, arch: Architecture, pins: Pins, concurrency: int | None) -> None:
        self._arch, self._pins, self._concurrency = arch, pins, concurrency
        self._plots: dict[tuple[int, frozenset[str]], Plots] = {}
        self._grounds: dict[tuple[str, int], Ground] = {}

    def of(self, engine: EngineFacts, floor: Floor) -> Ground:
        """The ground of an engine on a group, made once."""
        key = (engine.name, id(floor))
        ground = self._grounds.get(key)
        if ground is None:
            several = len(floor.group.nodes) > 1
            parallel = frozenset(each for each in engine.parallel if several or each != "nodes")
            plots = self._plots.get((id(floor), parallel))
            if plots is None:
                plots = Plots(self._arch, parallel, floor, self._pins, self._concurrency)
                self._plots[id(floor), parallel] = plots  # they keep their floor, and its id
            ground = self._grounds[key] = Ground(self._arch, engine, plots)
        return ground


def _emptier(way: Replicas, near: Replicas, count: int) -> bool:
    return count > len(near) or (count <= len(way) and way.levels[count - 1][0] > near.levels[count - 1][0])


def _free(device: Device) -> int:
    return device.free_bytes
