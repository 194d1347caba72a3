"""The nodes of a report by the names that a person knows them by."""

from __future__ import annotations

from collections.abc import Iterable

from selector.hardware import HardwareReport

_NAMED = 4


def node_name(report: HardwareReport, index: int) -> str:
    """Its host name where it was asked for, else its place: ``node 2 of 3``."""
    told = next((node.name for node in report.hosts if node.index == index), None)
    return f"node {index + 1} of {report.nodes}" if told is None else told


def node_names(report: HardwareReport, indices: Iterable[int]) -> str:
    """``gpu-a, gpu-b and 3 more``."""
    every = sorted(set(indices))
    names = ", ".join(node_name(report, index) for index in every[:_NAMED])
    return names if len(every) <= _NAMED else f"{names} and {len(every) - _NAMED} more"
