"""The supervisor over the fake engine: real processes, a real guard, a real loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from autolaunch.daemon.happenings import Command
from tests.fakes.supervised import Bench, play, reach

Make = Callable[..., Bench]


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

    play(story(), made.home)
    assert made.phases == [
        *("planned", "preparing", "loading", "ready", "draining", "backing off"),
        *("planned", "preparing", "loading", "ready", "draining", "planned"),
    ]
