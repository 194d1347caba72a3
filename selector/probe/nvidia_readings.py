"""What NVIDIA GPUs tell of themselves at this moment: memory, temperature, power, how busy they are."""

from __future__ import annotations

from collections.abc import Iterator

from selector.hardware import DeviceProcess
from selector.probe.nvidia import UNNAMED, slices_of, uuid_of
from selector.probe.nvidia_health import Gpu, ailment_of, gpus
from selector.probe.nvidia_memory import memory, processes
from selector.probe.nvml import Nvml, NvmlFailure
from selector.probe.text import printable
from selector.values import Value

#: NVML_TEMPERATURE_GPU: the sensor on the die.
_DIE = 0
#: No chip is hotter, and none of one card takes more: a driver that says so tells nothing.
_HOTTEST_CELSIUS, _MOST_WATTS = 200, 10_000.0


class DeviceReading(Value, frozen=True, kw_only=True):
    """One device at one moment; ``None`` is what the driver does not tell.

    ``device`` is NVML's index, and ``1:0`` the first MIG slice of GPU 1: a GPU's memory is told of its slices, where it
    has any, and what belongs to the chip (``temperature_celsius``, ``power_watts``, ``utilization_ratio``: the share of
    time in which it worked, 0 to 1) of the GPU. ``lost``: it cannot be used until it is reset.
    """

    device: str
    uuid: str | None = None
    name: str
    lost: bool = False
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    processes: tuple[DeviceProcess, ...] = ()
    temperature_celsius: int | None = None
    power_watts: float | None = None
    utilization_ratio: float | None = None


def device_readings(nvml: Nvml) -> tuple[DeviceReading, ...]:
    """Every GPU and MIG slice; of one that is lost only that.

    Raises:
        NvmlFailure: the driver cannot be asked any more.
    """
    return tuple(reading for gpu in gpus(nvml) for reading in _of_gpu(nvml, gpu))


def _of_gpu(nvml: Nvml, gpu: Gpu) -> tuple[DeviceReading, ...]:
    ailment = ailment_of(nvml, gpu)
    lost = DeviceReading(
        device=str(gpu.number), uuid=gpu.uuid, name=gpu.name, lost=ailment is not None and ailment.lost
    )
    if lost.lost or gpu.handle is None:
        return (lost,)
    try:
        return tuple(_read(nvml, gpu, gpu.handle))
    except NvmlFailure as failure:  # it went while it was asked
        if failure.is_of_driver:
            raise
        return (lost,)


def _read(nvml: Nvml, gpu: Gpu, handle: object) -> Iterator[DeviceReading]:
    slices = tuple(slices_of(nvml, handle))
    total, free = (None, None) if slices else memory(nvml, handle) or (None, None)
    celsius = nvml.number("nvmlDeviceGetTemperature", handle, _DIE)
    milliwatts = nvml.number("nvmlDeviceGetPowerUsage", handle)
    busy = nvml.ask("nvmlDeviceGetUtilizationRates", handle)
    percent = getattr(busy, "gpu", None)
    yield DeviceReading(
        device=str(gpu.number),
        uuid=gpu.uuid,
        name=gpu.name,
        memory_total_bytes=total,
        memory_free_bytes=free,
        processes=() if slices else processes(nvml, handle),
        temperature_celsius=celsius if celsius is not None and 0 < celsius < _HOTTEST_CELSIUS else None,
        power_watts=milliwatts / 1000 if milliwatts is not None and 0 < milliwatts < _MOST_WATTS * 1000 else None,
        utilization_ratio=percent / 100 if isinstance(percent, int) and 0 <= percent <= 100 else None,
    )
    for place, part in enumerate(slices):
        total, free = memory(nvml, part) or (None, None)
        yield DeviceReading(
            device=f"{gpu.number}:{place}",
            uuid=uuid_of(nvml, part),
            name=printable(nvml.text("nvmlDeviceGetName", part)) or UNNAMED,
            memory_total_bytes=total,
            memory_free_bytes=free,
            processes=processes(nvml, part),
        )
