"""The nodes of a report by the names that a person knows them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from selector.contract import Number, Parallel
from selector.devices import Device, Group
from selector.hardware import Accelerator, HardwareReport
from selector.legality import Refusal
from selector.placement import FREE_STEP_BYTES

_NAMED = 4
_STAGES = 16


def node_name(report: HardwareReport, index: int) -> str:
    """Its host name where it was asked for, else its place: ``node 2 of 3``."""
    told = next((node.name for node in report.hosts if node.index == index), None)
    return f"node {index + 1} of {report.nodes}" if told is None else told


def node_names(report: HardwareReport, indices: Iterable[int]) -> str:
    """``gpu-a, gpu-b and 3 more``."""
    every = sorted(set(indices))
    names = ", ".join(node_name(report, index) for index in every[:_NAMED])
    return names if len(every) <= _NAMED else f"{names} and {len(every) - _NAMED} more"


def networks(report: HardwareReport, kinds: Mapping[int, str]) -> str:
    """``gpu-a: InfiniBand; gpu-b: Ethernet``: what kinds of network each node has, by its number."""
    told = [f"{node_name(report, node)}: {what}" for node, what in sorted(kinds.items())]
    left = len(told) - _NAMED
    return "; ".join(told[:_NAMED]) + (f"; and {left} more nodes" if left > 0 else "")


def too_few(report: HardwareReport, group: Group, parallel: Parallel) -> Refusal:
    """That the nodes of a group have no room for a layout: too few devices in all, or on which of them."""
    tensor, needed, there = parallel.tensor, parallel.ranks * parallel.data, len(group.devices)
    here = Counter(device.node for device in group.devices)
    numbers: dict[str, Number] = {"needed_devices": needed, "devices": there}
    if needed > there:
        message = f"needs {needed} devices, {there} are there"
        if len(set(here.values())) == 1:
            return Refusal("layout.devices", message, numbers)
        numbers["node"] = _fewest(here)[0][0]
        return Refusal("layout.devices", f"{message} ({_counts(report, here)})", numbers)
    nodes = -(-tensor // group.per_node)  # that one tensor-parallel group takes; several only where it was pinned
    room = sum(count // tensor for count in here.values())
    short = {node: count for node, count in here.items() if count % tensor}
    where = "each inside a node"
    if nodes > 1:
        room = sum(count == group.per_node for count in here.values()) // nodes
        short = {node: count for node, count in here.items() if count < group.per_node}
        where = f"each on {nodes} nodes of {group.per_node}"
    wanted = parallel.pipeline * parallel.data
    numbers |= {"needed_groups": wanted, "groups": room}
    message = f"needs {wanted} group{'s' if wanted > 1 else ''} of {tensor} devices, {where}; there is room for {room}"
    if not short:
        return Refusal("layout.devices", message, numbers)
    numbers["node"] = _fewest(short)[0][0]
    return Refusal("layout.devices", f"{message} ({_counts(report, short)})", numbers)


def _counts(report: HardwareReport, here: Mapping[int, int]) -> str:
    """``gpu-b has 4, gpu-a has 8``: the fewest first, and of equals the first node."""
    fewest = _fewest(here)
    parts = [f"{node_name(report, node)} has {count}" for node, count in fewest[:_NAMED]]
    left = len(fewest) - _NAMED
    return ", ".join(parts) + (f" and {left} more nodes" if left > 0 else "")


def _fewest(here: Mapping[int, int]) -> list[tuple[int, int]]:
    return sorted(here.items(), key=lambda item: (item[1], item[0]))


def told_of(report: HardwareReport, group: Group, most_free_bytes: int, fullest: Device, refusal: Refusal) -> Refusal:
    """A refusal for want of memory with the node that has too little, where others have more.

    ``fullest`` is the device that it is about, ``most_free_bytes`` what is free on the emptiest of the group.
    """
    if group.joint:
        node = next((device.node for device in group.devices if device.least), fullest.node)
    elif most_free_bytes // FREE_STEP_BYTES > fullest.free_bytes // FREE_STEP_BYTES:
        node = fullest.node
    else:
        return refusal
    name = node_name(report, node)
    return Refusal(refusal.code, f"{refusal.message}; {name} has the least", {**refusal.numbers, "node": node})


def stages(report: HardwareReport, parallel: Parallel) -> str:
    """``Its stages: 1 on gpu-a (devices 0-7), 2 on gpu-b (devices 8-15).``: of the replica that spans most nodes."""
    node = {device.index: device.node for device in report.accelerators}
    devices = parallel.devices
    replicas = [devices[start : start + parallel.ranks] for start in range(0, len(devices), parallel.ranks)]
    number, widest = max(enumerate(replicas), key=lambda each: len({node[index] for index in each[1]}))
    parts = []
    for stage in range(min(parallel.pipeline, _STAGES)):
        ranks = widest[stage * parallel.tensor : (stage + 1) * parallel.tensor]
        names = node_names(report, (node[index] for index in ranks))
        parts.append(f"{stage + 1} on {names} ({'device' if len(ranks) == 1 else 'devices'} {_ranges(ranks)})")
    more = f" and {parallel.pipeline - _STAGES} more" if parallel.pipeline > _STAGES else ""
    of = f"The stages of replica {number + 1}" if parallel.data > 1 else "Its stages"
    return f"{of}: {', '.join(parts)}{more}."


def held(report: HardwareReport, devices: Iterable[Accelerator], what: Callable[[Accelerator], str]) -> str:
    """``devices 8-9 of gpu-b: 69.6 GiB each; device 10 of gpu-b: 4.0 GiB``: what others hold of devices."""
    alike: dict[tuple[int, str], list[int]] = {}
    for device in devices:
        alike.setdefault((device.node, what(device)), []).append(device.index)
    return "; ".join(
        f"{'device' if len(indices) == 1 else 'devices'} {_ranges(indices)} of {node_name(report, node)}: {words}"
        + (" each" if len(indices) > 1 else "")
        for (node, words), indices in alike.items()
    )


def _ranges(indices: Iterable[int]) -> str:
    """``0-7``, ``0-3,8``."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
