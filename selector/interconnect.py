"""How nodes reach each other: what a node's ports come to, and the way that several nodes have in common.

The rate of a way is one port's, the slowest node's: ports are not added up. NCCL gives each GPU the port that is
nearest to it, so a node with a port a GPU moves more than this at once; how much hangs on how the rails are cabled, and
which ports are for storage, which no probe sees. Kinds come first and rates second, as NCCL chooses: it takes
InfiniBand or RoCE where there is one, however slow.

Nodes that have no kind of port in common reach each other all the same: a cluster has joined them, by a port that the
probe does not list (a management network, a virtual one). Where ports are known at all, that way is taken as an
Ethernet of :data:`UNLISTED_BYTES_PER_SECOND`, or as slow as the slowest port that is known: what nobody told of is
never better than what is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from selector.hardware import HardwareReport, NetworkKind, NetworkPort

#: The quickest first.
KINDS: tuple[NetworkKind, ...] = ("infiniband", "roce", "ethernet")
#: Of a way between nodes that no port of theirs tells of: 1 Gbit/s, a management network's (assumed).
UNLISTED_BYTES_PER_SECOND = 125_000_000
_WORDS: dict[NetworkKind, str] = {"infiniband": "InfiniBand", "roce": "RoCE", "ethernet": "Ethernet"}


class Wire(NamedTuple):
    """A way between nodes, or a node's end of it. ``bytes_per_second`` is one port's, one direction.

    ``assumed`` says that not every end told its rate: ``bytes_per_second`` is then the most that it can be.
    """

    kind: NetworkKind
    bytes_per_second: int | None
    assumed: bool = False


#: A node's ends, the quickest kind first.
Wires = tuple[Wire, ...]


class Reach(NamedTuple):
    """How a node is reached. ``rank`` orders the nodes of a report: 0 is the quickest, and alike ones have the same.

    ``otherwise`` is the way to a node that it has no kind in common with; ``None`` where no node's ports are known.
    """

    rank: int
    wires: Wires
    otherwise: Wire | None = None


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

    Where a node's rate is not known, that of the others is the most that it can be.
    """
    each = tuple(nodes)
    for kind in KINDS:
        rates = [wire.bytes_per_second for ends in each for wire in ends if wire.kind == kind]
        if rates and len(rates) == len(each):
            known = [rate for rate in rates if rate is not None]
            return Wire(kind, min(known, default=None), len(known) < len(rates))
    return None


def way(nodes: Iterable[Reach | None]) -> Wire | None:
    """The way by which nodes of one report reach each other; ``None`` where nothing is known of any of its nodes."""
    each = tuple(nodes)
    shared = common(() if reach is None else reach.wires for reach in each)
    return shared or next((reach.otherwise for reach in each if reach is not None), None)


def slowest(ways: Iterable[Wire | None]) -> Wire | None:
    """The worst of several ways; ``None`` where one of them is not known."""
    each = tuple(ways)
    known = [way for way in each if way is not None]
    if not known or len(known) < len(each):
        return None
    kind = max((way.kind for way in known), key=KINDS.index)
    alike = [way for way in known if way.kind == kind]
    told = [way.bytes_per_second for way in alike if way.bytes_per_second is not None]
    return Wire(kind, min(told, default=None), any(way.assumed or way.bytes_per_second is None for way in alike))


def reaches(report: HardwareReport) -> dict[int, Reach]:
    """How every node is reached that was asked; empty where a name alone describes the machines."""
    if not report.hosts:
        return {}
    ends: dict[int, Wires] = dict.fromkeys(range(report.nodes), ())
    ends |= {node.index: wires(node.network) for node in report.hosts}
    order = {each: rank for rank, each in enumerate(sorted(set(ends.values()), key=_quickness))}
    known = [wire.bytes_per_second for each in order for wire in each if wire.bytes_per_second is not None]
    unlisted = Wire("ethernet", min([UNLISTED_BYTES_PER_SECOND, *known]), assumed=True) if any(order) else None
    return {index: Reach(order[each], each, unlisted) for index, each in ends.items()}


def _quickness(ends: Wires) -> tuple[int, ...]:
    if not ends:
        return (len(KINDS),)
    return tuple(number for kind, rate, _ in ends for number in (KINDS.index(kind), -(rate or 0)))


def between(report: HardwareReport) -> Wire | None:
    """The way that all nodes of a report have in common."""
    return common(reach.wires for reach in reaches(report).values())


def words(kind: NetworkKind, bytes_per_second: int | None) -> str:
    """``InfiniBand, 400 Gbit/s``."""
    return f"{_WORDS[kind]}, {rate_words(bytes_per_second)}"


def wire_words(wire: Wire) -> str:
    """As :func:`words`, and ``Ethernet, at most 10 Gbit/s`` where not every node told its rate."""
    kind, rate, assumed = wire
    return f"{_WORDS[kind]}, at most {rate_words(rate)}" if assumed and rate is not None else words(kind, rate)


def kinds_words(ends: Wires) -> str:
    """``InfiniBand and Ethernet``: the kinds of a node's ports."""
    return " and ".join(_WORDS[wire.kind] for wire in ends) or "no port that is known"


def rate_words(bytes_per_second: int | None) -> str:
    """``400 Gbit/s``, ``2.5 Gbit/s``, ``100 Mbit/s``: as ports are sold."""
    if bytes_per_second is None:
        return "rate unknown"
    megabits = bytes_per_second / 125_000
    return f"{megabits / 1000:,.4g} Gbit/s" if megabits >= 1000 else f"{megabits:,.4g} Mbit/s"
