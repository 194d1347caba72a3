"""Nodes of a cluster that is not there, and what they would have answered: recorded machines under other names."""

from __future__ import annotations

from functools import cache
from typing import Any

from autolaunch.cluster.answers import Answer
from autolaunch.cluster.members import Member
from selector.hardware import HardwareReport
from selector.machines import report_from_file
from tests.fakes.machines import DATA

VERSION = "0.1.0"


@cache
def recorded(name: str) -> HardwareReport:
    return report_from_file(DATA / f"{name}.json")


def member(number: int, *, gpus: float | None = 8.0, **changes: Any) -> Member:
    """The node ``number``; the first is the head."""
    values: dict[str, Any] = {
        "id": f"{number:04x}" * 14,
        "name": f"gpu-{number}",
        "address": f"10.0.{number // 250}.{number % 250 + 1}",
        "alive": True,
        "is_head": number == 0,
        "cpus": 16.0,
        "gpus": gpus,
    }
    return Member(**{**values, **changes})


def answer(number: int, machine: str | HardwareReport = "8xh100", *, version: str = VERSION, **changes: Any) -> Answer:
    """Its answer; Ray counts as many GPUs as it has unless ``gpus`` says otherwise."""
    report = recorded(machine) if isinstance(machine, str) else machine
    changes.setdefault("gpus", float(len(report.accelerators)))
    return Answer(member=member(number, **changes), version=version, report=report)
