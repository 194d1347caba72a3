"""The devices, for Prometheus: what the driver tells, and what of their memory our engines hold.

A scrape never asks a driver, which may hang: it takes what the last look found, and has a thread look again. What is
not told, or was looked at too long ago, is absent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from autolaunch.daemon import machine
from autolaunch.daemon.devices import DeviceTrouble
from selector.probe.nvidia_readings import DeviceReading, device_readings
from selector.probe.nvml import Nvml, NvmlFailure
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.daemon.supervisor import Supervisor

#: A look is good for so long; one that is older than the second is not told any more.
FRESH_SECONDS, STALE_SECONDS = 5.0, 60.0
#: Devices whose troubles are counted: more than any machine has.
DEVICES: Final = 1024
_DEVICE: Final = ("device", "uuid")


class Engine(Value, frozen=True, kw_only=True):
    """An engine's processes: ``ids`` in this process' own namespace, ``resident_bytes`` of main memory."""

    model: str
    replica: int
    ids: frozenset[int]
    resident_bytes: int | None = None


class Look(Value, frozen=True, kw_only=True):
    """What was found at ``at`` (seconds of a monotonic clock)."""

    at: float
    devices: tuple[DeviceReading, ...] = ()
    engines: tuple[Engine, ...] = ()


def engines_of(supervisors: Iterable[Supervisor]) -> tuple[Engine, ...]:
    """The processes of those that have an engine; walks the process table, so not on the loop."""
    found = []
    for one in supervisors:
        server, deployment = one.run.server, one.state.deployment
        if server is None or one.state.phase not in machine.BUSY:
            continue
        found.append(
            Engine(
                model=deployment.name,
                replica=deployment.replica or 1,
                ids=server.process.process_ids(),
                resident_bytes=server.process.resident_bytes() or None,
            )
        )
    return tuple(found)


def nvidia_devices() -> tuple[DeviceReading, ...]:
    """What NVIDIA's driver tells; nothing where there is none, or where it cannot be asked."""
    try:
        with Nvml.open() as nvml:
            return device_readings(nvml)
    except NvmlFailure:
        return ()


class DeviceMetrics(Collector):
    """Devices and engines' memory. ``trouble`` and ``collect`` may be called from any thread.

    Args:
        engines: called in a thread: the engines that run.
        look: called in a thread, one at a time: the devices.
        known: what has been found before.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        engines: Callable[[], Iterable[Engine]] = tuple,
        *,
        look: Callable[[], tuple[DeviceReading, ...]] = nvidia_devices,
        known: Look | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = engines
        self._read = look
        self._clock = clock
        self._look = known
        self._looking = threading.Lock()
        self._troubles: dict[tuple[str, str, str], int] = {}
        self._counting = threading.Lock()
        registry.register(self)

    def trouble(self, trouble: DeviceTrouble) -> None:
        """Counts a trouble that the watch of the devices has told."""
        device = "driver" if trouble.index is None else str(trouble.index)
        kind = "lost" if trouble.lost else "other" if trouble.xid is None else "xid"
        place = (device, trouble.uuid or "", kind)
        with self._counting:
            if place in self._troubles or len(self._troubles) < DEVICES:
                self._troubles[place] = self._troubles.get(place, 0) + 1

    def look(self) -> None:
        """Has a thread look, unless what is known is fresh or one is at it. Returns at once."""
        known = self._look
        if known is not None and self._clock() - known.at < FRESH_SECONDS:
            return
        if self._looking.acquire(blocking=False):  # given back by the thread
            try:
                threading.Thread(target=self._look_now, name="device-metrics", daemon=True).start()
            except RuntimeError:  # no thread to be had: the next scrape tries again
                self._looking.release()

    def _look_now(self) -> None:
        try:
            at = self._clock()
            self._look = Look(at=at, devices=self._read(), engines=tuple(self._engines()))
        finally:
            self._looking.release()

    def collect(self) -> Iterator[Metric]:
        """The metrics, of the last look; has the next one begun."""
        self.look()
        look = self._look
        if look is None or self._clock() - look.at >= STALE_SECONDS:
            look = Look(at=0.0)
        yield from _of_devices(look.devices)
        yield from _held(look)
        troubles = CounterMetricFamily(
            "autolaunch_device_troubles",
            "Errors of devices (Xid), losses and failures of the driver that were told.",
            labels=(*_DEVICE, "kind"),
        )
        for place, count in sorted(self._troubles.copy().items()):
            troubles.add_metric(place, count)
        yield troubles


def _of_devices(devices: tuple[DeviceReading, ...]) -> Iterator[Metric]:
    info = GaugeMetricFamily("autolaunch_device_info", "A device; its name is the driver's.", labels=(*_DEVICE, "name"))
    lost = GaugeMetricFamily(
        "autolaunch_device_lost", "1 where a device cannot be used until it is reset.", labels=_DEVICE
    )
    for each in devices:
        info.add_metric((each.device, each.uuid or "", each.name), 1)
        lost.add_metric((each.device, each.uuid or ""), each.lost)
    yield info
    yield lost
    for name, meaning, part in _READINGS:
        family = GaugeMetricFamily(f"autolaunch_device_{name}", meaning, labels=_DEVICE)
        for each in devices:
            figure = part(each)
            if figure is not None:
                family.add_metric((each.device, each.uuid or ""), figure)
        yield family


def _held(look: Look) -> Iterator[Metric]:
    """A container's driver may know processes by other ids: then nothing is ours to be told, and nothing is."""
    held = GaugeMetricFamily(
        "autolaunch_device_memory_engine_bytes",
        "Memory of a device that a replica's processes hold.",
        labels=(*_DEVICE, "model", "replica"),
    )
    resident = GaugeMetricFamily(
        "autolaunch_engine_resident_memory_bytes",
        "Main memory that a replica's processes hold.",
        labels=("model", "replica"),
    )
    for engine in look.engines:
        place = (engine.model, str(engine.replica))
        if engine.resident_bytes is not None:
            resident.add_metric(place, engine.resident_bytes)
        for device in look.devices:
            used = [each.used_bytes for each in device.processes if each.pid in engine.ids]
            told = [each for each in used if each is not None]
            if told:
                held.add_metric((device.device, device.uuid or "", *place), sum(told))
    yield held
    yield resident


_READINGS: Final[tuple[tuple[str, str, Callable[[DeviceReading], float | None]], ...]] = (
    ("memory_total_bytes", "Memory of a device.", lambda each: each.memory_total_bytes),
    ("memory_free_bytes", "Memory of a device that nobody holds.", lambda each: each.memory_free_bytes),
    ("temperature_celsius", "Temperature of a device's chip.", lambda each: each.temperature_celsius),
    ("power_watts", "Power that a device takes.", lambda each: each.power_watts),
    (
        "utilization_ratio",
        "Share of time, 0 to 1, in which a device worked at something.",
        lambda each: each.utilization_ratio,
    ),
)
