"""The memory of NVIDIA GPUs and who holds it: one part of the probe, also asked alone while the daemon waits for it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from selector.hardware import DeviceProcess
from selector.probe.nvml import Nvml, NvmlFailure
from selector.probe.system import process_name
from selector.values import Value

#: No accelerator comes near a pebibyte; a driver that says so tells nothing.
_IMPLAUSIBLE_BYTES = 1 << 50


class DeviceMemory(Value, frozen=True, kw_only=True):
    """The memory of one device and the processes that hold some of it, at one moment."""

    uuid: str
    total_bytes: int
    free_bytes: int
    processes: tuple[DeviceProcess, ...] = ()


def device_memory(nvml: Nvml, uuids: Collection[str]) -> tuple[DeviceMemory, ...]:
    """The devices (MIG slices too) whose driver tells the memory, in the order of their UUIDs.

    Left out are those that share the host's memory, are lost, or are none of NVIDIA's.

    Raises:
        NvmlFailure: the driver cannot be asked any more.
    """
    found = []
    for uuid in sorted(uuids):
        try:
            handle = nvml.require("nvmlDeviceGetHandleByUUID", uuid)
            total_bytes, free_bytes = memory(nvml, handle) or (None, None)
            if total_bytes is not None and free_bytes is not None:
                held = processes(nvml, handle)
                found.append(DeviceMemory(uuid=uuid, total_bytes=total_bytes, free_bytes=free_bytes, processes=held))
        except NvmlFailure as failure:
            if failure.is_of_driver:
                raise
    return tuple(found)


def memory(nvml: Nvml, handle: object) -> tuple[int | None, int | None] | None:
    """Total and free bytes, where they can be believed; ``None`` where the driver has no figures for the device.

    Raises:
        NvmlFailure: the device cannot be asked about its memory.
    """
    version = nvml.constant("nvmlMemory_v2", 0)
    info = nvml.ask("nvmlDeviceGetMemoryInfo", handle, version, strict=True) if version else None
    if info is None:  # a driver before 510
        info = nvml.ask("nvmlDeviceGetMemoryInfo", handle, strict=True)
    if info is None:
        return None
    total = info.total if 0 < info.total < _IMPLAUSIBLE_BYTES else None
    free = info.free if total is not None and info.free <= total else None
    return total, free


def processes(
    nvml: Nvml, handle: object, name_of: Callable[[int], str | None] = process_name
) -> tuple[DeviceProcess, ...]:
    """Who holds memory of a device, by process id: computing ones, and the desktop where there is one."""
    used: dict[int, int | None] = {}
    for call in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for process in nvml.ask(call, handle) or ():
            held = process.usedGpuMemory
            used[process.pid] = held if isinstance(held, int) and 0 <= held < _IMPLAUSIBLE_BYTES else None
    return tuple(DeviceProcess(pid=pid, name=name_of(pid), used_bytes=used[pid]) for pid in sorted(used))
