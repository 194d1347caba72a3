"""A cluster as a person reads it: equal nodes once, however many they are; then what is to be said of some."""

from __future__ import annotations

from collections import Counter

import click
import msgspec

from autolaunch.cli.machine_line import machine_line
from autolaunch.cli.render_probe import alike_ports, findings, network_between, render_probe
from autolaunch.cli.terminal import Terminal, clean, gib, heading, plural, ranges, wrapped
from selector.hardware import HardwareReport, Node

_LABEL = 14
_GIB = 1024**3
#: So many names of equal nodes stand in a heading.
_NAMED = 4
_MARKS = {"failed": ("✗", "red"), "found": ("≈", "yellow"), "absent": ("–", None)}


def render_cluster(report: HardwareReport, terminal: Terminal, *, verbose: bool = False) -> str:
    """The whole of it, each kind of node, and the findings; ``verbose`` has each node as it is alone."""
    parts = [_whole(report, terminal)]
    if verbose:
        for each in report.hosts:
            title = heading(clean(f"── {_named(each)} "))
            parts.append(f"{title}\n\n{render_probe(alone(report, each), terminal, verbose=True)}")
    else:
        kinds: dict[object, list[Node]] = {}
        for each in report.hosts:
            kinds.setdefault(_kind(report, each), []).append(each)
        parts += [_equal(report, nodes, terminal) for nodes in kinds.values()]
    parts += _said(report, terminal)
    own = tuple(each for each in report.findings if each.probe not in ("cluster", "ray"))
    parts += findings(msgspec.structs.replace(report, findings=own), terminal)
    return "\n\n".join(parts)


def _said(report: HardwareReport, terminal: Terminal) -> list[str]:
    """What some nodes lack, and how they differ: the worst first."""
    lines = []
    for outcome, (mark, color) in _MARKS.items():
        for each in report.findings:
            if each.probe == "cluster" and each.outcome == outcome:
                text = wrapped(clean(each.reason or ""), terminal, first=f"  {mark} ", rest="    ")
                lines.append(click.style(text, fg=color) if color else text)
    return ["\n".join((heading("Nodes to look at"), *lines))] if lines else []


def alone(report: HardwareReport, node: Node) -> HardwareReport:
    """A node as a machine of its own, with the numbers that its devices have in the cluster."""
    devices = tuple(each for each in report.accelerators if each.node == node.index)
    numbers = {each.index for each in devices}
    return msgspec.structs.replace(
        report,
        host=node.host,
        network=node.network,
        accelerators=tuple(msgspec.structs.replace(each, node=0) for each in devices),
        links=tuple(each for each in report.links if each.from_ in numbers),
        nodes=1,
        hosts=(),
        drivers=(),
        findings=(),
    )


def _named(node: Node) -> str:
    return node.name if node.address is None or node.address in node.name else f"{node.name} ({node.address})"


def _kind(report: HardwareReport, node: Node) -> object:
    """What makes two nodes equal to a person: all but names, addresses, and what is free just now."""
    devices = tuple(
        (each.vendor, each.name, each.memory_total_bytes) for each in report.accelerators if each.node == node.index
    )
    host, memory = node.host, node.host.memory_total_bytes
    ports = tuple(sorted((each.kind, each.bandwidth_bytes_per_second or 0) for each in node.network))
    about = (host.os, host.machine, host.cpu.brand, host.cpu.cores, None if memory is None else memory // _GIB)
    return devices, about, ports


def _whole(report: HardwareReport, terminal: Terminal) -> str:
    rows = [("joined by", each.reason) for each in report.findings if each.probe == "ray" and each.reason]
    rows.append(("devices", machine_line(report)))
    if report.nodes > 1:
        rows.append(("network", network_between(report)))
    rows += [(f"{each.vendor} driver", each.version or "of unknown version") for each in report.drivers]
    return "\n".join((heading("Cluster"), *(_row(name, text, terminal) for name, text in rows)))


def _equal(report: HardwareReport, nodes: list[Node], terminal: Terminal) -> str:
    first = nodes[0]
    names = [_named(each) for each in nodes]
    if len(nodes) > _NAMED:
        title = f"{len(nodes):,} nodes: {nodes[0].name}, {nodes[1].name} … {nodes[-1].name}"
    else:
        title = (f"{len(nodes)} nodes: " if len(nodes) > 1 else "") + ", ".join(names)
    indices = {each.index for each in nodes}
    devices = [each for each in report.accelerators if each.node in indices]
    rows = []
    if devices:
        numbers = ranges(tuple(each.index for each in devices))
        each_has = machine_line(msgspec.structs.replace(alone(report, first), findings=()))
        rows.append(("GPUs", f"{each_has}{' in each' if len(nodes) > 1 else ''}, numbers {numbers}"))
        least = [each.memory_free_bytes for each in devices if each.memory_free_bytes is not None]
        if least:
            rows.append(("free", f"{gib(min(least))} of the fullest of them" if len(least) > 1 else gib(least[0])))
        holders = sum(len(each.processes) for each in devices)
        if holders:
            rows.append(("in use", f"{plural(holders, 'process', 'processes')} on them (--verbose names them)"))
    rows += _links(report, indices)
    host = first.host
    cores = "" if host.cpu.cores is None else f", {plural(host.cpu.cores, 'core')}"
    rows.append(("processor", (host.cpu.brand or "unknown") + cores))
    rows.append(("memory", "unknown" if host.memory_total_bytes is None else gib(host.memory_total_bytes)))
    disks = [each.host.disk_free_bytes for each in nodes if each.host.disk_free_bytes is not None]
    if disks:
        rows.append(("disk", f"{'at least ' if len(nodes) > 1 else ''}{gib(min(disks))} free for models"))
    if first.network:
        rows.append(("network", "; ".join(text for text, _ in alike_ports(first.network))))
    lines = [_row(name, text, terminal) for name, text in rows]
    return "\n".join((heading(wrapped(clean(title), terminal, rest="  ")), *lines))


def _links(report: HardwareReport, nodes: set[int]) -> list[tuple[str, str]]:
    node_of = {each.index: each.node for each in report.accelerators}
    links = [each for each in report.links if node_of.get(each.from_) in nodes]
    kinds = Counter((each.kind, each.bandwidth_bytes_per_second) for each in links)
    told = [
        f"{kind} {'of unknown speed' if rate is None else f'{rate / 1e9:,.0f} GB/s'} ({plural(number, 'pair')})"
        for (kind, rate), number in kinds.most_common()
    ]
    return [("links", ", ".join(told))] if told else []


def _row(name: str, text: str, terminal: Terminal) -> str:
    return wrapped(clean(text), terminal, first=f"  {name:<{_LABEL}}", rest=" " * (_LABEL + 2))
