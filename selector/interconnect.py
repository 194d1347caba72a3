"""How nodes reach each other: what a node's ports come to, and the way that several nodes have in common.

The rate of a way is one port's, the slowest node's: ports are not added up. NCCL gives each GPU the port that is
nearest to it, so a node with a port a GPU moves more than this at once; how much hangs on how the rails are cabled, and
which ports are for storage, which no probe sees. Kinds come first and rates second, as NCCL chooses: it takes
InfiniBand or RoCE where there is one, however slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from selector.hardware import HardwareReport, NetworkKind, NetworkPort

#: The quickest first.
KINDS: tuple[NetworkKind, ...] = ("infiniband", "roce", "ethernet")
_WORDS: dict[NetworkKind, str] = {"infiniband": "InfiniBand", "roce": "RoCE", "ethernet": "Ethernet"}


class Wire(NamedTuple):
    """A way between nodes, or a node's end of it. ``bytes_per_second`` is one port's, one direction."""

    kind: NetworkKind
    bytes_per_second: int | None


#: A node's ends, the quickest kind first.
Wires = tuple[Wire, ...]


class Reach(NamedTuple):
    """How a node is reached. ``rank`` orders the nodes of a report: 0 is the quickest, and alike ones have the same."""

    rank: int
    wires: Wires


def wires(ports: Iterable[NetworkPort]) -> Wires:
    """The quickest port of each kind. A RoCE port is one of Ethernet too, for a node that has no more."""
    rates: dict[NetworkKind, int | None] = {}
    for port in ports:
        for kind in (port.kind, "ethernet") if port.kind == "roce" else (port.kind,):
            known, told = rates.get(kind), port.bandwidth_bytes_per_second
            rates[kind] = told if known is None else known if told is None else max(known, told)
    return tuple([Wire(kind, rates[kind]) for kind in KINDS if kind in rates])


def common(nodes: Iterable[Wires]) -> Wire | None:
    """The quickest kind that all nodes have, at the slowest node's rate; ``None`` where they have none that is known.

    The rate is ``None`` where a node's is not known.
    """
    each = tuple(nodes)
    for kind in KINDS:
        rates = [wire.bytes_per_second for ends in each for wire in ends if wire.kind == kind]
        if rates and len(rates) == len(each):
            known = [rate for rate in rates if rate is not None]
            return Wire(kind, min(known) if len(known) == len(rates) else None)
    return None


def slowest(ways: Iterable[Wire | None]) -> Wire | None:
    """The worst of several ways; ``None`` where one of them is not known."""
    each = tuple(ways)
    known = [way for way in each if way is not None]
    if not known or len(known) < len(each):
        return None
    kind = max((way.kind for way in known), key=KINDS.index)
    rates = [way.bytes_per_second for way in known if way.kind == kind]
    told = [rate for rate in rates if rate is not None]
    return Wire(kind, min(told) if len(told) == len(rates) else None)


def reaches(report: HardwareReport) -> dict[int, Reach]:
    """How every node is reached that was asked; empty where a name alone describes the machines."""
    ends = {node.index: wires(node.network) for node in report.hosts}
    order = {each: rank for rank, each in enumerate(sorted(set(ends.values()), key=_quickness))}
    return {index: Reach(order[each], each) for index, each in ends.items()}


def _quickness(ends: Wires) -> tuple[int, ...]:
    if not ends:
        return (len(KINDS),)
    return tuple(number for kind, rate in ends for number in (KINDS.index(kind), -(rate or 0)))


def between(report: HardwareReport) -> Wire | None:
    """The way that all nodes of a report have in common."""
    known = reaches(report)
    return common(reach.wires for reach in known.values()) if len(known) == report.nodes else None


def words(kind: NetworkKind, bytes_per_second: int | None) -> str:
    """``InfiniBand, 400 Gbit/s``."""
    return f"{_WORDS[kind]}, {rate_words(bytes_per_second)}"


def rate_words(bytes_per_second: int | None) -> str:
    """``400 Gbit/s``, ``2.5 Gbit/s``, ``100 Mbit/s``: as ports are sold."""
    if bytes_per_second is None:
        return "rate unknown"
    megabits = bytes_per_second / 125_000
    return f"{megabits / 1000:,.4g} Gbit/s" if megabits >= 1000 else f"{megabits:,.4g} Mbit/s"
