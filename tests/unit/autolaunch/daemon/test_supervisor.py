"""How the supervisor carries actions out, where something of ours fails. Time and hands are FAKE."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from autolaunch.daemon.deployment import Changes, Deployment, Fault
from autolaunch.daemon.hands import Run
from autolaunch.daemon.happenings import Command, Tell
from autolaunch.daemon.machine import State
from autolaunch.daemon.supervisor import Supervisor
from tests.fakes.machine_world import DEPLOYMENT
from tests.fakes.simulated import FakeHands, SimulatedLoop

OURS = ZeroDivisionError("a fault of ours")


def play(
    hands: FakeHands,
    story: Callable[[Supervisor], Coroutine[None, None, None]],
    on_tell: Callable[[Tell], None] = lambda _: None,
) -> list[Tell]:
    """What was said in a story that begins when everything does."""
    told: list[Tell] = []

    def tell(_one: Supervisor, each: Tell) -> None:
        told.append(each)
        on_tell(each)

    async def all_of_it() -> None:
        loop = asyncio.get_running_loop()
        one = Supervisor(DEPLOYMENT, hands, on_tell=tell, clock=loop.time)
        one.begin()
        await story(one)
        await one.close()
        assert hands.living == {}
        assert hands.most <= 1
        assert len(asyncio.all_tasks()) == 1

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(all_of_it())
    return told


async def reach(one: Supervisor, true: Callable[[State], bool]) -> State:
    return await asyncio.wait_for(one.until(true), 3600.0)


def test_a_probe_that_fails_while_its_engine_is_ended_does_not_pass_for_its_end(tmp_path: Path) -> None:
    """Else another engine is started beside one that is still there."""
    hands = FakeHands(tmp_path)

    async def story(one: Supervisor) -> None:
        await reach(one, lambda state: state.probing)
        hands.wrong["probe"] = [OURS]
        one.post(Command(verb="restart"))
        await asyncio.sleep(1.0)
        assert not hands.wrong["probe"]
        assert one.state.phase == "draining"
        state = await reach(one, lambda state: state.phase == "ready")
        assert state.run == 2

    assert [each.name for each in play(hands, story)] == ["engine.ready", "internal", "engine.ready"]


def test_a_plan_that_fails_after_it_was_given_up_ends_no_other(tmp_path: Path) -> None:
    hands = FakeHands(tmp_path)
    hands.wrong["plan"] = [OURS]

    async def story(one: Supervisor) -> None:
        await asyncio.sleep(1.0)
        one.post(Command(verb="stop"))
        one.post(Command(verb="start"))
        state = await reach(one, lambda state: state.phase == "ready")
        assert (state.run, state.fault) == (3, None)

    assert [each.name for each in play(hands, story)] == ["internal", "engine.ready"]


@pytest.mark.parametrize("hand", ["plan", "prepare", "launch", "probe", "end"])
def test_a_fault_of_ours_ends_in_a_state_that_explains_it(hand: str, tmp_path: Path) -> None:
    hands = FakeHands(tmp_path)
    hands.wrong[hand] = [OURS]

    async def story(one: Supervisor) -> None:
        if hand == "end":
            await reach(one, lambda state: state.phase == "ready")
            one.post(Command(verb="restart"))
        state = await reach(one, lambda state: state.phase == "failed")
        assert state.fault is not None
        assert state.fault.reason == "fault of ours"
        assert "ZeroDivisionError: a fault of ours" in state.fault.message
        assert hands.living == {}
        one.post(Command(verb="retry"))
        await reach(one, lambda state: state.phase == "ready")

    assert "internal" in [each.name for each in play(hands, story)]


def test_what_cannot_be_said_is_done_all_the_same(tmp_path: Path) -> None:
    hands = FakeHands(tmp_path)

    def full(told: Tell) -> None:
        if told.name == "engine.failed":
            raise OSError(28, "No space left on device")

    async def story(one: Supervisor) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        await reach(one, lambda state: state.phase == "ready")
        hands.living[1].dies()
        state = await reach(one, lambda state: state.phase == "ready" and state.run == 2)
        assert state.fault is not None
        assert state.fault.reason == "killed"

    play(hands, story, full)


def test_a_changed_configuration_that_fits_no_more_is_left_from_where_the_last_one_was(tmp_path: Path) -> None:
    """The ladder needs a candidate to leave; a plan that was refused has none."""
    asked: list[tuple[str, bool]] = []

    class Ladder(FakeHands):
        def next_changes(
            self, run: Run, deployment: Deployment, changes: Changes, fault: Fault, *, repeated: bool
        ) -> Changes | None:
            asked.append((fault.reason, run.decided is not None))
            return Changes(steps=(*changes.steps, "less"))

    hands = Ladder(tmp_path)
    hands.wrong["launch"] = [Fault(reason="out of memory", permanent=True, message="it does not fit")]

    async def story(one: Supervisor) -> None:
        await reach(one, lambda state: state.phase == "loading")
        hands.wrong["plan"] = [Fault(reason="no plan", permanent=True, message="nothing fits")]
        state = await reach(one, lambda state: state.phase == "ready")
        assert state.changes.steps == ("less", "less")

    play(hands, story)
    assert asked == [("out of memory", True), ("no plan", True)]


def test_a_deployment_that_is_closed_is_at_rest_whatever_it_did(tmp_path: Path) -> None:
    for number in range(60):
        hands = FakeHands(tmp_path)

        async def story(one: Supervisor, seconds: float = 1.7 * number) -> None:
            await asyncio.sleep(seconds)

        play(hands, story)
