"""What is told of a GPU in trouble, and how often."""

from __future__ import annotations

import pytest

from autolaunch.daemon.devices import FAULTS, QUIET_SECONDS, DeviceTrouble, DeviceWatch, Told, trouble
from autolaunch.daemon.devices import known_xids as known
from selector.probe import nvml
from selector.probe.nvidia_health import Ailment, Gpu

GPU = Gpu(number=3, handle=None, uuid="GPU-1", name="NVIDIA H100", slices=("MIG-1",))
RESET = Ailment("the driver asks for a reset of the GPU", True)


def test_a_fault_is_told_again_only_after_a_while() -> None:
    told = Told()
    assert told.is_news(0, "Xid 31", 0.0)
    assert not any(told.is_news(0, "Xid 31", second) for second in range(1, int(QUIET_SECONDS)))
    assert told.is_news(0, "Xid 31", QUIET_SECONDS)


def test_the_faults_of_one_device_hide_none_of_another() -> None:
    told = Told()
    assert told.is_news(0, "Xid 31", 0.0)
    assert told.is_news(1, "Xid 31", 0.0)
    assert told.is_news(0, "Xid 13", 0.0)


def test_a_device_with_a_thousand_different_faults_is_told_of_a_few_and_of_its_loss() -> None:
    told = Told()
    assert sum(told.is_news(0, f"Xid {number}", float(number)) for number in range(1000)) == FAULTS
    assert told.is_news(0, "lost", 1000.0)
    assert not told.is_news(0, "lost", 1001.0)


def test_what_was_forgotten_is_told_anew() -> None:
    told = Told()
    assert told.is_news(0, "lost", 0.0)
    told.forget(0)
    assert told.is_news(0, "lost", 1.0)


def test_an_error_that_loses_the_gpu_says_so_and_what_to_do() -> None:
    assert trouble(GPU, xid=79, known=known()[79], ailment=None) == DeviceTrouble(
        uuid="GPU-1",
        index=3,
        name="NVIDIA H100",
        xid=79,
        lost=True,
        message="GPU 3 (NVIDIA H100) is lost: Xid 79, the GPU has fallen off the bus",
        hint="it can be used again after a reboot, or after a reset while nothing has it open, autolaunch neither "
        "(nvidia-smi --gpu-reset); NVIDIA's words on it: "
        "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html",
        slices=("MIG-1",),
    )


@pytest.mark.parametrize("number", [31, 333])
def test_a_reset_that_the_driver_asks_for_loses_the_gpu_whatever_the_error_was(number: int) -> None:
    found = trouble(GPU, xid=number, known=known().get(number), ailment=RESET)
    assert (found.xid, found.lost) == (number, True)
    assert found.message.endswith("; the driver asks for a reset of the GPU")


def test_what_only_the_answers_tell_has_no_number() -> None:
    found = trouble(GPU, xid=None, known=None, ailment=Ailment("the driver answers 'Unknown Error'", False))
    assert (found.xid, found.lost, found.hint) == (None, False, None)
    assert found.message == "GPU 3 (NVIDIA H100): the driver answers 'Unknown Error'"


def test_without_the_drivers_library_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY_NAME", "libnvidia-ml-that-is-not-here.so")
    watch = DeviceWatch(lambda _: pytest.fail("told of a trouble"))
    before = watch.finding
    watch.start()
    assert not watch.is_running
    assert before is None
    assert watch.finding is not None
    assert watch.finding.outcome == "absent"
    watch.close()


def test_a_watch_that_was_never_started_can_be_closed() -> None:
    DeviceWatch(lambda _: None).close()
