"""When the memory of an engine that has ended counts as back."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from autolaunch.daemon.device_memory import Holders, MemoryHeld, free_memory, is_back, until_back, wait_for_memory
from selector.hardware import DeviceProcess
from selector.probe import nvml
from selector.probe.nvidia_memory import DeviceMemory

MIB, GIB = 1 << 20, 1 << 30
TOTAL, FREE = 80 * GIB, 79 * GIB
OURS = DeviceProcess(pid=10, name="python3", used_bytes=70 * GIB)
FOREIGN = DeviceProcess(pid=99, name="someone", used_bytes=70 * GIB)


def device(uuid: str = "GPU-0", free_bytes: int = FREE, *processes: DeviceProcess) -> DeviceMemory:
    return DeviceMemory(uuid=uuid, total_bytes=TOTAL, free_bytes=free_bytes, processes=processes)


class Machine:
    """Devices that change from one look to the next, the last answer for ever, and a clock that sleeping moves."""

    def __init__(self, *answers: tuple[DeviceMemory, ...]) -> None:
        self.answers = list(answers)
        self.now = 0.0
        self.asked: list[frozenset[str]] = []

    def look(self, uuids: Collection[str]) -> tuple[DeviceMemory, ...]:
        self.asked.append(frozenset(uuids))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return tuple(each for each in answer if each.uuid in uuids)

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1.0
        self.now += seconds

    def wait(self, *uuids: str, process_ids: frozenset[int] = frozenset({10})) -> tuple[MemoryHeld, ...]:
        before = dict.fromkeys(uuids, FREE)
        return until_back(
            self.look, uuids, process_ids, free_before=before, deadline=30.0, clock=lambda: self.now, sleep=self.sleep
        )


@pytest.mark.parametrize(
    ("total_bytes", "missing_bytes", "back"),
    [
        (80 * GIB, 0, True),
        (80 * GIB, 80 * GIB // 50, True),
        (80 * GIB, 80 * GIB // 50 + 1, False),
        (8 * GIB, 512 * MIB, True),  # two hundredths would be 164 MiB
        (8 * GIB, 512 * MIB + 1, False),
    ],
)
def test_a_little_may_be_missing(total_bytes: int, missing_bytes: int, back: bool) -> None:
    found = DeviceMemory(uuid="GPU-0", total_bytes=total_bytes, free_bytes=total_bytes - missing_bytes)
    assert is_back(found, frozenset(), total_bytes) == back


def test_a_process_that_is_still_listed_holds_memory_whatever_is_free() -> None:
    assert not is_back(device("GPU-0", FREE, OURS), frozenset({10}), FREE)
    assert is_back(device("GPU-0", FREE, FOREIGN), frozenset({10}), FREE)


def test_where_nobody_asked_before_only_the_processes_count() -> None:
    assert is_back(device("GPU-0", 1), frozenset({10}), None)


def test_memory_that_is_there_is_not_waited_for() -> None:
    machine = Machine((device(),))
    assert machine.wait("GPU-0") == ()
    assert machine.now == 0.0


def test_the_wait_ends_when_the_last_device_is_back_and_asks_none_twice() -> None:
    machine = Machine(
        (device("GPU-0", 9 * GIB, OURS), device("GPU-1", 9 * GIB, OURS)),
        (device("GPU-0"), device("GPU-1", 9 * GIB)),
        (device("GPU-0", GIB, FOREIGN), device("GPU-1")),  # somebody else has begun on the first
    )
    assert machine.wait("GPU-0", "GPU-1") == ()
    assert machine.asked == [{"GPU-0", "GPU-1"}, {"GPU-0", "GPU-1"}, {"GPU-1"}]
    assert machine.now == pytest.approx(0.3)


def test_what_stays_held_is_named_at_the_deadline() -> None:
    machine = Machine((device("GPU-0"), device("GPU-1", 9 * GIB, FOREIGN)))
    assert machine.wait("GPU-0", "GPU-1") == (MemoryHeld(uuid="GPU-1", free_bytes=9 * GIB, processes=(FOREIGN,)),)
    assert machine.now == pytest.approx(30.0)
    assert len(machine.asked) < 40


def test_a_device_that_is_lost_meanwhile_ends_the_wait_for_it() -> None:
    machine = Machine((device("GPU-0", 9 * GIB, OURS),), ())
    assert machine.wait("GPU-0") == ()


def test_without_devices_nothing_is_asked() -> None:
    assert wait_for_memory(frozenset(), frozenset({10}), free_before={}) == Holders()
    assert free_memory(()) == {}


def test_without_a_driver_the_wait_is_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY_NAME", "libnvidia-ml-that-is-not-here.so")
    machine = Machine(())
    holders = wait_for_memory(
        frozenset({"GPU-0"}),
        frozenset({10}),
        free_before={"GPU-0": FREE},
        clock=lambda: machine.now,
        sleep=machine.sleep,
    )
    assert holders == Holders()
    assert free_memory({"GPU-0"}) == {}
