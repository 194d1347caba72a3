"""CUDA_VISIBLE_DEVICES, read as CUDA reads it.

The rules, from the CUDA programming guide's chapter on environment variables and the MIG user guide: entries are
indices, or UUIDs that may be shortened as long as they stay unique (``GPU-8932f937``, ``MIG-…``); the list ends at
the first entry that names nothing, so ``0,-1,1`` shows one device; empty or ``-1`` hides all; naming a device twice
hides all. An index of a GPU in MIG mode means its first slice.
"""

from __future__ import annotations

from collections.abc import Mapping

from selector.hardware import Accelerator

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible(value: str | None, devices: Mapping[int, tuple[Accelerator, ...]]) -> tuple[Accelerator, ...]:
    """The devices that ``value`` shows, in its order; all of them, by index, where it is not set.

    Args:
        value: the variable's, ``None`` where it is not set.
        devices: by physical index (NVML's, the order of the PCI bus): the GPU, or its MIG slices.
    """
    if value is None:
        every = (device for group in devices.values() for device in group)
        return tuple(sorted(every, key=lambda device: device.index))
    shown: list[Accelerator] = []
    for entry in (part.strip() for part in value.split(",")):
        device = _by_index(entry, devices) if entry.isascii() and entry.isdigit() else _by_uuid(entry, devices)
        if device is None:
            break
        if device in shown:
            return ()
        shown.append(device)
    return tuple(shown)


def order_is_ambiguous(environment: Mapping[str, str], devices: Mapping[int, tuple[Accelerator, ...]]) -> bool:
    """Whether an index may mean another GPU to CUDA than to the driver.

    Without ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` CUDA counts its fastest GPU first, by a rule nobody published;
    NVML counts along the PCI bus. On a machine of equal GPUs the two agree.
    """
    entries = environment.get(VARIABLE, "").split(",")
    by_index = any(entry.strip().isdigit() for entry in entries)
    kinds = {device.name for group in devices.values() for device in group if device.mig_parent_uuid is None}
    return by_index and len(kinds) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def _by_index(entry: str, devices: Mapping[int, tuple[Accelerator, ...]]) -> Accelerator | None:
    group = devices.get(int(entry)) if len(entry) <= 9 else None
    return group[0] if group else None


def _by_uuid(entry: str, devices: Mapping[int, tuple[Accelerator, ...]]) -> Accelerator | None:
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    matches: list[Accelerator] = []
    for group in devices.values():
        slices = [device for device in group if device.uuid is not None and device.uuid.startswith(entry)]
        matches.extend(slices)
        parent = group[0].mig_parent_uuid if group else None
        if not slices and parent is not None and parent.startswith(entry):
            matches.append(group[0])
    return matches[0] if len(matches) == 1 else None
