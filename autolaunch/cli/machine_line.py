"""A machine in one line, and what of it could not be asked."""

from __future__ import annotations

from autolaunch.cli.terminal import clean, gib, plural
from selector.hardware import HardwareReport


def machine_line(report: HardwareReport) -> str:
    """``8 × NVIDIA H200 (140.4 GiB each)``; ``2 nodes, 16 × …``; a machine without a GPU by its CPU."""
    groups: dict[tuple[str, int | None, str], int] = {}
    for device in report.accelerators:
        key = (device.name, device.memory_total_bytes, device.memory_kind)
        groups[key] = groups.get(key, 0) + 1
    parts = []
    for (name, size_bytes, kind), number in groups.items():
        size = "memory unknown" if size_bytes is None else gib(size_bytes)
        size += " unified" if kind == "unified" and size_bytes is not None else ""
        parts.append(f"{number} × {name} ({size} each)" if number > 1 else f"{name} ({size})")
    if not parts:
        cpu = report.host.cpu
        what = "a CPU" if cpu.brand is None else cpu.brand
        if cpu.cores is not None:
            what += f", {plural(cpu.cores, 'core')}"
        memory = report.host.memory_total_bytes
        parts.append(f"{what}, {'memory unknown' if memory is None else gib(memory)}, no GPU")
    nodes = f"{report.nodes} nodes: " if report.nodes > 1 else ""
    return nodes + ", ".join(parts)


def troubles(report: HardwareReport) -> list[str]:
    """A sentence for each probe that failed: "there is none" and "it could not be asked" are not the same."""
    return [
        clean(f"{finding.probe} could not be asked: {finding.reason or 'no reason given'}")
        for finding in report.findings
        if finding.outcome == "failed"
    ]
