"""A machine as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import click

from autolaunch.cli.terminal import Terminal, clean, count, gib, heading, plural, table, wrapped
from selector.hardware import Accelerator, HardwareReport, NetworkKind, NetworkPort
from selector.interconnect import between, reaches, wire_words, words

_LABEL = 11
_SYSTEMS = {"linux": "Linux", "darwin": "macOS", "windows": "Windows", "other": "unknown system"}
_MARKS = {"found": ("✓", "green"), "absent": ("–", None), "failed": ("✗", "red")}
_ABOVE_WIDTH = 100


def render_probe(report: HardwareReport, terminal: Terminal, *, verbose: bool = False) -> str:
    """Host, devices, links, drivers, and what each probe said; of a cluster, its nodes."""
    if report.hosts:
        from autolaunch.cli.render_cluster import render_cluster

        return render_cluster(report, terminal, verbose=verbose)
    parts = [_host(report, terminal, verbose=verbose), _devices(report, terminal)]
    parts += _links(report, terminal, verbose=verbose)
    parts += _network(report, terminal, verbose=verbose)
    parts += _holders(report, terminal)
    parts += findings(report, terminal)
    return "\n\n".join(parts)


def _host(report: HardwareReport, terminal: Terminal, *, verbose: bool) -> str:
    host = report.host
    cores = "" if host.cpu.cores is None else f", {plural(host.cpu.cores, 'core')}"
    system = " ".join(part for part in (_SYSTEMS[host.os], host.os_version) if part)
    rows = [
        ("system", ", ".join(part for part in (system, host.machine) if part)),
        ("processor", (host.cpu.brand or "unknown") + cores),
        ("memory", _of(host.memory_available_bytes, host.memory_total_bytes, "available")),
        ("disk", "unknown" if host.disk_free_bytes is None else f"{gib(host.disk_free_bytes)} free for models"),
    ]
    rows += [
        (
            "driver",
            f"{driver.vendor} {driver.version or 'of unknown version'}" + _runtime(driver.runtime, driver.vendor),
        )
        for driver in report.drivers
    ]
    if verbose and host.cpu.features:
        rows.append(("features", " ".join(host.cpu.features)))
    lines = [
        wrapped(clean(text), terminal, first=f"  {name:<{_LABEL}}", rest=" " * (_LABEL + 2)) for name, text in rows
    ]
    first = f"  the first of {count(report.nodes)} nodes" if report.nodes > 1 else ""
    return "\n".join((heading("Host") + first, *lines))


def _runtime(runtime: str | None, vendor: str) -> str:
    if runtime is None:
        return ""
    return f", {'CUDA' if vendor == 'nvidia' else 'ROCm' if vendor == 'amd' else 'runtime'} {runtime}"


def _of(free_bytes: int | None, total_bytes: int | None, word: str) -> str:
    if total_bytes is None:
        return "unknown"
    return gib(total_bytes) if free_bytes is None else f"{gib(total_bytes)}, {gib(free_bytes)} {word}"


def _devices(report: HardwareReport, terminal: Terminal) -> str:
    if not report.accelerators:
        from autolaunch.cli.machine_line import unasked

        told = [f"those of {vendor} could not be asked: {why}" for vendor, why in unasked(report).items()]
        return "\n".join(
            (heading("GPUs"), *(wrapped(each, terminal, first="  ") for each in told or ["none was found"]))
        )
    wide = terminal.width_columns >= _ABOVE_WIDTH
    nodes: tuple[str, ...] = ("node",) if report.nodes > 1 else ()
    places: tuple[str, ...] = ("PCI", "UUID") if wide else ()
    head = ("#", "GPU", "memory", "free", "level", *nodes, *places)
    rows = [_device(each, nodes=report.nodes > 1, wide=wide) for each in report.accelerators]
    return f"{heading('GPUs')}\n{table(head, rows, right=(0, 2, 3), flex=1, width=terminal.width_columns)}"


def _device(device: Accelerator, *, nodes: bool, wide: bool) -> tuple[str, ...]:
    level = "" if device.compute_capability is None else "sm_{}{}".format(*device.compute_capability)
    if device.metal is not None:
        level = f"Metal {device.metal.version}" if device.metal.version else "Metal"
    name = clean(device.name) + (" (slice)" if device.mig_parent_uuid else "")
    total = "unknown" if device.memory_total_bytes is None else gib(device.memory_total_bytes)
    free = "unknown" if device.memory_free_bytes is None else gib(device.memory_free_bytes)
    row: tuple[str, ...] = (str(device.index), name, total, free, level)
    row = (*row, str(device.node)) if nodes else row
    return (*row, device.pci_bus_id or "", clean(device.uuid or "")) if wide else row


def _links(report: HardwareReport, terminal: Terminal, *, verbose: bool) -> list[str]:
    if not report.links:
        return []
    if verbose:
        rows: list[tuple[str, ...]] = [
            (f"{link.from_} - {link.to}", link.kind, _bandwidth(link.bandwidth_bytes_per_second))
            for link in report.links
        ]
        body = table(("pair", "link", "one direction"), rows, right=(2,), flex=1, width=terminal.width_columns)
        return [f"{heading('Links')}\n{body}"]
    kinds = Counter((link.kind, link.bandwidth_bytes_per_second) for link in report.links)
    lines = [
        f"  {kind}, {_bandwidth(bandwidth)} in one direction: {plural(number, 'pair')}"
        for (kind, bandwidth), number in kinds.most_common()
    ]
    return ["\n".join((heading("Links"), *lines))]


def _network(report: HardwareReport, terminal: Terminal, *, verbose: bool) -> list[str]:
    """The ports of one machine: alike ones in a line, or each in a row. Of several, what joins them."""
    if report.nodes > 1:
        return [f"{heading('Network')}\n{wrapped(network_between(report), terminal, first='  ')}"]
    if not report.network:
        return []
    if verbose:
        rows: list[tuple[str, ...]] = [
            (
                words(port.kind, port.bandwidth_bytes_per_second),
                *map(clean, (port.interface or "", port.device or "", ", ".join(port.addresses))),
            )
            for port in report.network
        ]
        head = ("port", "interface", "RDMA", "addresses")
        return [f"{heading('Network')}\n{table(head, rows, flex=3, width=terminal.width_columns)}"]
    lines = [
        wrapped(f"{text}: {clean(_names(ports))}", terminal, first="  ", rest="    ")
        for text, ports in alike_ports(report.network)
    ]
    return ["\n".join((heading("Network"), *lines))]


def alike_ports(ports: Iterable[NetworkPort]) -> list[tuple[str, list[NetworkPort]]]:
    """Ports of one kind and rate together: ``8 × InfiniBand, 400 Gbit/s``, and which they are."""
    alike: dict[tuple[NetworkKind, int | None], list[NetworkPort]] = {}
    for port in ports:
        alike.setdefault((port.kind, port.bandwidth_bytes_per_second), []).append(port)
    return [(f"{len(same)} × " * (len(same) > 1) + words(*key), same) for key, same in alike.items()]


def network_between(report: HardwareReport) -> str:
    """What is known of the network that joins all nodes of a report."""
    if not report.hosts:
        return f"how the {count(report.nodes)} nodes are joined is not known: a network is assumed"
    wire = between(report)
    if wire is None:
        slow = "a slow network" if any(node.network for node in report.hosts) else "a network"
        return f"no kind of port is known that all nodes have: where a replica spans such, {slow} is assumed"
    if len(set(reaches(report).values())) > 1:
        return f"all nodes have {wire_words(wire)} in common, and some have more"
    return f"all nodes are joined by {wire_words(wire)}"


def _names(ports: list[NetworkPort]) -> str:
    names = []
    for port in ports:
        name = " ".join(part for part in (port.interface, port.device) if part)
        names.append(f"{name} ({port.addresses[0]})" if port.addresses else name)
    return ", ".join(names)


def _bandwidth(bytes_per_second: int | None) -> str:
    return "speed unknown" if bytes_per_second is None else f"{bytes_per_second / 1e9:,.0f} GB/s"


def _holders(report: HardwareReport, terminal: Terminal) -> list[str]:
    """Who holds memory of the devices, so that a person knows what to stop."""
    rows: list[tuple[str, ...]] = [
        (
            str(device.index),
            str(process.pid),
            clean(process.name or "unknown"),
            "unknown" if process.used_bytes is None else gib(process.used_bytes),
        )
        for device in report.accelerators
        for process in device.processes
    ]
    if not rows:
        return []
    body = table(("GPU", "process", "name", "holds"), rows, right=(0, 1, 3), flex=2, width=terminal.width_columns)
    return [f"{heading('In use')}\n{body}"]


def findings(report: HardwareReport, terminal: Terminal) -> list[str]:
    """What each probe said; nothing of a machine that no probe was asked of."""
    if not report.findings:
        return []
    lines = [heading("Asked")]
    for finding in report.findings:
        mark, color = _MARKS[finding.outcome]
        reason = f": {clean(finding.reason)}" if finding.reason else ""
        text = wrapped(f"{clean(finding.probe)} {finding.outcome}{reason}", terminal, first=f"  {mark} ", rest="    ")
        lines.append(click.style(text, fg=color) if color else text)
    return ["\n".join(lines)]
