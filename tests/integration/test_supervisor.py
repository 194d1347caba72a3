"""The supervisor over the fake engine: real processes, a real guard, a real loop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import psutil
import pytest

from autolaunch.daemon.happenings import Command
from tests.fakes.supervised import Bench, FakeEngine, patched, reach

Make = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(*modes: str, **more: object) -> Bench:
        engine = FakeEngine(*modes)
        patched(monkeypatch, tmp_path, engine)
        return Bench(tmp_path / "home", engine, **more)

    return make


def play(story: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 50.0))
    left = [process for process in psutil.Process().children(recursive=True) if process.is_running()]
    assert left == []


def test_a_killed_engine_is_noticed_within_a_quarter_of_a_second_and_runs_again(bench: Make) -> None:
    made = bench()

    async def story() -> None:
        one = made.supervisor()
        one.begin()
        await reach(one, lambda state: state.phase == "ready")
        assert one.run.server is not None
        first = one.run.server.pid
        killed_at = time.monotonic()
        os.kill(first, signal.SIGKILL)
        await reach(one, lambda state: state.phase == "draining")
        assert time.monotonic() - killed_at < 0.25
        state = await reach(one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert (state.fault.reason, state.fault.permanent) == ("killed", False)
        one.post(Command(verb="retry"))
        await reach(one, lambda state: state.phase == "ready")
        assert one.run.server.pid != first
        await one.close()

    play(story())
    assert made.phases == [
        *("planned", "preparing", "loading", "ready", "draining", "backing off"),
        *("planned", "preparing", "loading", "ready", "draining", "planned"),
    ]
