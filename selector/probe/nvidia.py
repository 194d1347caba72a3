"""NVIDIA GPUs, asked of their driver through NVML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from selector.hardware import Accelerator, Driver, Finding, Host, MemoryKind
from selector.probe import nvml as codes
from selector.probe.nvidia_memory import memory, processes
from selector.probe.nvml import Nvml, NvmlFailure
from selector.probe.system import Probed, System
from selector.probe.text import printable, read_number, read_text
from selector.probe.topology import Endpoint, links
from selector.probe.visible import VARIABLE, order_is_ambiguous, visible

UNNAMED = "NVIDIA GPU"
#: nvmlDeviceArchitecture_t of nvml.h.
_ARCHITECTURES = {
    2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper",
    10: "Blackwell", 13: "Rubin",
}  # fmt: skip
#: Compute capabilities whose only chips share the host's memory (CUDA's "integrated"): Xavier, Orin, Thor, GB10.
#: NVML says "not supported" to a question about the memory of such a GPU.
_INTEGRATED = frozenset({(7, 2), (8, 7), (11, 0), (12, 1)})
DEVICES_LIMIT = 1024
_SLICES_LIMIT = 64
_VERSION = re.compile(r"\d[0-9A-Za-z.-]{0,39}")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]{1,64}(/\d{1,3}){0,2}")


class _Gpu(NamedTuple):
    """A physical GPU that answers. ``devices`` is itself, or its slices in MIG mode."""

    endpoint: Endpoint
    devices: tuple[Accelerator, ...]


def probe_nvidia(system: System, host: Host) -> Probed:
    """The NVIDIA GPUs that CUDA would show this process, with the links between them.

    ``index`` is NVML's, the order of the PCI bus, whatever CUDA_VISIBLE_DEVICES renumbers; slices of a GPU in MIG
    mode stand in its place, numbered after the physical GPUs. ``host`` lends its memory to integrated GPUs.

    A GPU that is lost has a finding of its own with the outcome ``failed``, beside the one for the rest.
    """
    if system.platform == "darwin":
        return _nothing("absent", "macOS has no NVIDIA driver")
    try:
        nvml = Nvml.open()
    except NvmlFailure as failure:
        return _not_open(failure, system)
    with nvml:
        try:
            count = nvml.require("nvmlDeviceGetCount")
        except NvmlFailure as failure:
            return _nothing("failed", f"the driver does not count its GPUs: {failure.message}")
        gpus, trouble = _gpus(nvml, min(count, DEVICES_LIMIT), system, host)
        ways = links(nvml, [gpu.endpoint for gpu in gpus if _is_whole(gpu)])
        drivers = (_driver(nvml),)
    shown = visible(system.environment.get(VARIABLE), {gpu.endpoint.number: gpu.devices for gpu in gpus if gpu.devices})
    indices = {device.index for device in shown}
    return Probed(
        accelerators=shown,
        links=tuple(link for link in ways if link.from_ in indices and link.to in indices),
        drivers=drivers,
        findings=(_finding(system, gpus, shown, trouble), *trouble),
    )


def _nothing(outcome: str, reason: str) -> Probed:
    finding = Finding(probe="nvidia", outcome="absent" if outcome == "absent" else "failed", reason=reason)
    return Probed(findings=(finding,))


def _not_open(failure: NvmlFailure, system: System) -> Probed:
    """No GPU and no driver is an answer; a GPU whose driver cannot be asked is a failure."""
    if failure.nvml_code != codes.LIBRARY_NOT_FOUND:
        return _nothing("failed", failure.explained)
    node = next((system.root / "dev").glob("nvidia[0-9]*"), None)
    if node is not None:
        return _nothing(
            "failed",
            f"/dev/{node.name} is here, but {codes.LIBRARY_NAME} was not found (in a container, ask for the driver's "
            "utility capability: NVIDIA_DRIVER_CAPABILITIES=compute,utility)",
        )
    if _on_the_bus(system):
        return _nothing("failed", f"the PCI bus has an NVIDIA GPU, but no driver is installed ({codes.LIBRARY_NAME})")
    return _nothing("absent", "no NVIDIA driver, and no NVIDIA GPU on the PCI bus")


def _on_the_bus(system: System) -> bool:
    for vendor in (system.root / "sys/bus/pci/devices").glob("*/vendor"):
        # 0x03 is PCI's class of display controllers; NVIDIA's network cards are no GPUs.
        is_nvidia = (read_text(vendor) or "").strip() == "0x10de"
        if is_nvidia and (read_text(vendor.with_name("class")) or "").startswith("0x03"):
            return True
    return False


def _finding(system: System, gpus: list[_Gpu], shown: tuple[Accelerator, ...], trouble: tuple[Finding, ...]) -> Finding:
    by_index = {gpu.endpoint.number: gpu.devices for gpu in gpus if gpu.devices}
    mask = printable(system.environment.get(VARIABLE), 80) or ""
    if shown:
        reason = None
        if order_is_ambiguous(system.environment, by_index):
            reason = (
                f"{VARIABLE}={mask} is read in the order of the PCI bus; these GPUs differ, and CUDA counts the "
                "fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set"
            )
        return Finding(probe="nvidia", outcome="found", reason=reason)
    if by_index:
        return Finding(probe="nvidia", outcome="absent", reason=f'{VARIABLE}="{mask}" hides every GPU')
    if trouble:
        return Finding(probe="nvidia", outcome="failed", reason="no GPU of this machine can be used")
    return Finding(probe="nvidia", outcome="absent", reason="the driver is loaded and counts no GPU")


def _driver(nvml: Nvml) -> Driver:
    version = nvml.text("nvmlSystemGetDriverVersion")
    # The _v2 call asks the driver; the older one may answer for the library that was linked.
    cuda = nvml.number("nvmlSystemGetCudaDriverVersion_v2") or nvml.number("nvmlSystemGetCudaDriverVersion")
    return Driver(
        vendor="nvidia",
        version=version if version is not None and _VERSION.fullmatch(version) else None,
        runtime=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda and 1000 <= cuda < 1_000_000 else None,
    )


# --- devices ----------------------------------------------------------------------------------------


def _is_whole(gpu: _Gpu) -> bool:
    return any(device.mig_parent_uuid is None for device in gpu.devices)


def _gpus(nvml: Nvml, count: int, system: System, host: Host) -> tuple[list[_Gpu], tuple[Finding, ...]]:
    """The GPUs that answer, and a finding for each that does not."""
    gpus: list[_Gpu] = []
    trouble: list[str] = []
    next_slice = count
    for index in range(count):
        try:
            gpu = _gpu(nvml, index, next_slice, system, host)
        except NvmlFailure as failure:
            trouble.append(f"GPU {index} is left out: {failure.message}")
            continue
        if not gpu.devices:
            trouble.append(f"GPU {index} is left out: it is in MIG mode and has no slice")
        elif not _is_whole(gpu):
            next_slice += len(gpu.devices)
        gpus.append(gpu)
    return gpus, tuple(Finding(probe="nvidia", outcome="failed", reason=reason) for reason in trouble)


def _gpu(nvml: Nvml, index: int, next_slice: int, system: System, host: Host) -> _Gpu:
    handle = nvml.require("nvmlDeviceGetHandleByIndex", index)
    bus_id = nvml.bus_id("nvmlDeviceGetPciInfo", handle)
    whole = _accelerator(nvml, handle, index, system, host)
    mode = nvml.ask("nvmlDeviceGetMigMode", handle)
    in_mig_mode = isinstance(mode, list) and bool(mode) and mode[0] == 1
    if not in_mig_mode:
        return _Gpu(Endpoint(index, handle, bus_id), (whole,))
    slices = tuple(
        _accelerator(nvml, part, next_slice + place, system, host, parent=whole)
        for place, part in enumerate(slices_of(nvml, handle))
    )
    return _Gpu(Endpoint(index, handle, bus_id), slices)


def slices_of(nvml: Nvml, handle: object) -> Iterator[object]:
    """The handles of a GPU's MIG slices."""
    for place in range(min(nvml.number("nvmlDeviceGetMaxMigDeviceCount", handle) or 0, _SLICES_LIMIT)):
        part = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
        if part is not None:  # places without an instance answer "not found"
            yield part


