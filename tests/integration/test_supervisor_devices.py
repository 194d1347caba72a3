"""Devices of a made-up machine, really planned and really leased; the engine on them is the fake one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from autolaunch import launching
from autolaunch.daemon import hands
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.happenings import Command
from autolaunch.daemon.host import Host
from autolaunch.daemon.leases import Leases
from autolaunch.daemon.supervisor import Supervisor
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.hardware import HardwareReport
from selector.machines import report_from_file
from selector.request import Pins
from tests.fakes.supervised import Bench, engine_of, leased, play, reach

Make = Callable[..., Bench]
BUSY = report_from_file(Path(__file__).parents[1] / "data/machines/4xa100-busy.json")


def emptied(report: HardwareReport) -> HardwareReport:
    """The machine when the others have gone."""
    devices = tuple(
        msgspec.structs.replace(each, memory_free_bytes=each.memory_total_bytes, processes=())
        for each in report.accelerators
    )
    return msgspec.structs.replace(report, accelerators=devices)


class Machine:
    """A report that a test may change, asked at every plan."""

    def __init__(self, report: HardwareReport) -> None:
        self.report = report

    def __call__(self) -> HardwareReport:
        return self.report


@pytest.fixture
def on(bench: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Bench, Machine]]:
    """A bench whose deployment is planned by the real planner on a machine of four A100s."""

    def prepare(plan: LaunchPlan, *, candidate: Candidate, **_more: object) -> launching.Prepared:
        return launching.Prepared(
            plan=plan,
            candidate=candidate,
            model=Catalog().model(plan.model),
            served_name="air",
            folder=tmp_path,
            bin_directory=tmp_path,
        )

    monkeypatch.setattr(hands, "prepare", prepare)

    def make(report: HardwareReport, *modes: str, tensor: int = 4, **more: object) -> tuple[Bench, Machine]:
        made = bench(*modes)
        made.deployment = Deployment(
            name="air",
            model="glm-4.5-air",
            port=made.deployment.port,
            pinned=Pins(engine="vllm", tensor_parallel=tensor),
            **more,  # type: ignore[arg-type]  # a test's own
        )
        machine = Machine(report)
        made.hands.planner = Host(Catalog(), machine)
        return made, machine

    return make


def devices(one: Supervisor) -> frozenset[str]:
    return one.run.devices


def test_memory_that_others_hold_is_waited_for_and_they_are_named(on: Callable[..., tuple[Bench, Machine]]) -> None:
    made, machine = on(BUSY)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert state.fault.reason == "devices held"
        assert "VLLM::EngineCore (process 4242)" in state.fault.message
        assert state.failures == ()
        machine.report = emptied(BUSY)
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        assert len(leased(made.home)) == 4
        await one.close()

    play(story(), made.home)
    assert made.names()[0] == "deployment.waits"


def test_memory_that_others_hold_is_a_refusal_where_waiting_is_not_wanted(
    on: Callable[..., tuple[Bench, Machine]],
) -> None:
    made, _ = on(BUSY, wait_for_devices=False)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "failed")
        assert state.fault is not None
        assert "process 4242" in state.fault.message
        await one.close()

    play(story(), made.home)
    assert made.engine.started == []


@pytest.mark.parametrize("wait", [True, False])
def test_devices_that_another_process_has_leased_are_not_used_beside_it(
    on: Callable[..., tuple[Bench, Machine]], wait: bool
) -> None:
    made, _ = on(emptied(BUSY), wait_for_devices=wait)
    other = Leases(made.home / "leases").take("other", {str(BUSY.accelerators[2].uuid)})

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == ("backing off" if wait else "failed"))
        assert state.fault is not None
        assert state.fault.reason == "devices held"
        assert "in use by other" in state.fault.message
        assert len(leased(made.home)) == 1  # what was taken before it was given back
        other.release()
        if wait:
            made.skip(one, 10.0)
        else:
            one.post(Command(verb="retry"))
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)
    assert len(made.engine.started) == 1


def test_a_lost_device_is_left_out_of_a_new_plan_and_that_is_said(on: Callable[..., tuple[Bench, Machine]]) -> None:
    made, _ = on(emptied(BUSY), tensor=2)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        first, before = (await engine_of(one)).pid, devices(one)
        lost = min(before)
        one.lost((lost,), "GPU 0 (NVIDIA A100-SXM4-80GB) is lost: Xid 79")
        await reach(one, lambda state: state.phase == "draining")
        state = await reach(one, lambda state: state.phase == "ready")
        assert (await engine_of(one)).pid != first
        assert lost not in devices(one)
        assert len(devices(one)) == 2
        assert state.changes.without_devices == (lost,)
        one.lost((lost,), "the same again")  # nothing of it is used any more
        assert one.state.phase == "ready"
        await one.close()

    play(story(), made.home)
    (step,) = [tell for tell in made.told if tell.name == "ladder.step"]
    assert "Xid 79" in step.message
    assert len(made.engine.started) == 2


def test_a_lost_device_that_nothing_can_do_without_is_no_restart_loop(on: Callable[..., tuple[Bench, Machine]]) -> None:
    made, _ = on(emptied(BUSY), tensor=4)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        one.lost((min(devices(one)),), "GPU 0 is lost")
        state = await reach(one, lambda state: state.phase == "failed")
        assert state.fault is not None
        assert leased(made.home) == []
        await one.close()

    play(story(), made.home)
    assert len(made.engine.started) == 1


@pytest.mark.parametrize("mode", ["exit", "silent", "dies"])
def test_devices_are_given_back_however_an_engine_ends(on: Callable[..., tuple[Bench, Machine]], mode: str) -> None:
    made, _ = on(emptied(BUSY), mode, tensor=2)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        if mode == "dies":
            await reach(one, lambda state: state.phase == "ready")
            made.skip(one, 31.0)  # a probe is its second request
        await reach(one, lambda state: state.phase == "backing off")
        assert leased(made.home) == []
        await one.close()

    play(story(), made.home)
