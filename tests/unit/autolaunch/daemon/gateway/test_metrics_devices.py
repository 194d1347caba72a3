"""What is told of devices. The driver is FAKE, or hangs."""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace

import pytest
from prometheus_client.registry import CollectorRegistry

from autolaunch.daemon.devices import DeviceTrouble
from autolaunch.daemon.gateway.metrics import DeviceMetrics
from autolaunch.daemon.gateway.metrics_devices import FRESH_SECONDS, STALE_SECONDS, Engine
from selector.hardware import DeviceProcess
from selector.probe.nvidia_readings import DeviceReading, device_readings
from selector.probe.nvml import Nvml, NvmlFailure
from tests.fakes.nvml.stub import DRIVER_NOT_LOADED, GPU_IS_LOST, NOT_SUPPORTED

GIB = 1 << 30
H100 = {"device": "0", "uuid": "GPU-0"}
FULL = DeviceReading(
    device="0",
    uuid="GPU-0",
    name="NVIDIA H100 80GB HBM3",
    memory_total_bytes=80 * GIB,
    memory_free_bytes=10 * GIB,
    processes=(
        DeviceProcess(pid=10, used_bytes=30 * GIB),
        DeviceProcess(pid=11, used_bytes=20 * GIB),
        DeviceProcess(pid=99, used_bytes=15 * GIB),
    ),
    temperature_celsius=45,
    power_watts=350.5,
    utilization_ratio=0.5,
)


class Scene:
    """Devices that are looked at in a thread, which is waited for after each scrape."""

    def __init__(self, *engines: Engine) -> None:
        self.now = 1000.0
        self.devices: tuple[DeviceReading, ...] = (FULL,)
        self.looks = 0
        self.answers = threading.Event()
        self.answers.set()
        self.registry = CollectorRegistry()
        self.metrics = DeviceMetrics(self.registry, lambda: engines, look=self.look, clock=lambda: self.now)

    def look(self) -> tuple[DeviceReading, ...]:
        self.looks += 1
        self.answers.wait(30)
        return self.devices

    def scrape(self) -> None:
        self.metrics.look()
        for thread in threading.enumerate():
            if thread.name == "device-metrics":
                thread.join(10)

    def value(self, metric: str, **labels: str) -> float | None:
        self.scrape()
        return self.registry.get_sample_value(f"autolaunch_{metric}", {**H100, **labels})


def test_a_device_is_told_as_the_driver_tells_it() -> None:
    scene = Scene()
    assert scene.value("device_info", name="NVIDIA H100 80GB HBM3") == 1
    assert scene.value("device_lost") == 0
    assert scene.value("device_memory_total_bytes") == 80 * GIB
    assert scene.value("device_memory_free_bytes") == 10 * GIB
    assert scene.value("device_temperature_celsius") == 45
    assert scene.value("device_power_watts") == 350.5
    assert scene.value("device_utilization_ratio") == 0.5


def test_what_a_driver_does_not_tell_is_absent_and_not_zero() -> None:
    scene = Scene()
    scene.devices = (DeviceReading(device="0", uuid="GPU-0", name="GPU"),)
    for name in ("memory_total_bytes", "memory_free_bytes", "temperature_celsius", "power_watts", "utilization_ratio"):
        assert scene.value(f"device_{name}") is None


def test_what_our_engines_hold_is_told_by_replica_and_what_others_hold_is_not() -> None:
    scene = Scene(
        Engine(model="a", replica=1, ids=frozenset({10, 11}), resident_bytes=3 * GIB),
        Engine(model="a", replica=2, ids=frozenset({12})),  # a container's driver knows it by another id
    )
    assert scene.value("device_memory_engine_bytes", model="a", replica="1") == 50 * GIB
    assert scene.value("device_memory_engine_bytes", model="a", replica="2") is None
    resident = "autolaunch_engine_resident_memory_bytes"
    assert scene.registry.get_sample_value(resident, {"model": "a", "replica": "1"}) == 3 * GIB
    assert scene.registry.get_sample_value(resident, {"model": "a", "replica": "2"}) is None


def test_a_scrape_that_comes_soon_asks_no_driver() -> None:
    scene = Scene()
    for _ in range(5):
        scene.scrape()
    assert scene.looks == 1
    scene.now += FRESH_SECONDS
    scene.scrape()
    assert scene.looks == 2


def test_a_driver_that_hangs_holds_no_scrape_and_is_asked_by_one_thread_alone() -> None:
    scene = Scene()
    scene.scrape()
    scene.answers.clear()
    before = threading.active_count()
    for _ in range(10):
        scene.now += FRESH_SECONDS
        list(scene.metrics.collect())
    assert threading.active_count() <= before + 1
    assert scene.looks <= 2
    scene.answers.set()
    scene.scrape()


def test_what_was_looked_at_long_ago_is_not_told() -> None:
    scene = Scene()
    scene.scrape()
    scene.answers.clear()  # the driver hangs from here on
    scene.now += STALE_SECONDS
    families = {each.name: each for each in scene.metrics.collect()}
    scene.answers.set()
    assert families["autolaunch_device_memory_free_bytes"].samples == []


