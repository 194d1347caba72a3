"""Main memory that engines may fill: beside the devices of one machine, or instead of them."""

from __future__ import annotations

from typing import NamedTuple

from selector.hardware import HardwareReport

#: Share of main memory that a CPU engine may fill (assumed).
HOST_SHARE = 0.9


class MainMemory(NamedTuple):
    """Main memory of one host that engines may fill. ``free_known`` is false where nobody told what is free of it."""

    total_bytes: int
    allocatable_bytes: int
    free_bytes: int
    free_known: bool


def of_first_node(report: HardwareReport) -> MainMemory | None:
    """What may be filled of main memory; ``None`` where that is unknown, or shared with a GPU.

    Memory shared with a GPU is planned on the GPU, which is never the slower of the two.
    """
    total = report.host.memory_total_bytes
    shared = any(device.memory_kind == "unified" for device in report.accelerators)
    if total is None or total <= 0 or shared:
        return None
    allocatable = int(total * HOST_SHARE)
    available = report.host.memory_available_bytes
    free = allocatable if available is None else max(0, min(available, allocatable))
    return MainMemory(total, allocatable, free, available is not None)


def beside_devices(report: HardwareReport) -> MainMemory | None:
    """What may hold weights beside devices: of one machine only.

    Of several it is not used: the engine that keeps weights there is planned on one machine, and which of them it would
    be is open until its devices are chosen.
    """
    return of_first_node(report) if report.nodes == 1 else None
