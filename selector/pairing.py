"""Which nodes make a replica together, where nodes are reached in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from selector.hardware import NetworkKind
from selector.interconnect import KINDS, Reach, Wire

_Part = TypeVar("_Part")


def paired(parts: Iterable[_Part], count: int, reach_of: Callable[[_Part], Reach | None]) -> list[_Part]:
    """Parts of nodes in another order: each ``count`` of them, one after the other, are to serve together.

    The quickest kind of network comes first and takes as many as it can of the nodes that have it, the quickest of
    them first, and of equal ones those that have no other kind to fall back on. What no kind joins comes last. Equal
    parts stay in the order that they were given in.
    """
    left, made = list(parts), list[_Part]()
    for kind in KINDS:
        having: list[tuple[tuple[int, int], int]] = []
        for place, part in enumerate(left):
            reach = reach_of(part)
            wire = None if reach is None else _of_kind(reach, kind)
            if reach is not None and wire is not None:
                having.append(((-(wire.bytes_per_second or 0), len(reach.wires)), place))
        having.sort()
        places = [place for _, place in having[: len(having) - len(having) % count]]
        made += [left[place] for place in places]
        gone = set(places)
        left = [part for place, part in enumerate(left) if place not in gone]
    return made + left


def _of_kind(reach: Reach, kind: NetworkKind) -> Wire | None:
    return next((wire for wire in reach.wires if wire.kind == kind), None)