def test_troubles_are_counted_by_device_and_kind() -> None:
    scene = Scene()
    xid = DeviceTrouble(uuid="GPU-0", index=0, name="GPU", xid=79, lost=True, message="fell off the bus")
    scene.metrics.trouble(xid)
    scene.metrics.trouble(DeviceTrouble(uuid="GPU-0", index=0, name="GPU", xid=13, lost=False, message="exception"))
    scene.metrics.trouble(DeviceTrouble(name="NVIDIA driver", lost=False, message="cannot be asked"))
    assert scene.value("device_troubles_total", kind="lost") == 1
    assert scene.value("device_troubles_total", kind="xid") == 1
    assert scene.value("device_troubles_total", device="driver", uuid="", kind="other") == 1


def test_troubles_are_counted_of_so_many_devices_and_no_more() -> None:
    scene = Scene()
    for number in range(3000):
        scene.metrics.trouble(DeviceTrouble(uuid=f"GPU-{number}", index=number, name="GPU", lost=True, message="gone"))
    family = next(each for each in scene.metrics.collect() if each.name == "autolaunch_device_troubles")
    assert len(family.samples) == 1024


# --- the driver -------------------------------------------------------------------------------------------


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


def driver(**calls: object) -> Nvml:
    """A FAKE driver of one GPU; a call that is an error fails with it, anything else is its answer."""
    answers: dict[str, object] = {
        "DeviceGetCount": 1,
        "DeviceGetHandleByIndex": "handle",
        "DeviceGetUUID": "GPU-8f3ba64a-0b1c-4b4f-a8b3-3d1c2c1b9b1a",
        "DeviceGetName": "NVIDIA H100 80GB HBM3",
        "DeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, free=10 * GIB, used=70 * GIB),
        "DeviceGetTemperature": 45,
        "DeviceGetPowerUsage": 350_500,
        "DeviceGetUtilizationRates": SimpleNamespace(gpu=50, memory=10),
        **calls,
    }
    library = ModuleType("pynvml")
    library.NVMLError = NvmlError  # type: ignore[attr-defined]  # pynvml's shape
    for name, answer in answers.items():

        def call(*_: object, answer: object = answer) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        setattr(library, f"nvml{name}", call)
    return Nvml(library)


def test_watts_degrees_and_shares_are_read_in_base_units() -> None:
    (reading,) = device_readings(driver())
    assert (reading.device, reading.lost) == ("0", False)
    assert (reading.power_watts, reading.temperature_celsius, reading.utilization_ratio) == (350.5, 45, 0.5)
    assert (reading.memory_total_bytes, reading.memory_free_bytes) == (80 * GIB, 10 * GIB)


def test_what_is_not_supported_is_not_known() -> None:
    no = NvmlError(NOT_SUPPORTED)
    (reading,) = device_readings(
        driver(DeviceGetTemperature=no, DeviceGetPowerUsage=no, DeviceGetUtilizationRates=no, DeviceGetMemoryInfo=no)
    )
    assert (reading.temperature_celsius, reading.power_watts, reading.utilization_ratio) == (None, None, None)
    assert (reading.memory_total_bytes, reading.memory_free_bytes) == (None, None)


@pytest.mark.parametrize(("celsius", "milliwatts", "percent"), [(0, 0, -1), (1 << 31, 1 << 40, 101)])
def test_what_cannot_be_is_not_told(celsius: int, milliwatts: int, percent: int) -> None:
    (reading,) = device_readings(
        driver(
            DeviceGetTemperature=celsius,
            DeviceGetPowerUsage=milliwatts,
            DeviceGetUtilizationRates=SimpleNamespace(gpu=percent, memory=0),
        )
    )
    assert (reading.temperature_celsius, reading.power_watts, reading.utilization_ratio) == (None, None, None)


def test_a_lost_device_is_told_as_lost_and_nothing_else_of_it() -> None:
    (reading,) = device_readings(driver(DeviceGetMemoryInfo=NvmlError(GPU_IS_LOST)))
    assert reading.lost
    assert reading.temperature_celsius is None


def test_a_device_that_goes_while_it_is_asked_is_left_at_that() -> None:
    (reading,) = device_readings(driver(DeviceGetPowerUsage=NvmlError(GPU_IS_LOST)))
    assert (reading.device, reading.memory_total_bytes) == ("0", None)


def test_a_driver_that_goes_is_a_failure() -> None:
    with pytest.raises(NvmlFailure):
        device_readings(driver(DeviceGetCount=NvmlError(DRIVER_NOT_LOADED)))


def test_the_memory_of_a_gpu_with_slices_is_told_of_the_slices() -> None:
    chip, part = device_readings(driver(DeviceGetMaxMigDeviceCount=1, DeviceGetMigDeviceHandleByIndex="slice"))
    assert (chip.device, chip.memory_total_bytes, chip.power_watts) == ("0", None, 350.5)
    assert (part.device, part.memory_total_bytes, part.power_watts) == ("0:0", 80 * GIB, None)
