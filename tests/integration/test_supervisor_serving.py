"""What goes wrong once tokens came, over the fake engine: it is noticed, replaced, and nothing of it is left."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from autolaunch.daemon.happenings import Command
from autolaunch.daemon.machine import PROBE_SECONDS, REPROBE_SECONDS, STEADY_SECONDS
from autolaunch.daemon.output import LINE_CHARACTERS
from tests.fakes.supervised import Bench, alive, engine_of, play, reach

Make = Callable[..., Bench]


def ask(port: int, name: str = "glm-tiny", seconds: float = 10.0) -> int:
    """The status of a completion that a client asks for; 0 where there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": name, "messages": []}))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def test_memory_that_runs_out_while_it_serves_lowers_the_limits_after_a_pause(bench: Make) -> None:
    made = bench("dies", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        assert await asyncio.to_thread(ask, made.deployment.port or 0) == 0
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert (state.fault.reason, state.fault.serving) == ("out of memory", True)
        assert len(state.failures) == 1
        assert len(state.changes.rungs) == 1
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)
    first, second = made.engine.started
    assert second.limits != first.limits


def test_an_engine_whose_health_page_answers_and_that_gives_no_tokens_is_replaced(bench: Make) -> None:
    made = bench("hangs", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        first = (await engine_of(one)).pid
        made.skip(one, PROBE_SECONDS + 1)
        await reach(one, lambda state: state.phase == "degraded")
        made.skip(one, REPROBE_SECONDS + 1)
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert state.fault.reason == "hangs"
        assert not psutil.pid_exists(first)
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)
    assert "engine.degraded" in made.names()


def test_an_engine_that_answers_again_is_ready_again(bench: Make) -> None:
    """Stopped for a moment, as by a debugger or a suspended host."""
    made = bench()

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        server = await engine_of(one)
        os.kill(server.pid, signal.SIGSTOP)
        made.skip(one, PROBE_SECONDS + 1)
        await reach(one, lambda state: state.phase == "degraded")
        os.kill(server.pid, signal.SIGCONT)
        made.skip(one, REPROBE_SECONDS + 1)
        await reach(one, lambda state: state.phase == "ready")
        assert await engine_of(one) is server
        await one.close()

    play(story(), made.home)
    assert made.names()[-1] == "engine.recovered"


def test_a_worker_that_dies_takes_the_whole_tree_with_it(bench: Make, tmp_path: Path) -> None:
    made = bench("worker", "ready")
    pids = tmp_path / "pids"
    made.engine.more = ("--pids", str(pids))

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        main, worker = map(int, pids.read_text().split())
        os.kill(worker, signal.SIGKILL)
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert state.fault.reason == "worker died"
        assert f"process {worker}" in state.fault.message
        assert not psutil.pid_exists(main)
        made.skip(one, 10.0)
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)


def test_descendants_in_other_sessions_that_hold_the_pipe_go_with_a_killed_engine(bench: Make, tmp_path: Path) -> None:
    """A child and an orphaned grandchild, deaf to SIGTERM; both hold the engine's standard output open."""
    made = bench("children", "ready")
    pids = tmp_path / "pids"
    made.engine.more = ("--pids", str(pids))

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        assert len(alive(pids)) == 3
        os.kill((await engine_of(one)).pid, signal.SIGKILL)
        await reach(one, lambda state: state.phase == "backing off")
        assert alive(pids) == []
        await one.close()

    play(story(), made.home)
    assert made.changed_at["backing off"] - made.changed_at["draining"] < 5.0


def test_an_engine_that_ignores_sigterm_is_killed_after_its_grace(bench: Make) -> None:
    made = bench("deaf")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        asked_at = time.monotonic()
        one.post(Command(verb="stop"))
        await reach(one, lambda state: state.phase == "planned")
        assert 1.0 <= time.monotonic() - asked_at < 4.0
        await one.close()

    play(story(), made.home)


def test_a_flood_of_output_fills_neither_the_memory_nor_the_pipe(bench: Make) -> None:
    made = bench("flood")
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        server = await engine_of(one)
        while server.process.output_bytes < 3_000_000:
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(ask, made.deployment.port or 0) == 200
        assert one.state.phase == "ready"
        assert not any("\x1b" in line for line in server.tail(1000))
        await one.close()

    play(story(), made.home)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes < 64 << 20


def test_a_line_of_ten_megabytes_is_cut(bench: Make) -> None:
    made = bench("longline")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        assert max(map(len, (await engine_of(one)).tail())) <= LINE_CHARACTERS
        await one.close()

    play(story(), made.home)


def test_an_end_without_a_word_is_told_as_unknown_and_tried_again(bench: Make) -> None:
    made = bench()

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        os.kill((await engine_of(one)).pid, signal.SIGUSR1)
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert not state.fault.permanent
        assert f"was ended by signal {int(signal.SIGUSR1)}" in state.fault.message
        await one.close()

    play(story(), made.home)


def test_what_is_up_for_a_while_is_forgiven_what_it_did_before(bench: Make) -> None:
    made = bench("exit", "ready")

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "backing off")
        made.skip(one, 10.0)
        state = await reach(one, lambda state: state.phase == "ready")
        assert len(state.failures) == 1
        made.skip(one, STEADY_SECONDS + 1)
        assert one.state.failures == ()
        await one.close()

    play(story(), made.home)


def test_an_idle_engine_is_stopped_and_somebody_who_asks_wakes_it(bench: Make) -> None:
    made = bench(idle_seconds=60.0)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        made.skip(one, 61.0)
        await reach(one, lambda state: state.asleep and state.phase == "planned")
        assert psutil.Process().children() == []
        one.post(Command(verb="ask"))
        await reach(one, lambda state: state.phase == "ready")
        await one.close()

    play(story(), made.home)


def test_an_engine_is_not_idle_while_somebody_waits_for_an_answer(bench: Make) -> None:
    made = bench(idle_seconds=60.0)

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        one.traffic.under_way = 1
        probe_at = one.state.probe_at
        made.clock.skipped_seconds += 50.0
        one._look(one.run)
        made.clock.skipped_seconds += 20.0
        one._step(None)
        assert one.state.phase == "ready"
        assert one.state.probing or one.state.probe_at <= probe_at, "whether it answers is asked all the same"
        await reach(one, lambda state: not state.probing)
        await one.close()

    play(story(), made.home)
