"""A machine in one line, and what of it could not be asked.

"There is no GPU" and "the GPUs could not be asked" are different answers, here as in the probe's findings.
"""

from __future__ import annotations

from autolaunch.cli.terminal import clean, gib, plural
from selector.hardware import HardwareReport

_VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "apple": "Apple"}
#: Of a vendor's reasons the first says what is wrong with all of its GPUs, the second with the first of them.
_REASONS = 2
#: What is said of a cluster's nodes (:mod:`autolaunch.cluster.merging`): sentences, whatever came of asking them.
_OF_NODES = "cluster"


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
        unknown = "; ".join(f"its {vendor} GPUs could not be asked: {why}" for vendor, why in unasked(report).items())
        parts.append(f"{what}, {'memory unknown' if memory is None else gib(memory)}, {unknown or 'no GPU'}")
    nodes = f"{report.nodes} nodes: " if report.nodes > 1 else ""
    return nodes + ", ".join(parts)


def unasked(report: HardwareReport) -> dict[str, str]:
    """Why, by vendor, nobody knows whether there are GPUs: its probe failed, and none of them was found.

    A GPU that is left out beside others of its vendor is a trouble only: the plan goes on without it.
    """
    found = {device.vendor for device in report.accelerators}
    reasons: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.outcome == "failed" and finding.probe in _VENDORS and finding.probe not in found:
            reasons.setdefault(_VENDORS[finding.probe], []).append(finding.reason or "no reason given")
    return {vendor: clean("; ".join(each[:_REASONS])) for vendor, each in reasons.items()}


def troubles(report: HardwareReport) -> list[str]:
    """A sentence for each probe that failed, but for those of which the machine's line says it already.

    How one machine would reach others is no matter of it. Of a cluster also how its nodes differ, and which of them
    are not planned with.
    """
    told = set() if report.accelerators else {name for name, vendor in _VENDORS.items() if vendor in unasked(report)}
    if report.nodes == 1:
        told.add("network")
    nodes = [clean(each.reason) for each in report.findings if each.probe == _OF_NODES and each.reason]
    return nodes + [
        clean(f"{finding.probe} could not be asked: {finding.reason or 'no reason given'}")
        for finding in report.findings
        if finding.outcome == "failed" and finding.probe not in told and finding.probe != _OF_NODES
    ]
