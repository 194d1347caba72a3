"""Whether NVIDIA GPUs that were there still are: what the daemon asks of each now and then, cheaply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from selector.probe.nvidia import DEVICES_LIMIT, UNNAMED, slices_of, uuid_of
from selector.probe.nvml import Nvml, NvmlFailure
from selector.probe.text import printable


class Gpu(NamedTuple):
    """A physical GPU under watch. ``number`` is NVML's index; ``handle`` is ``None`` when it was lost before."""

    number: int
    handle: object | None
    uuid: str | None = None
    name: str = UNNAMED
    slices: tuple[str, ...] = ()


class Ailment(NamedTuple):
    """What is wrong with a device that was asked."""

    words: str
    lost: bool


def gpus(nvml: Nvml) -> Iterator[Gpu]:
    """Every physical GPU; one that does not answer too.

    Raises:
        NvmlFailure: the driver cannot be asked.
    """
    for number in range(min(nvml.require("nvmlDeviceGetCount"), DEVICES_LIMIT)):
        handle: object | None = None
        try:
            handle = nvml.require("nvmlDeviceGetHandleByIndex", number)
            parts = (uuid_of(nvml, part) for part in slices_of(nvml, handle))
            yield Gpu(
                number=number,
                handle=handle,
                uuid=uuid_of(nvml, handle),
                name=printable(nvml.text("nvmlDeviceGetName", handle)) or UNNAMED,
                slices=tuple(part for part in parts if part is not None),
            )
        except NvmlFailure as failure:
            if failure.is_of_driver:
                raise
            yield Gpu(number=number, handle=handle)


def ailment_of(nvml: Nvml, gpu: Gpu) -> Ailment | None:
    """What is wrong with a device, by two cheap questions; ``None``: nothing that it tells.

    Raises:
        NvmlFailure: the driver cannot be asked any more.
    """
    try:
        handle = nvml.require("nvmlDeviceGetHandleByIndex", gpu.number) if gpu.handle is None else gpu.handle
        nvml.ask("nvmlDeviceGetMemoryInfo", handle, strict=True)
        action = nvml.recovery_action(handle)
    except NvmlFailure as failure:
        if failure.is_of_driver:
            raise
        return Ailment(f"the driver answers {failure.explained!r}", failure.is_gone)
    return None if action is None else Ailment(f"the driver asks for {action.words}", action.lost)
