"""The devices' memory around an engine: what was free before it started, and whether it is back after it ended.

A driver gives memory back some time after the process that held it is gone. Who starts the next engine before that
plans with less than there is, or fails with out of memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from selector.hardware import DeviceProcess
from selector.probe.nvidia_memory import DeviceMemory, device_memory
from selector.probe.nvml import LIBRARY_NOT_FOUND, Nvml, NvmlFailure
from selector.values import Value

TIMEOUT_SECONDS = 30.0
#: The pause between two looks grows from the first to the second.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.1, 1.0
#: What may be missing of the memory that was free before: a share of the device, and at least so much.
TOLERANCE_SHARE, TOLERANCE_BYTES = 0.02, 512 << 20

Look = Callable[[Collection[str]], tuple[DeviceMemory, ...]]


class MemoryHeld(Value, frozen=True, kw_only=True):
    """A device whose memory is not back. ``processes`` are all that the driver names, ours or not.

    In a container it may name none, or by the host's process ids.
    """

    uuid: str
    free_bytes: int
    processes: tuple[DeviceProcess, ...] = ()


class Holders(Value, frozen=True, kw_only=True):
    """What a wait for memory came to: nothing ``held`` is a clean end.

    ``failure`` says why the driver could not be asked (to the end); then nothing is known to be held. No driver at all
    is no failure.
    """

    waited_seconds: float = 0.0
    held: tuple[MemoryHeld, ...] = ()
    failure: str | None = None


def free_memory(uuids: Collection[str]) -> dict[str, int]:
    """The free bytes of each device (or MIG slice) whose driver tells them; to be taken before an engine starts.

    Without a driver, or where it cannot be asked, there is nothing in it. Devices that share the host's memory, and
    those of other vendors, are not in it either.
    """
    if not uuids:
        return {}
    try:
        with Nvml.open() as nvml:
            return {device.uuid: device.free_bytes for device in device_memory(nvml, uuids)}
    except NvmlFailure:
        return {}


def wait_for_memory(
    uuids: frozenset[str],
    process_ids: frozenset[int],
    *,
    free_before: Mapping[str, int],
    timeout_seconds: float = TIMEOUT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Holders:
    """Waits until an engine's memory is back, after its processes have ended.

    It is when the driver lists none of ``process_ids`` on these devices and about as much is free as in
    ``free_before`` (:func:`free_memory`); a device that is not in there is only asked for the processes. A device that
    is lost, or that shares the host's memory, is not waited for. Blocks for ``timeout_seconds`` at most.
    """
    if not uuids:
        return Holders()
    began = clock()
    try:
        with Nvml.open() as nvml:
            held = until_back(
                lambda each: device_memory(nvml, each),
                uuids,
                process_ids,
                free_before=free_before,
                deadline=began + timeout_seconds,
                clock=clock,
                sleep=sleep,
            )
    except NvmlFailure as failure:
        why = None if failure.nvml_code == LIBRARY_NOT_FOUND else failure.explained
        return Holders(waited_seconds=clock() - began, failure=why)
    return Holders(waited_seconds=clock() - began, held=held)


def until_back(
    look: Look,
    uuids: Collection[str],
    process_ids: Collection[int],
    *,
    free_before: Mapping[str, int],
    deadline: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[MemoryHeld, ...]:
    """Looks until the memory is back or the deadline is there; gives the devices that still hold some.

    Raises:
        NvmlFailure: ``look`` did.
    """
    pause_seconds = FIRST_PAUSE_SECONDS
    waiting = frozenset(uuids)
    while True:
        held = tuple(each for each in look(waiting) if not is_back(each, process_ids, free_before.get(each.uuid)))
        left_seconds = deadline - clock()
        if not held or left_seconds <= 0:
            return tuple(
                MemoryHeld(uuid=each.uuid, free_bytes=each.free_bytes, processes=each.processes) for each in held
            )
        # What is back is not asked again: somebody else may have begun to use it.
        waiting = frozenset(each.uuid for each in held)
        sleep(min(pause_seconds, left_seconds))
        pause_seconds = min(2 * pause_seconds, LAST_PAUSE_SECONDS)


def is_back(device: DeviceMemory, process_ids: Collection[int], free_before_bytes: int | None) -> bool:
    """Whether a device holds none of the processes, and about as much is free as before."""
    if any(process.pid in process_ids for process in device.processes):
        return False
    tolerance_bytes = max(TOLERANCE_BYTES, int(TOLERANCE_SHARE * device.total_bytes))
    return free_before_bytes is None or device.free_bytes >= free_before_bytes - tolerance_bytes
