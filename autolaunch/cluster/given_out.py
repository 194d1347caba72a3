"""GPUs that Ray has given to other work, as a plan of a launch has to see them: held, and not to be had. Pure.

Ray gives GPUs by their number and tells nobody which ones: of a node, as many as it has given out are taken for held,
those first whose driver has the least memory free. Which of a node's GPUs an engine gets is Ray's to say too; they are
planned as if they were alike, as those of one node are.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from autolaunch.cluster.members import Member
from selector.hardware import Accelerator, DeviceProcess, HardwareReport

#: What a refusal names in place of a process, which may be on any node.
OTHER_WORK = "other work of the Ray cluster"


def with_given_out(report: HardwareReport, members: Iterable[Member]) -> HardwareReport:
    """``report`` with no memory free on the GPUs that Ray has given to others."""
    free = {each.id: each.free_gpus for each in members if each.alive}
    held: set[int] = set()
    for node in report.hosts:
        count = free.get(node.id or "")
        mine = [each for each in report.accelerators if each.node == node.index]
        if count is not None and int(count) < len(mine):
            mine.sort(key=_least_free)
            held |= {each.index for each in mine[: len(mine) - int(count)]}
    if not held:
        return report
    return msgspec.structs.replace(
        report, accelerators=tuple(_held(each) if each.index in held else each for each in report.accelerators)
    )


def _least_free(device: Accelerator) -> tuple[int, int]:
    free = device.memory_free_bytes
    return (device.memory_total_bytes or 0) if free is None else free, -device.index


def _held(device: Accelerator) -> Accelerator:
    used = DeviceProcess(pid=0, name=OTHER_WORK)
    return msgspec.structs.replace(device, memory_free_bytes=0, processes=(*device.processes, used))
