"""AMD GPUs: the kernel's own files, and amdsmi for names where it can be imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from selector.hardware import Accelerator, Driver, Finding
from selector.probe.system import Probed, System
from selector.probe.text import printable, read_number, read_text

UNNAMED = "AMD GPU"
_AMD = "0x1002"


def probe_amd(system: System) -> Probed:
    """The AMD GPUs that the amdgpu driver runs, along the PCI bus.

    Memory comes from /sys/class/drm, which needs no library; product names from amdsmi, which comes with ROCm.
    Links are not asked for, nor are ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES heeded, yet.
    """
    if system.platform != "linux":
        return _answer("absent", "AMD GPUs are looked for on Linux only")
    devices = tuple(
        _accelerator(card, index) for index, card in enumerate(sorted(_cards(system), key=lambda card: card.name))
    )
    if not devices:
        if _compute_nodes(system):
            return _answer("failed", "/sys/class/kfd shows a GPU, but /sys/class/drm does not tell its memory")
        return _answer("absent", "no AMD GPU")
    names, version, reason = _from_amdsmi()
    devices = tuple(
        msgspec.structs.replace(device, name=names.get(device.pci_bus_id or "", device.name)) for device in devices
    )
    return Probed(
        accelerators=devices,
        drivers=(Driver(vendor="amd", version=version),),
        findings=(Finding(probe="amd", outcome="found", reason=reason),),
    )


def _answer(outcome: str, reason: str) -> Probed:
    finding = Finding(probe="amd", outcome="absent" if outcome == "absent" else "failed", reason=reason)
    return Probed(findings=(finding,))


def _cards(system: System) -> Iterator[Path]:
    """The PCI directories of AMD's cards that have memory of their own."""
    for card in (system.root / "sys/class/drm").glob("card*"):
        if not re.fullmatch(r"card\d+", card.name):  # card0-DP-1 is a connector
            continue
        device = (card / "device").resolve()
        if (read_text(device / "vendor") or "").strip() == _AMD and read_number(device / "mem_info_vram_total"):
            yield device


def _compute_nodes(system: System) -> bool:
    """Whether the compute driver has a node with SIMD units; a processor is a node without."""
    for properties in (system.root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
        match = re.search(r"^simd_count (\d+)$", read_text(properties) or "", re.MULTILINE)
        if match is not None and int(match[1]) > 0:
            return True
    return False


def _accelerator(device: Path, index: int) -> Accelerator:
    total = read_number(device / "mem_info_vram_total")
    used = read_number(device / "mem_info_vram_used")
    node = read_number(device / "numa_node")
    believable = total is not None and used is not None and 0 <= used <= total
    return Accelerator(
        index=index,
        vendor="amd",
        name=printable(read_text(device / "product_name")) or UNNAMED,
        memory_total_bytes=total if total is not None and total > 0 else None,
        memory_free_bytes=total - used if believable and total is not None and used is not None else None,
        pci_bus_id=printable(device.name, 40),
        numa_node=node if node is not None and node >= 0 else None,
    )


def _from_amdsmi() -> tuple[dict[str, str], str | None, str | None]:
    """Product names by PCI address, the driver's version, and why they are missing."""
    try:
        import amdsmi
    except (ImportError, OSError, KeyError) as error:  # its import loads ROCm's library, wherever that is
        return {}, None, f"names come from the kernel: amdsmi cannot be imported ({type(error).__name__})"
    names: dict[str, str] = {}
    version: str | None = None
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException as error:
        return {}, None, f"names come from the kernel: amdsmi failed ({printable(str(error))})"
    try:
        for handle in amdsmi.amdsmi_get_processor_handles():
            address = str(amdsmi.amdsmi_get_gpu_device_bdf(handle)).lower()
            name = printable(_told(amdsmi.amdsmi_get_gpu_asic_info(handle), "market_name"))
            if name is not None:
                names[address] = name
            version = version or printable(_told(amdsmi.amdsmi_get_gpu_driver_info(handle), "driver_version"), 40)
    except amdsmi.AmdSmiException as error:
        return names, version, f"amdsmi failed ({printable(str(error))})"
    finally:
        amdsmi.amdsmi_shut_down()
    return names, version, None


def _told(answer: Any, key: str) -> str | None:
    """A text of one of amdsmi's dictionaries, which say "N/A" for what they do not know."""
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, str) and value not in ("", "N/A") else None
