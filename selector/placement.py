"""Where ranks lie: which devices of a group make the stages of a replica, and which replicas come first.

A stage is the devices of one tensor-parallel group, inside one node unless a wider one was pinned. Two ways of
cutting a node into stages are looked at, and no third one can be better than both:

``near``      inside islands of fast links first; what is left over inside a NUMA node; then anywhere. Within an
              island the emptiest devices go together, so for any bound on free memory as many stages as possible
              keep it: it is the best of all placements whose stages have fast links.
``emptiest``  the emptiest devices of the node together, whatever the links: the best of all for memory.

The stages of a replica stay in one node where a node has enough of them (consecutive ones, the emptiest first, for
the same reason), and only else span nodes: of nodes that have the quickest kind of network in common, and, where other
ones are emptier, of those as well; the stages of a node one after the other, so that no hidden state crosses more often
than it must. Replicas stand with the emptiest first, so that the first ``n`` are the best ``n``, and a device that
others fill only spoils a plan that needs it.

Differences of free memory below :data:`FREE_STEP_BYTES` are noise: near wins over emptiest, and lower indices over
higher ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from selector.devices import MIB, Device, Group, Way, slowest

if TYPE_CHECKING:
    from selector.interconnect import Reach, Wire

#: Idle devices of one kind differ by tens of MiB; a plan is not laid out by that.
FREE_STEP_BYTES = 256 * MIB
#: Up to so many levels of free memory are all tried; of more, fewer and fewer.
_LEVELS = 16
_SLOW = frozenset({"pcie", "network"})


class Stage(NamedTuple):
    """The devices of one tensor-parallel group, by index; ``weakest`` has the least free memory."""

    devices: tuple[Device, ...]
    weakest: Device
    link: Way


class Placement(NamedTuple):
    """The first replicas of a way: device indices in the order of ranks, the fullest device, the slowest link.

    ``nodes`` is how many the widest replica spans, ``families`` how many kinds of device there are in it. ``wire`` is
    the slowest way between nodes that a replica spans; ``None`` where it is not known, or none does.
    """

    indices: tuple[int, ...]
    weakest: Device
    link: Way
    nodes: int
    families: int
    free_known: bool
    wire: Wire | None = None


class _Replica(NamedTuple):
    devices: tuple[Device, ...]
    weakest: Device
    link: Way
    nodes: int


_Order = Callable[[Stage | _Replica], tuple[int, ...]]


class Replicas:
    """All replicas of one shape that a group holds, cut in one way: those with fast links first, then the emptiest."""

    def __init__(self, replicas: list[_Replica]) -> None:
        self._replicas = replicas
        self._made: dict[int, Placement] = {}
        self._weakest: list[Device] = []
        #: After so many replicas: free memory of the fullest device in steps, whether a link is slow, and whether one
        #: spans nodes.
        self.levels: list[tuple[int, bool, bool]] = []
        slow = spans = False
        for replica in replicas:
            weakest = self._weakest[-1] if self._weakest else replica.weakest
            if replica.weakest.free_bytes < weakest.free_bytes:
                weakest = replica.weakest
            slow = slow or replica.link in _SLOW
            spans = spans or replica.nodes > 1
            self._weakest.append(weakest)
            self.levels.append((steps(weakest), slow, spans))
        ends = [n for n in range(1, len(replicas)) if self.levels[n - 1] != self.levels[n]]
        if len(ends) > _LEVELS:  # a large cluster whose devices all differ: powers of two apart
            ends = [end for n, end in enumerate(ends, start=1) if n & (n - 1) == 0]
        self._ends = ends

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def fullest(self) -> Device | None:
        """The fullest device of the first replica."""
        return self._weakest[0] if self._weakest else None

    def level_ends(self, most: int) -> list[int]:
        """One, ``most``, and every count after which the next replica would have less memory or a slower link."""
        most = min(most, len(self))
        return sorted({1, most, *(end for end in self._ends if end < most)}) if most else []

    def first(self, count: int) -> Placement | None:
        """The placement of ``count`` replicas; ``None`` when there is no room."""
        if not 1 <= count <= len(self._replicas):
            return None
        made = self._made.get(count)
        if made is None:
            chosen = self._replicas[:count]
            devices = [device for replica in chosen for device in replica.devices]
            across = self.levels[count - 1][2]
            made = self._made[count] = Placement(
                tuple([device.index for device in devices if device.index is not None]),
                self._weakest[count - 1],
                _slower(chosen) if self.levels[count - 1][1] else chosen[0].link,
                max(replica.nodes for replica in chosen) if across else 1,
                len({device.family for device in devices}),
                all(device.free_known for device in devices),
                _wire(chosen) if across else None,
            )
        return made


class Floor:
    """The placements of a group, each made once."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._nodes: list[list[Device]] = []
        for device in group.devices:  # they stand node by node
            if self._nodes and self._nodes[-1][0].node == device.node:
                self._nodes[-1].append(device)
            else:
                self._nodes.append([device])
        self._plain = all(len({device.island for device in node}) == 1 for node in self._nodes)
        self._differ = len({node[0].reach for node in self._nodes}) > 1
        self._stages: dict[tuple[int, bool], list[list[Stage]]] = {}
        self._ways: dict[tuple[int, int, bool], tuple[Replicas, ...]] = {}
        self._counts: dict[int, tuple[int, ...]] = {}

    def ways(self, tensor: int, pipeline: int, *, spans: bool) -> tuple[Replicas, ...]:
        """The replicas of a shape: nearest first, and second the emptiest where that is emptier.

        Where links are as slow in both, only the emptier one is left: nothing is lost by it that could be counted.
        ``spans`` says whether the engine runs a replica over several nodes.
        """
        spans = spans and len(self._nodes) > 1
        key = (tensor, pipeline, spans)
        found = self._ways.get(key)
        if found is None:
            found = near = self._cut_into(tensor, pipeline, spans=spans, order=_quickest)
            if tensor > 1 and (len(self._nodes) > 1 or not self._plain):
                emptiest = self._cut_into(tensor, pipeline, spans=spans, order=_first)
                if not _as_empty(emptiest[-1], near[-1]):
                    fast = any(not slow for _, slow, _ in near[-1].levels)
                    found = (*near, *emptiest) if fast else emptiest
            self._ways[key] = found
        return found

    def _cut_into(self, tensor: int, pipeline: int, *, spans: bool, order: _Order) -> tuple[Replicas, ...]:
        """The replicas of a shape; of nodes that are reached unlike, first those that the quickest networks join."""
        stages = self._cut(tensor, near=order is _quickest)
        plain = Replicas(_replicas(stages, pipeline, spans=spans, order=order))
        if not spans or not self._differ:
            return (plain,)
        joined = Replicas(_replicas(stages, pipeline, spans=spans, order=order, joined=True))
        return (joined,) if _as_empty(joined, plain) else (joined, plain)

    def stage_counts(self, tensor: int) -> tuple[int, ...]:
        """Numbers of stages after which the next one would lie on fuller devices."""
        found = self._counts.get(tensor)
        if found is None:
            ways = self.ways(tensor, 1, spans=False)
            found = self._counts[tensor] = tuple({end for way in ways for end in way.level_ends(len(way))})
        return found

    def _cut(self, tensor: int, *, near: bool) -> list[list[Stage]]:
        made = self._stages.get((tensor, near))
        if made is None:
            cut, grounds = (_near if near else _emptiest), self._nodes
            widest = max(map(len, grounds))
            if tensor > widest:  # asked for by hand alone: whole nodes together, over the network
                whole = [node for node in grounds if len(node) == widest]
                count = -(-tensor // widest)
                if self._differ:
                    from selector.pairing import paired

                    whole = paired(whole, count, _reach_of_node)
                cut, grounds = _emptiest, _joined(whole, count)
            made = self._stages[tensor, near] = [
                sorted(map(_stage, cut(ground, tensor)), key=_quickest if near else _first) for ground in grounds
            ]
        return made


def _as_empty(one: Replicas, other: Replicas) -> bool:
    return [level[0] for level in one.levels] == [level[0] for level in other.levels]


def steps(device: Device) -> int:
    """Free memory, as far as it tells devices apart."""
    return device.free_bytes // FREE_STEP_BYTES


def _stage(devices: list[Device]) -> Stage:
    if len(devices) == 1:
        return Stage((devices[0],), devices[0], "none")
    weakest = min(devices, key=lambda device: device.free_bytes)
    across = len({device.node for device in devices}) > 1
    return Stage(tuple(sorted(devices, key=_index)), weakest, "network" if across else slowest(devices))


def _index(device: Device) -> int:
    return device.index or 0


def _slower(replicas: list[_Replica]) -> Way:
    return "network" if any(replica.link == "network" for replica in replicas) else "pcie"


def _wire(replicas: list[_Replica]) -> Wire | None:
    """The slowest way between nodes that one of the replicas spans."""
    if replicas[-1].devices[0].reach is None:  # those that span nodes stand last; mostly nobody told
        return None
    from selector.interconnect import slowest, way

    spanning = [replica for replica in replicas if replica.nodes > 1]
    ends = [{device.node: device.reach for device in replica.devices} for replica in spanning]
    return slowest([way(reaches.values()) for reaches in ends])


def _first(part: Stage | _Replica) -> tuple[int, int]:
    """The emptiest first."""
    return -steps(part.weakest), part.devices[0].index or 0


def _quickest(part: Stage | _Replica) -> tuple[bool, int, int]:
    """Fast links first, then the emptiest."""
    return part.link in _SLOW, -steps(part.weakest), part.devices[0].index or 0


def _emptiest(node: list[Device], tensor: int) -> Iterator[list[Device]]:
    for start in range(0, len(node) - tensor + 1, tensor):  # a group's devices stand with the emptiest first
        yield node[start : start + tensor]


def _joined(nodes: list[list[Device]], count: int) -> list[list[Device]]:
    """So many nodes as one ground, again and again."""
    starts = range(0, len(nodes) - count + 1, count)
    return [[device for node in nodes[start : start + count] for device in node] for start in starts]


def _near(node: list[Device], tensor: int) -> Iterator[list[Device]]:
    """Stages inside islands, then of what is left inside NUMA nodes, then inside kinds of device, then of the rest."""
    parts: list[list[Device]] = [[device] for device in node]
    for place in (_island, _home, _family, _node):
        together: dict[tuple[int, ...], list[Device]] = {}
        for part in parts:
            together.setdefault(place(part[0]), []).extend(part)
        parts = []
        for devices in together.values():
            whole = len(devices) - len(devices) % tensor
            yield from _emptiest(devices, tensor)
            if whole < len(devices):
                parts.append(devices[whole:])
        # What is left of an island stays together: two linked pairs make a better four than halves of four.
        parts.sort(key=lambda part: (-steps(part[-1]), part[0].index or 0))


def _island(device: Device) -> tuple[int, ...]:
    return (device.island,)


def _home(device: Device) -> tuple[int, ...]:
    return device.family, device.numa


def _family(device: Device) -> tuple[int, ...]:
    return (device.family,)


def _node(device: Device) -> tuple[int, ...]:
    return (device.node,)


def _replicas(
    nodes: list[list[Stage]], pipeline: int, *, spans: bool, order: _Order, joined: bool = False
) -> list[_Replica]:
    """Replicas inside nodes, and of what is left over several nodes: ``joined`` by the quickest network."""
    inside: list[_Replica] = []
    left: list[Stage] = []
    for stages in nodes:
        whole = len(stages) - len(stages) % pipeline
        inside += [_replica(stages[start : start + pipeline]) for start in range(0, whole, pipeline)]
        left += stages[whole:]
    # Stages of one device exchange little: only where a stage has links of its own are fast ones worth memory.
    if not any(stages and stages[0].link != "none" for stages in nodes):
        order = _first
    inside.sort(key=order)
    across: list[_Replica] = []
    if spans and len(left) >= pipeline:
        if left[0].devices[0].reach is None:  # nobody told of any
            left.sort(key=order)
        else:
            left.sort(key=lambda stage: (*order(stage)[:-1], _reach(stage), stage.devices[0].index or 0))
            if joined:
                from selector.pairing import paired  # most clusters are joined by one network

                left = paired(left, pipeline, _reach_of_stage)
        whole = len(left) - len(left) % pipeline
        across = [_replica(_node_by_node(left[start : start + pipeline])) for start in range(0, whole, pipeline)]
    return inside + across


def _worst(stages: list[Stage]) -> Way:
    if stages[0].link == "network":  # groups over several nodes are pinned, and then all are
        return "network"
    return "pcie" if any(stage.link == "pcie" for stage in stages) else "fast"


def _reach(stage: Stage) -> int:
    reach = stage.devices[0].reach
    return 0 if reach is None else reach.rank


def _reach_of_stage(stage: Stage) -> Reach | None:
    return stage.devices[0].reach


def _reach_of_node(node: list[Device]) -> Reach | None:
    return node[0].reach


def _node_by_node(stages: list[Stage]) -> list[Stage]:
    """The stages of a node together, the nodes in the order of their first stages."""
    nodes = [stage.devices[0].node for stage in stages]
    if nodes == sorted(nodes):
        return stages
    order = {node: place for place, node in enumerate(dict.fromkeys(nodes))}
    return sorted(stages, key=lambda stage: order[stage.devices[0].node])


def _replica(stages: list[Stage]) -> _Replica:
    if len(stages) == 1:
        return _Replica(*stages[0], len({device.node for device in stages[0].devices}))
    devices = tuple([device for stage in stages for device in stage.devices])
    weakest = min((stage.weakest for stage in stages), key=lambda device: device.free_bytes)
    alone = stages[0].link == "none"  # the ways between stages count where there are none inside them
    link: Way = slowest(devices) if alone else _worst(stages)
    return _Replica(devices, weakest, link, len({device.node for device in devices}))
