"""A model kept up inside a program (:mod:`autolaunch.foreground`), over the fake engine."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from autolaunch.daemon.happenings import Used
from autolaunch.foreground import Foreground
from selector.errors import EngineError, EngineStartError, PortTaken, Unsupported
from selector.request import Pins
from tests.fakes.supervised import Bench, FakeEngine, nothing_left, patched

Make = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(*modes: str, **more: object) -> Bench:
        engine = FakeEngine(*modes)
        patched(monkeypatch, tmp_path, engine)
        return Bench(tmp_path / "home", engine, **more)

    return make


def kept_up(made: Bench) -> Foreground:
    return Foreground(((made.deployment, made.hands),), made.told.append, clock=made.clock)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_it_is_ready_answers_and_leaves_nothing(bench: Make) -> None:
    made = bench()
    with kept_up(made) as one:
        server = one.wait_ready()
        connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=5.0)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
        connection.close()
    nothing_left(made.home)
    one.stop()  # again is nothing


def test_an_engine_that_was_killed_comes_back_at_the_same_address(bench: Make) -> None:
    made = bench()
    with kept_up(made) as one:
        first = one.wait_ready()
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: one.state.phase == "ready" and one.server.pid != first.pid)
        assert one.server.base_url == first.base_url
        assert made.names() == ["engine.ready", "engine.failed", "engine.ready"]
    nothing_left(made.home)


def test_before_the_first_token_nothing_is_tried_again_unchanged(bench: Make) -> None:
    made = bench("exit")
    made.engine.more = ("--say", "something odd")
    with kept_up(made) as one, pytest.raises(EngineStartError, match="exited with code 3") as caught:
        one.wait_ready()
    assert "something odd" in str(caught.value)
    assert "its output is in" in (caught.value.hint or "")
    assert len(made.engine.started) == 1
    nothing_left(made.home)


def test_a_step_of_the_ladder_is_taken_and_said(bench: Make) -> None:
    made = bench("oom", "ready")
    with kept_up(made) as one:
        one.wait_ready()
        first, second = made.engine.started
        assert second.limits.max_sequences == first.limits.max_sequences // 2
        assert one.state.candidate == second
    (step,) = [tell for tell in made.told if tell.name == "ladder.step"]
    assert "sequences at once lowered from 4 to 2" in step.message
    nothing_left(made.home)


def test_what_was_pinned_is_not_lowered_and_the_error_is_the_engines(bench: Make) -> None:
    made = bench("oom", context_tokens=8192, pinned=Pins(max_sequences=4, engine="vllm", repo="autolaunch/glm-tiny"))
    with kept_up(made) as one, pytest.raises(EngineStartError, match="out of memory"):
        one.wait_ready()
    assert {limits.limits.max_sequences for limits in made.engine.started} == {4}
    assert {limits.limits.context_tokens for limits in made.engine.started} == {8192}
    nothing_left(made.home)


def test_a_port_that_is_taken_is_an_error_of_its_own_kind(bench: Make) -> None:
    made = bench()
    with socket.create_server(("127.0.0.1", made.deployment.port)), kept_up(made) as one, pytest.raises(PortTaken):
        one.wait_ready()
    assert made.engine.started == []


def test_what_this_release_cannot_start_is_said_at_once(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench()
    chosen = made.planner.made.chosen
    assert chosen is not None
    two = msgspec.structs.replace(chosen, parallel=msgspec.structs.replace(chosen.parallel, data=2))
    made.planner.made = msgspec.structs.replace(made.planner.made, chosen=two)
    with kept_up(made) as one, pytest.raises(Unsupported, match="starts one replica"):
        one.wait_ready()


def test_an_engine_that_never_stays_up_is_given_up_on(bench: Make) -> None:
    made = bench("ready")
    seen: set[int] = set()

    def kill(one: Foreground) -> None:
        while one.state.phase != "failed":
            if one.state.phase == "ready" and one.server.pid not in seen:
                seen.add(one.server.pid)
                os.kill(one.server.pid, signal.SIGKILL)
            elif one.state.phase == "backing off":
                made.clock.skipped_seconds += 60.0
                one._first.post_from_thread(Used(run=-1))  # only a reason to look at the clock
            time.sleep(0.02)

    with kept_up(made) as one:
        one.wait_ready()
        killer = threading.Thread(target=kill, args=(one,))
        killer.start()
        with pytest.raises(EngineError, match="was ended by signal 9") as caught:
            one.wait_ended()
        killer.join()
    assert len(seen) == 5
    assert caught.value.exit_code == 5
    nothing_left(made.home)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2, 0.5])
def test_it_can_be_stopped_at_any_moment(bench: Make, moment: float) -> None:
    made = bench("slow")
    one = kept_up(made)
    one.start()
    time.sleep(moment)
    began = time.monotonic()
    one.stop()
    assert time.monotonic() - began < 10.0
    nothing_left(made.home)
