"""What goes wrong before the first token, over the fake engine: what is told, tried again, and never left behind."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from autolaunch.daemon.happenings import Command
from autolaunch.daemon.machine import State
from autolaunch.daemon.store import where_of
from tests.fakes.supervised import Bench, engine_of, play, reach

Make = Callable[..., Bench]


def failed_so_often(count: int, state: State) -> bool:
    return state.phase == "backing off" and len(state.failures) == count


def test_a_permanent_cause_fails_at_once_with_the_cause_and_a_hint(bench: Make) -> None:
    made = bench("exit")
    made.engine.more = ("--say", "vllm: error: unrecognized arguments: --no-such-option")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "failed")
        assert state.fault is not None
        assert (state.fault.reason, state.fault.permanent) == ("bad argument", True)
        assert "--no-such-option" in state.fault.message
        assert state.fault.hint
        await one.close()

    play(story(), made.home)
    assert len(made.engine.started) == 1
    assert made.names() == ["deployment.failed"]


def test_a_cause_that_passes_is_tried_again(bench: Make) -> None:
    made = bench("exit", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert not state.fault.permanent
        assert "exited with code 3" in state.fault.message
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)


def test_memory_that_runs_out_leads_down_the_ladder_and_is_remembered(bench: Make) -> None:
    made = bench("oom", "oom", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "ready")
        assert len(state.changes.rungs) == 2
        assert state.failures == ()
        await one.close()

    play(story(), made.home)
    first, second, third = made.engine.started
    assert len({each.limits for each in (first, second, third)}) == 3
    assert made.names().count("ladder.step") == 2
    assert all("out of memory" in tell.message for tell in made.told if tell.name == "ladder.step")
    tried = made.store.tried(where_of(first, made.planner.made.hardware))
    assert [each.reason for each in tried] == ["out of memory", "out of memory", None]


def test_the_number_that_the_engine_itself_says_fits_is_used(bench: Make) -> None:
    made = bench()
    made.engine.more = ("--fits", "5000")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "ready")
        assert state.changes.rungs == ("fitting context",)
        await one.close()

    play(story(), made.home)
    assert [each.limits.context_tokens for each in made.engine.started] == [8192, 5000]


def test_a_load_that_does_nothing_is_a_stall_and_is_ended(bench: Make) -> None:
    made = bench("silent")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert state.fault.reason == "stalled"
        await one.close()

    play(story(), made.home)
    assert 1.5 <= made.changed_at["backing off"] - made.changed_at["loading"] < 8.0


def test_progress_extends_the_time_for_as_long_as_there_is_some(bench: Make) -> None:
    made = bench("slow")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)
    assert made.changed_at["ready"] - made.changed_at["loading"] > 1.9


def test_a_port_that_is_taken_is_told_before_anything_is_loaded_and_waited_for(bench: Make) -> None:
    made = bench()

    async def story() -> None:
        one = made.supervisor()
        with socket.create_server(("127.0.0.1", made.deployment.port)):
            one.begin()
            state = await reach(one, lambda state: state.phase == "backing off")
            assert state.fault is not None
            assert state.fault.reason == "port in use"
            assert "process" in state.fault.message
            assert made.engine.started == []
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)


def test_a_stranger_that_takes_the_port_meanwhile_is_never_taken_for_the_engine(bench: Make) -> None:
    made = bench("silent", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await engine_of(one)
        with socket.create_server(("127.0.0.1", made.deployment.port)):
            state = await reach(one, lambda state: state.phase == "backing off")
            assert state.fault is not None
            assert state.fault.reason == "port in use"
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)
    assert "ready" not in made.phases[: made.phases.index("backing off")]


def test_a_stop_while_it_loads_ends_it_at_once_and_a_start_begins_anew(bench: Make) -> None:
    made = bench("silent", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await engine_of(one)
        asked_at = time.monotonic()
        one.post(Command(verb="stop"))
        await reach(one, lambda state: state.phase == "planned")
        assert time.monotonic() - asked_at < 3.0
        one.post(Command(verb="start"))
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)


def backing_off_after(count: int) -> Callable[[State], bool]:
    return lambda state: state.phase == "backing off" and len(state.failures) == count


def test_a_crash_loop_ends_after_five_failures_and_stays_ended_until_somebody_asks(bench: Make) -> None:
    made = bench(*5 * ("exit",), "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        pauses = []
        for count in range(1, 5):
            state = await reach(one, backing_off_after(count))
            assert state.until is not None
            pauses.append(state.until - state.since)
            made.skip(one, pauses[-1] + 0.1)
        state = await reach(one, lambda state: state.phase == "failed")
        assert state.fault is not None
        assert "exited with code 3" in state.fault.message
        assert all(0.8 * 5 * 2**n <= pause <= 1.2 * 5 * 2**n for n, pause in enumerate(pauses))
        kept = one.kept()
        await one.close()

        again = made.supervisor(kept)
        again.begin()
        assert again.state.phase == "failed"
        assert again.state.fault == state.fault
        made.skip(again, 3600.0)
        assert again.state.phase == "failed"
        again.post(Command(verb="retry"))
        state = await reach(again, lambda state: state.phase == "ready")
        assert state.failures == ()
        await again.close()

    play(story(), made.home)
    assert len(made.engine.started) == 6
