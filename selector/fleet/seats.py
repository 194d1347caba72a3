"""From how many hosts carry what to which host carries it, on which of its devices.

A host's replicas take its devices in order, the largest first: sizes of a lot with islands are powers of two, so every
replica begins at a multiple of its size and none crosses an island that it fits (:mod:`selector.fleet.kinds`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from selector.fleet.kinds import Lot
from selector.fleet.problem import Filling, Option, Packing


class Seat(NamedTuple):
    """One replica: its option, the hosts it is on, and the devices it takes of each."""

    option: int
    hosts: tuple[str, ...]
    devices: tuple[int, ...]


def seats(
    packing: Packing, options: tuple[Option, ...], lots: list[Lot], hosts: list[tuple[str, ...]]
) -> Iterator[Seat]:
    """Every replica's seat. ``lots`` and ``hosts`` are those of each kind of host, the hosts by name, in order.

    What spans several hosts comes first, so that the hosts of one replica stand next to each other.
    """

    def wide(unit: tuple[int, Filling]) -> int:
        return options[unit[1][0]].hosts

    waiting = [list(reversed(each)) for each in hosts]
    for unit, times in sorted(packing.units.items(), key=lambda each: (-wide(each[0]), each[0])):
        place, filling = unit
        for _ in range(times):
            names = tuple(waiting[place].pop() for _ in range(wide(unit)))
            offset = 0
            for number in sorted(filling, key=lambda each: (-options[each].slots, each)):
                taken = options[number].slots
                yield Seat(number, names, tuple(sorted(lots[place].devices[offset : offset + taken])))
                offset += taken
