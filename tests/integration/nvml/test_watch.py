"""The watch over the GPUs, with the real NVML client over the stub of NVIDIA's library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autolaunch.daemon.devices import FAULTS, PERIOD_SECONDS, WAIT_SECONDS
from tests.fakes.nvml import scenarios, stub
from tests.fakes.nvml.stub import DRIVER_NOT_LOADED, GPU_IS_LOST, MIB, NOT_SUPPORTED, UNKNOWN, Scenario, Xid

RESET_REQUIRED, UNINITIALIZED = 16, 1
EVER = 1_000_000


def two(**changes: object) -> Scenario:
    """Two H100, of which the second has something the matter with it."""
    return Scenario(gpus=(scenarios.h100(0), scenarios.h100(1, **changes)))


def assert_clean(watched: stub.Watched) -> None:
    assert watched.ended
    assert watched.close_seconds <= 3.0
    assert (watched.left_open, watched.sets_left, watched.output) == (0, 0, "")


# --- what the driver reports ------------------------------------------------------------------------


def test_a_gpu_that_fell_off_the_bus_is_told_once_as_lost(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, two(xids=(Xid(79, after=2),)), tmp_path, expected=1)
    (trouble,) = watched.troubles
    assert (trouble.xid, trouble.lost, trouble.index) == (79, True, 1)
    assert (trouble.uuid, trouble.name) == (scenarios.uuid(1).decode(), "NVIDIA H100 80GB HBM3")
    assert trouble.message == "GPU 1 (NVIDIA H100 80GB HBM3) is lost: Xid 79, the GPU has fallen off the bus"
    assert "nvidia-smi --gpu-reset" in (trouble.hint or "")
    assert watched.lives
    assert_clean(watched)


def test_a_fault_of_the_application_does_not_lose_the_gpu(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, two(xids=(Xid(31),)), tmp_path, expected=1)
    (trouble,) = watched.troubles
    assert (trouble.xid, trouble.lost) == (31, False)
    assert trouble.message == "GPU 1 (NVIDIA H100 80GB HBM3) reported Xid 31, a GPU memory page fault"
    assert_clean(watched)


def test_the_same_error_a_thousand_times_is_told_once(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, two(xids=(Xid(31, times=1000),)), tmp_path, expected=1, linger_seconds=3.5)
    assert [trouble.xid for trouble in watched.troubles] == [31]
    assert watched.cpu_share < 0.2
    assert_clean(watched)


def test_errors_without_end_hide_no_other_one_and_cost_little(library: Path, tmp_path: Path) -> None:
    flood = two(xids=(Xid(79, after=250), Xid(31, times=EVER)))
    watched = stub.watch(library, flood, tmp_path, expected=2, linger_seconds=1.0)
    assert [(trouble.xid, trouble.lost) for trouble in watched.troubles] == [(31, False), (79, True)]
    assert watched.cpu_share < 0.2
    assert_clean(watched)


def test_a_gpu_of_many_faults_is_told_of_a_few_and_of_its_loss(library: Path, tmp_path: Path) -> None:
    xids = (*(Xid(number) for number in range(200, 225)), Xid(79, after=30))
    watched = stub.watch(library, two(xids=xids), tmp_path, expected=FAULTS + 1)
    assert [trouble.lost for trouble in watched.troubles] == [False] * FAULTS + [True]


def test_an_error_that_nobody_described_is_told_with_its_number(library: Path, tmp_path: Path) -> None:
    (trouble,) = stub.watch(library, two(xids=(Xid(333),)), tmp_path, expected=1).troubles
    assert (trouble.xid, trouble.lost) == (333, False)
    assert trouble.message.endswith("reported Xid 333, which is not known here")


def test_what_the_driver_asks_for_after_an_error_decides_whether_the_gpu_is_lost(library: Path, tmp_path: Path) -> None:
    scenario = two(xids=(Xid(154, after=3),), recovery=(1, 2))
    watched = stub.watch(library, scenario, tmp_path, expected=1, period_seconds=60.0)
    (trouble,) = watched.troubles
    assert (trouble.xid, trouble.lost) == (154, True)
    assert trouble.message.endswith("to recover the GPU; the driver asks for a reset of the GPU")


def test_the_slices_of_a_gpu_share_its_fate(library: Path, tmp_path: Path) -> None:
    sliced = scenarios.sliced_h100(0)
    scenario = Scenario(gpus=(replace(sliced, xids=(Xid(79),)), scenarios.h100(1)))
    (trouble,) = stub.watch(library, scenario, tmp_path, expected=1).troubles
    assert (trouble.index, trouble.lost) == (0, True)
    assert trouble.slices == tuple((part.uuid or b"").decode() for part in sliced.slices)
    assert len(trouble.slices) == 2


# --- what it answers when it is asked ---------------------------------------------------------------


@pytest.mark.parametrize("code", [GPU_IS_LOST, RESET_REQUIRED])
@pytest.mark.parametrize("tells_events", [True, False])
def test_a_gpu_that_is_lost_without_a_word_is_told_once(
    library: Path, tmp_path: Path, code: int, tells_events: bool
) -> None:
    scenario = two(lost_after=(3, code), tells_events=tells_events)
    watched = stub.watch(library, scenario, tmp_path, expected=1)
    (trouble,) = watched.troubles
    assert (trouble.xid, trouble.lost, trouble.uuid) == (None, True, scenarios.uuid(1).decode())
    assert trouble.message.startswith("GPU 1 (NVIDIA H100 80GB HBM3) is lost: the driver answers")
    assert_clean(watched)


def test_a_gpu_that_is_lost_from_the_beginning_is_told(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, two(handle_error=GPU_IS_LOST), tmp_path, expected=1)
    assert [(trouble.index, trouble.lost) for trouble in watched.troubles] == [(1, True)]
    assert watched.outcome == "found"
    assert_clean(watched)


def test_a_reset_that_the_driver_asks_for_is_seen_without_an_error(library: Path, tmp_path: Path) -> None:
    (trouble,) = stub.watch(library, two(recovery=(2, 3)), tmp_path, expected=1).troubles
    assert (trouble.lost, trouble.xid) == (True, None)
    assert trouble.message.endswith("is lost: the driver asks for a reboot of the host")


def test_a_reset_that_can_wait_is_told_and_loses_nothing(library: Path, tmp_path: Path) -> None:
    (trouble,) = stub.watch(library, two(recovery=(4, 3)), tmp_path, expected=1).troubles
    assert (trouble.lost, trouble.hint) == (False, None)


def test_a_gpu_that_does_not_answer_is_told_and_not_given_up(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, two(lost_after=(3, UNKNOWN)), tmp_path, expected=1)
    assert [(trouble.index, trouble.lost) for trouble in watched.troubles] == [(1, False)]


def test_devices_that_tell_neither_events_nor_memory_are_no_trouble(library: Path, tmp_path: Path) -> None:
    gpus = tuple(replace(gpu, tells_events=False) for gpu in scenarios.GB10.gpus)
    watched = stub.watch(library, Scenario(gpus=gpus), tmp_path, expected=0)
    assert (watched.troubles, watched.outcome, watched.lives) == ((), "found", True)
    assert_clean(watched)


@pytest.mark.parametrize("code", [UNKNOWN, GPU_IS_LOST, NOT_SUPPORTED])
def test_a_wait_that_fails_leaves_the_questions(library: Path, tmp_path: Path, code: int) -> None:
    scenario = Scenario(gpus=two(lost_after=(10, GPU_IS_LOST)).gpus, wait_error=code)
    watched = stub.watch(library, scenario, tmp_path, expected=1)
    assert [(trouble.index, trouble.lost) for trouble in watched.troubles] == [(1, True)]
    assert watched.cpu_share < 0.1
    assert_clean(watched)


# --- the driver -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [UNINITIALIZED, DRIVER_NOT_LOADED, stub.VERSION_MISMATCH])
def test_a_driver_that_disappears_is_told_once_and_tried_again(library: Path, tmp_path: Path, code: int) -> None:
    watched = stub.watch(library, Scenario(gpus=two().gpus, vanish=(8, code, EVER)), tmp_path, expected=1)
    (trouble,) = watched.troubles
    assert (trouble.uuid, trouble.index, trouble.lost, trouble.name) == (None, None, False, "NVIDIA driver")
    assert trouble.message.startswith("the NVIDIA driver cannot be asked any more: ")
    assert (watched.outcome, watched.lives) == ("failed", True)
    assert_clean(watched)


def test_a_driver_that_comes_back_is_watched_again(library: Path, tmp_path: Path) -> None:
    gpus = (scenarios.h100(0), scenarios.h100(1, lost_after=(8, GPU_IS_LOST)))
    scenario = Scenario(gpus=gpus, vanish=(8, DRIVER_NOT_LOADED, 3))
    watched = stub.watch(library, scenario, tmp_path, expected=2)
    assert [(trouble.name, trouble.lost) for trouble in watched.troubles] == [
        ("NVIDIA driver", False),
        ("NVIDIA H100 80GB HBM3", True),
    ]
    assert watched.outcome == "found"
    assert_clean(watched)


def test_a_gpu_that_is_lost_again_after_the_driver_was_reloaded_is_told_again(library: Path, tmp_path: Path) -> None:
    scenario = Scenario(gpus=two(lost_after=(3, GPU_IS_LOST)).gpus, vanish=(12, DRIVER_NOT_LOADED, 2))
    watched = stub.watch(library, scenario, tmp_path, expected=3)
    assert [trouble.index for trouble in watched.troubles] == [1, None, 1]
    assert_clean(watched)


def test_a_driver_that_never_answered_is_a_finding_and_no_trouble(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, Scenario(init=stub.VERSION_MISMATCH), tmp_path, expected=0)
    assert (watched.troubles, watched.outcome, watched.lives) == ((), "failed", True)
    assert "different versions" in (watched.reason or "")
    assert_clean(watched)


def test_a_driver_that_hangs_does_not_hold_up_the_end(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, two(), tmp_path, expected=0, period_seconds=60.0, wait_seconds=40.0)
    assert not watched.ended
    assert watched.close_seconds <= 3.0


def test_a_driver_without_a_gpu_is_an_absence(library: Path, tmp_path: Path) -> None:
    watched = stub.watch(library, Scenario(), tmp_path, expected=0)
    assert (watched.troubles, watched.outcome) == ((), "absent")
    assert_clean(watched)


def test_without_the_library_there_is_no_thread(no_library: Path, tmp_path: Path) -> None:
    watched = stub.watch(no_library, Scenario(), tmp_path, expected=0)
    assert (watched.troubles, watched.outcome, watched.lived) == ((), "absent", False)
    assert watched.reason == "libnvidia-ml.so.1 was not found"
    assert_clean(watched)


def test_a_watch_over_eight_gpus_costs_less_than_a_thousandth_of_a_processor(library: Path, tmp_path: Path) -> None:
    """Of what the stub answers at once; the daemon as a whole may take five thousandths."""
    pace = {"period_seconds": PERIOD_SECONDS / 2, "wait_seconds": WAIT_SECONDS, "linger_seconds": PERIOD_SECONDS * 0.6}
    watched = stub.watch(library, scenarios.EIGHT_H100, tmp_path, expected=0, **pace)
    assert watched.cpu_share < 0.001
    assert watched.close_seconds <= 1.5
    assert_clean(watched)


# --- memory -----------------------------------------------------------------------------------------

FREE = 81_005 * MIB
BOTH = (scenarios.uuid(0).decode(), scenarios.uuid(1).decode())
BEFORE = dict.fromkeys(BOTH, FREE)


def held(**changes: object) -> Scenario:
    """Two H100, the second of which is still held by process 4242."""
    memory = (81_559 * MIB, 550 * MIB, 11_005 * MIB)
    return two(memory=memory, compute=((4242, 70_000 * MIB),), **changes)


def test_memory_that_comes_back_ends_the_wait(library: Path, tmp_path: Path) -> None:
    scenario = held(frees=(4, FREE - 300 * MIB))
    waited = stub.wait(library, scenario, tmp_path, uuids=BOTH, process_ids=(4242,), free_before=BEFORE)
    assert waited.free == {BOTH[0]: FREE, BOTH[1]: 11_005 * MIB}
    assert waited.holders.held == ()
    assert waited.slept == (0.1, 0.2, 0.4)
    assert waited.left_open == 0


def test_memory_that_stays_held_is_told_with_its_holder(library: Path, tmp_path: Path) -> None:
    waited = stub.wait(library, held(), tmp_path, uuids=BOTH, process_ids=(77,), free_before=BEFORE)
    (device,) = waited.holders.held
    assert (device.uuid, device.free_bytes) == (BOTH[1], 11_005 * MIB)
    assert [(process.pid, process.used_bytes) for process in device.processes] == [(4242, 70_000 * MIB)]
    assert waited.holders.waited_seconds == pytest.approx(30.0)
    assert len(waited.slept) < 40
    assert waited.left_open == 0


def test_a_slice_is_waited_for_by_its_own_memory(library: Path, tmp_path: Path) -> None:
    sliced = scenarios.sliced_h100(0)
    uuids = [(part.uuid or b"").decode() for part in sliced.slices]
    before = {uuids[0]: 40_428 * MIB, uuids[1]: 30_000 * MIB}
    waited = stub.wait(library, Scenario(gpus=(sliced,)), tmp_path, uuids=uuids, free_before=before)
    assert waited.free == {uuids[0]: 40_428 * MIB, uuids[1]: 20_076 * MIB}
    assert [device.uuid for device in waited.holders.held] == [uuids[1]]


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.GB10,  # unified memory
        Scenario(gpus=(scenarios.h100(0, lost=GPU_IS_LOST), scenarios.h100(1))),
        Scenario(gpus=(scenarios.h100(5),)),  # devices of these names are not here
        Scenario(init=DRIVER_NOT_LOADED),
    ],
)
def test_what_has_no_memory_to_come_back_is_not_waited_for(library: Path, tmp_path: Path, scenario: Scenario) -> None:
    waited = stub.wait(library, scenario, tmp_path, uuids=BOTH, free_before=BEFORE)
    assert (waited.holders.held, waited.slept, waited.left_open) == ((), (), 0)
    assert (waited.holders.failure is None) == (scenario.init == 0)


def test_a_driver_that_disappears_ends_the_wait(library: Path, tmp_path: Path) -> None:
    scenario = Scenario(gpus=held().gpus, vanish=(8, DRIVER_NOT_LOADED, EVER))
    waited = stub.wait(library, scenario, tmp_path, uuids=BOTH, free_before=BEFORE)
    assert waited.holders.held == ()
    assert "kernel module is not loaded" in (waited.holders.failure or "")


def test_without_a_driver_nothing_is_waited_for(no_library: Path, tmp_path: Path) -> None:
    waited = stub.wait(no_library, Scenario(), tmp_path, uuids=BOTH, free_before=BEFORE)
    assert (waited.free, waited.holders.held, waited.holders.failure, waited.slept) == ({}, (), None, ())
