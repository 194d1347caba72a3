"""What all checkpoints share on one engine and group: the layouts to try, and where their replicas would lie."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from selector import candidates, legality
from selector.contract import Parallel
from selector.facts import Architecture, EngineFacts
from selector.legality import Refusal
from selector.placement import Floor, Placement, Replicas
from selector.request import Pins


class Place(NamedTuple):
    """Replicas of a layout on their devices. ``placed`` is ``None`` where there is no room for so many."""

    parallel: Parallel
    placed: Placement | None


class Lot:
    """A layout of one replica, and the numbers of replicas to try of it, way by way.

    ``refusal`` says why the layout cannot be, on whatever weights. ``level`` is the free memory in steps of the
    emptiest replica, ``fast`` whether its links are.
    """

    def __init__(self, bare: Parallel, refusal: Refusal | None, ways: tuple[Replicas, ...]) -> None:
        self.bare, self.refusal = bare, refusal
        self.level = max((way.levels[0][0] for way in ways if way.levels), default=0)
        first = ways[0].levels[0] if ways[0].levels else (0, True)
        self.fast = first[0] if bare.tensor > 1 and not first[1] else None
        self.whole = Parallel(tensor=bare.tensor, pipeline=bare.pipeline)
        #: One replica first; it tells whether any fits. Then the most, and fewer.
        self.tries: tuple[tuple[Place, ...], ...] = ()


class Ground:
    """An engine on a group of devices, under the pins."""

    def __init__(
        self, arch: Architecture, engine: EngineFacts, floor: Floor, pins: Pins, concurrency: int | None
    ) -> None:
        self.engine, self.floor, self.group = engine, floor, floor.group
        self.room = candidates.room(floor.group, pins)
        self.shapes = candidates.shapes(arch, engine, floor, pins)
        self.usable_bytes = floor.group.devices[0].allocatable_bytes
        self._arch, self._pins, self._concurrency = arch, pins, concurrency
        self._lots: dict[tuple[int, int, bool], Lot] = {}

    def lot(self, tensor: int, pipeline: int, *, expert: bool) -> Lot:
        key = (tensor, pipeline, expert)
        found = self._lots.get(key)
        if found is None:
            found = self._lots[key] = self._make(Parallel(tensor=tensor, pipeline=pipeline, expert=expert))
        return found

    def _make(self, bare: Parallel) -> Lot:
        refusal = legality.layout(self._arch, self.engine, bare, self.group)
        ways = self.floor.ways(bare.tensor, bare.pipeline, spans="nodes" in self.engine.parallel)
        lot = Lot(bare, refusal, ways)
        if refusal is None:
            near = ways[0]
            lot.tries = tuple(tuple(self._places(bare, way, None if way is near else near)) for way in ways)
        return lot

    def _places(self, bare: Parallel, way: Replicas, near: Replicas | None) -> list[Place]:
        """Numbers of replicas of one way. Of the emptiest, those that have more memory than the nearest."""
        pinned = self._pins.data_parallel
        most = candidates.most_replicas(self.engine, self.group, bare.ranks, self._pins, self._concurrency)
        counts = [pinned] if pinned is not None else way.level_ends(most) or [1]
        places = []
        for count in (counts[0], *reversed(counts[1:])):
            if near is not None and not _emptier(way, near, count):
                continue
            placed = way.first(count) if bare.ranks * count <= self.room else None
            if placed is not None and self.group.joint and placed.families == 1:
                continue  # the kind's own group has these devices as what they are
            nodes = 1 if placed is None else placed.nodes
            parallel = bare
            if count > 1 or nodes > 1:
                parallel = msgspec.structs.replace(bare, data=count, nodes=nodes)
            places.append(Place(parallel, placed))
        return places


def _emptier(way: Replicas, near: Replicas, count: int) -> bool:
    return count > len(near) or (count <= len(way) and way.levels[count - 1][0] > near.levels[count - 1][0])