def _accelerator(
    nvml: Nvml, handle: object, index: int, system: System, host: Host, parent: Accelerator | None = None
) -> Accelerator:
    """One device. A slice takes what belongs to the chip from its parent."""
    if parent is None:
        bus_id = printable(nvml.bus_id("nvmlDeviceGetPciInfo", handle), 40)
        capability = _capability(nvml, handle)
        architecture = _ARCHITECTURES.get(nvml.number("nvmlDeviceGetArchitecture", handle) or 0)
        numa_node = _numa_node(system, bus_id)
    else:
        bus_id, capability = parent.pci_bus_id, parent.compute_capability
        architecture, numa_node = parent.architecture, parent.numa_node
    kind, total, free = _memory(nvml, handle, capability if parent is None else None, host)
    return Accelerator(
        index=index,
        uuid=uuid_of(nvml, handle),
        vendor="nvidia",
        name=printable(nvml.text("nvmlDeviceGetName", handle)) or (UNNAMED if parent is None else parent.name),
        memory_kind=kind,
        memory_total_bytes=total,
        memory_free_bytes=free,
        compute_capability=capability,
        architecture=architecture,
        pci_bus_id=bus_id,
        numa_node=numa_node,
        mig_parent_uuid=None if parent is None else parent.uuid or f"index {parent.index}",
        processes=processes(nvml, handle, system.process_name),
    )


def uuid_of(nvml: Nvml, handle: object) -> str | None:
    """A device's UUID, if it is one."""
    # It ends up in an engine's CUDA_VISIBLE_DEVICES, so it must be one entry of that list.
    uuid = nvml.text("nvmlDeviceGetUUID", handle)
    return uuid if uuid is not None and _UUID.fullmatch(uuid) else None


def _capability(nvml: Nvml, handle: object) -> tuple[int, int] | None:
    answer = nvml.ask("nvmlDeviceGetCudaComputeCapability", handle)
    if not isinstance(answer, tuple) or len(answer) != 2:
        return None
    major, minor = answer
    return (major, minor) if 1 <= major <= 99 and 0 <= minor <= 99 else None


def _numa_node(system: System, bus_id: str | None) -> int | None:
    """The node of the host's memory beside the GPU's slot; the kernel writes -1 where there is but one.

    (nvmlDeviceGetNumaNodeId is another thing: the node that the GPU's own memory is, on Grace.)
    """
    if bus_id is None or "/" in bus_id:
        return None
    node = read_number(system.root / "sys/bus/pci/devices" / bus_id / "numa_node")
    return node if node is not None and node >= 0 else None


def _memory(
    nvml: Nvml, handle: object, capability: tuple[int, int] | None, host: Host
) -> tuple[MemoryKind, int | None, int | None]:
    """Kind, total and free bytes, where they can be believed.

    Raises:
        NvmlFailure: the device cannot be asked about its memory, so nothing can be planned on it.
    """
    figures = memory(nvml, handle)
    if figures is not None:
        return "dedicated", *figures
    if capability in _INTEGRATED:
        return "unified", host.memory_total_bytes, host.memory_available_bytes
    return "dedicated", None, None
