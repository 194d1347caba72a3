"""Reads what NVIDIA's driver tells beside the probe's report: its versions, health, clocks, slots, switches."""

from __future__ import annotations

import re
from typing import Literal

from autolaunch.doctor.facts import Gpu, Nvidia
from selector.probe import nvidia_health
from selector.probe.nvml import LIBRARY_NOT_FOUND, Nvml, NvmlFailure
from selector.probe.system import System
from selector.probe.text import printable, read_text

#: nvmlClocksEventReasons of nvml.h, those that are no way of saving power or of keeping to the card's own limit.
_SLOWDOWNS = {
    0x08: "by the hardware, for heat or power",
    0x20: "for heat",
    0x40: "for heat, by the hardware",
    0x80: "for power, by the host (power brake)",
}
#: nvmlGpuFabricState_t of nvml.h; 0 is "not supported".
_FABRIC: dict[int, Literal["not started", "in progress", "completed"]] = {
    1: "not started",
    2: "in progress",
    3: "completed",
}
_UNCORRECTED, _SINCE_THE_START = 1, 0  # nvmlMemoryErrorType_t, nvmlEccCounterType_t
_MODULE = re.compile(r"Kernel Module.*?\s(\d+(?:\.\d+){1,3})\s")


def read_nvidia(system: System) -> Nvidia:
    """The driver and its GPUs; empty where there is none."""
    module = _MODULE.search(read_text(system.root / "proc/driver/nvidia/version") or "")
    kernel = None if module is None else module[1]
    if system.platform == "darwin":
        return Nvidia()
    try:
        nvml = Nvml.open()
    except NvmlFailure as failure:
        if failure.nvml_code == LIBRARY_NOT_FOUND:
            return Nvidia(kernel_version=kernel)
        return Nvidia(kernel_version=kernel, code=failure.nvml_code, reason=failure.explained)
    with nvml:
        version = printable(nvml.text("nvmlSystemGetDriverVersion"), 40)
        try:
            gpus = tuple(_gpu(nvml, each) for each in nvidia_health.gpus(nvml))
        except NvmlFailure as failure:
            return Nvidia(version=version, kernel_version=kernel, code=failure.nvml_code, reason=failure.explained)
        return Nvidia(version=version, kernel_version=kernel, gpus=gpus)


def _gpu(nvml: Nvml, gpu: nvidia_health.Gpu) -> Gpu:
    ailment = nvidia_health.ailment_of(nvml, gpu)
    if gpu.handle is None or (ailment is not None and ailment.lost):
        return Gpu(index=gpu.number, name=gpu.name, ailment=ailment and ailment.words, lost=ailment is not None)
    try:
        return _told(nvml, gpu, None if ailment is None else ailment.words)
    except NvmlFailure as failure:
        if failure.is_of_driver:
            raise
        return Gpu(index=gpu.number, name=gpu.name, ailment=f"the driver answers {failure.explained!r}", lost=True)


def _told(nvml: Nvml, gpu: nvidia_health.Gpu, ailment: str | None) -> Gpu:
    handle = gpu.handle
    reasons = nvml.number("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # a driver before 535 has it by its older name
        reasons = nvml.number("nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
    persistence = nvml.number("nvmlDeviceGetPersistenceMode", handle)
    states = [
        nvml.number("nvmlDeviceGetNvLinkState", handle, link)
        for link in range(nvml.constant("NVML_NVLINK_MAX_LINKS", 18))
    ]
    rows = nvml.ask("nvmlDeviceGetRemappedRows", handle)
    remapped = rows if isinstance(rows, tuple) and len(rows) == 4 else None
    return Gpu(
        index=gpu.number,
        name=gpu.name,
        ailment=ailment,
        persistence=None if persistence is None else persistence == 1,
        slowdowns=tuple(words for bit, words in _SLOWDOWNS.items() if reasons & bit),
        compute_mode=nvml.number("nvmlDeviceGetComputeMode", handle),
        # What the GPU can, and what it can in its slot: idle it is slower than either.
        generation=nvml.number("nvmlDeviceGetGpuMaxPcieLinkGeneration", handle),
        slot_generation=nvml.number("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        width=nvml.number("nvmlDeviceGetCurrPcieLinkWidth", handle),
        full_width=nvml.number("nvmlDeviceGetMaxPcieLinkWidth", handle),
        links_up=states.count(1),
        links_down=states.count(0),
        fabric=_fabric(nvml, handle),
        ecc_uncorrected=nvml.number("nvmlDeviceGetTotalEccErrors", handle, _UNCORRECTED, _SINCE_THE_START),
        remap_pending=None if remapped is None else bool(remapped[2]),
        remap_failed=None if remapped is None else bool(remapped[3]),
    )


def _fabric(nvml: Nvml, handle: object) -> Literal["not started", "in progress", "completed", "failed"] | None:
    found = nvml.fabric(handle)
    if found is None:
        return None
    state, status = found
    named = _FABRIC.get(state)
    return "failed" if named == "completed" and status != 0 else named
