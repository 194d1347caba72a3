"""``autolaunch.launch`` over the fake engine: what a script may do with a launch, and what is left of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import autolaunch
from autolaunch.client import clients
from autolaunch.daemon.gateway.keys import key_of
from autolaunch.events import Event
from autolaunch.handles import Launch
from selector.errors import (
    AutolaunchError,
    ConfigurationError,
    EngineError,
    EngineStartError,
    NoFeasiblePlan,
    PortTaken,
    UsageError,
    WaitTimedOut,
)
from tests.fakes.launched import launched, made_up
from tests.fakes.plans import plan
from tests.fakes.supervised import FakeEngine, nothing_left, patched

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

ROOT = Path(__file__).parents[2]
Engine = Callable[..., FakeEngine]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    def make(*modes: str) -> FakeEngine:
        fake = FakeEngine(*modes)
        patched(monkeypatch, home, fake)
        return fake

    return make


def asked(server: Launch, key: str | None) -> int:
    """The status of a chat completion with ``key``."""
    body = json.dumps({"model": server.served_name, "messages": [{"role": "user", "content": "hello"}]}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def arguments(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *process.environ().values()]
    except psutil.Error:
        return []


def port_of(server: Launch) -> int:
    return int(server.base_url.rpartition(":")[2].removesuffix("/v1"))


def test_it_serves_who_has_the_key_and_leaves_nothing(
    home: Path, engine: Engine, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    roots = list(logging.getLogger().handlers)
    threads = threading.active_count()
    with launched(home) as server:
        url = server.base_url
        server.wait_ready(timeout=30)
        assert server.base_url == url, "it is known from the first moment on"
        assert (server.phase, server.served_name) == ("ready", "glm-tiny")
        assert server.plan.chosen == server.candidate
        assert [psutil.Process(pid).is_running() for pid in server.pids] == [True]
        assert asked(server, server.api_key) == 200
        assert asked(server, None) == asked(server, "al-wrong-but-as-long-as-one-has-to-be") == 401
        assert server.tail() == ("listening",)
        assert [each.name for each in server.measurements] == ["main memory in use"], "all that a fake one tells"
    assert server.phase == "stopped"
    assert server.pids == ()
    nothing_left(home)
    assert threading.active_count() == threads
    server.stop()
    names = [event.name for event in server.events()]
    assert names[0] == "launch.port"
    assert names[-1] == "launch.stopped"
    assert "engine.ready" in names
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert logging.getLogger().handlers == roots
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_the_key_is_nowhere_but_where_it_is_asked_for(home: Path, engine: Engine) -> None:
    engine("exit").more = ("--say", "sentinel")
    key = "al-sentinel-0123456789-0123456789"
    server = launched(home, api_key=key)
    while not server.pids and not server.tail():
        time.sleep(0.01)
    started = [argument for one in psutil.Process().children(recursive=True) for argument in arguments(one)]
    with pytest.raises(EngineStartError) as caught:
        server.wait_ready()
    told = [repr(server), str(caught.value), caught.value.hint or "", *map(repr, server.events()), *started]
    assert server.api_key == key
    assert not [text for text in told if key in text]
    for path in home.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_an_engine_that_fails_is_a_typed_error_and_everything_is_stopped(home: Path, engine: Engine) -> None:
    engine("exit").more = ("--say", "something odd")
    server = launched(home)
    with pytest.raises(EngineStartError, match=r"exited with code 3.*something odd"):
        server.wait_ready()
    assert server.phase == "stopped"
    nothing_left(home)
    with pytest.raises(EngineError, match="it was stopped"):
        server.wait_ready()


def test_a_wait_that_is_too_short_stops_nothing_and_a_load_is_broken_off_at_once(home: Path, engine: Engine) -> None:
    engine("silent")
    with launched(home) as server:
        with pytest.raises(WaitTimedOut, match=r"after 1 s glm-tiny is (preparing|loading)"):
            server.wait_ready(timeout=1.0)
        assert server.pids
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2.0
    nothing_left(home)


def test_whoever_waits_is_told_when_another_thread_stops_it(home: Path, engine: Engine) -> None:
    engine("silent")
    server = launched(home)
    stopping = [threading.Timer(0.5, server.stop) for _ in range(4)]
    for each in stopping:
        each.start()
    with pytest.raises(EngineError, match="it was stopped"):
        server.wait_ready(timeout=30)
    for each in stopping:
        each.join()
    server.wait()
    nothing_left(home)


def test_a_callback_hears_all_and_may_stop_it(home: Path, engine: Engine) -> None:
    engine()
    heard: list[Event] = []
    server: list[Launch] = []
    begun = threading.Event()

    def hear(event: Event) -> None:
        begun.wait()
        heard.append(event)
        if event.name == "engine.ready":
            server[0].stop()

    server.append(launched(home, on_event=hear))
    begun.set()
    server[0].wait()
    server[0].stop()
    assert tuple(heard) == tuple(server[0].events())
    nothing_left(home)


def test_readers_of_events_read_for_themselves_and_end_with_what_was_given_up_on(home: Path, engine: Engine) -> None:
    engine("exit").more = ("--say", "error: the following arguments are required: --model")
    with launched(home) as server:
        read: list[list[Event]] = [[], []]
        readers = [threading.Thread(target=lambda into=into: into.extend(server.events())) for into in read]
        for each in readers:
            each.start()
        with pytest.raises(EngineError):
            server.wait_ready()
        for each in readers:
            each.join(10)
        assert [event.name for event in read[0]] == [event.name for event in read[1]]
        assert "deployment.failed" in {event.name for event in read[0]}
    nothing_left(home)


def test_two_launches_of_one_process_are_beside_each_other_and_can_be_steered(home: Path, engine: Engine) -> None:
    engine()
    found: list[Launch] = []

    def begin(name: str) -> None:
        found.append(launched(home, served_name=name))
        found[-1].wait_ready(timeout=30)

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("a", "b")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert {asked(one, one.api_key) for one in found} == {200}
    assert asked(found[0], found[1].api_key) == 401
    named = {each.name: client for client in clients() for each in client.deployments()}
    assert set(named) == {"a", "b"}
    named["a"].stop("a")
    one = next(one for one in found if one.served_name == "a")
    one.wait()
    for left in found:
        left.stop()
    nothing_left(home)


def test_asyncio_waits_reads_and_leaves_by_the_same_names(home: Path, engine: Engine) -> None:
    engine()

    async def story() -> list[str]:
        async with launched(home) as server:
            await server.wait_ready(timeout=30)
            assert server.phase == "ready"
            seen = []
            async for event in server.events():
                seen.append(event.name)
                if event.name == "engine.ready":
                    break
            await server.stop()
            with pytest.raises(EngineError, match="it was stopped"):
                await server.wait_ready()
            await server.wait()
            return seen + [event.name async for event in server.events()]

    names = asyncio.run(story())
    assert names[-1] == "launch.stopped"
    nothing_left(home)


def test_a_task_that_is_cancelled_takes_its_launch_with_it(home: Path, engine: Engine) -> None:
    engine("silent")

    async def launch() -> None:
        async with launched(home) as server:
            with pytest.raises(WaitTimedOut):
                await server.wait_ready(timeout=0.2)
            await server.wait_ready()

    async def story() -> float:
        task = asyncio.create_task(launch())
        await asyncio.sleep(1.0)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        nothing_left(home)
        return time.monotonic() - began

    assert asyncio.run(story()) < 2.0


@pytest.mark.parametrize("how", ["crash", "exit", "end", "interrupted", "loading"])
def test_a_program_that_ends_without_stopping_leaves_nothing_running(home: Path, how: str) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "tests.fakes.launched", str(home), how),
        cwd=ROOT,
        env={**os.environ, "AUTOLAUNCH_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    codes = {"crash": 1, "exit": 7, "end": 0, "interrupted": -signal.SIGINT, "loading": 0}
    assert done.returncode == codes[how], done.stderr
    assert ("SystemError" in done.stderr) == (how == "crash")
    assert ("KeyboardInterrupt" in done.stderr) == (how == "interrupted")
    assert done.stderr == "" or how in ("crash", "interrupted")
    deadline = time.monotonic() + 5.0
    while psutil.pid_exists(int(done.stdout)):  # its guard ends it, a moment after the program
        assert time.monotonic() < deadline, "the engine is there still"
        time.sleep(0.02)
    if how != "exit":
        nothing_left(home)
        assert list((home / "control").glob("*.sock")) == []


def test_a_file_of_keys_and_no_key_are_ways_too(home: Path, engine: Engine, tmp_path: Path) -> None:
    engine()
    theirs = "a-key-of-somebody-else-0123456789"
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{key_of('somebody', theirs).line}\n")
    with launched(home, keys_file=keys) as server:
        server.wait_ready(timeout=30)
        assert server.api_key is None
        assert (asked(server, theirs), asked(server, None)) == (200, 401)
    with launched(home, keyless=True) as server:
        server.wait_ready(timeout=30)
        assert asked(server, None) == 200
    nothing_left(home)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"api_key": "short"}, UsageError, "the key has 5 characters"),
        ({"api_key": "a-key-that-is-long-enough", "keyless": True}, UsageError, "three ways"),
        ({"host": "0.0.0.0", "keyless": True}, UsageError, "open to the network"),  # noqa: S104 - it is refused
        ({"host": "example.com"}, UsageError, "is no address"),
        ({"port": 70_000}, UsageError, "no port"),
        ({"served_name": "../x"}, UsageError, "cannot be a served name"),
        ({"keys_file": "/nowhere/keys"}, ConfigurationError, "/nowhere/keys"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_begun(
    home: Path, engine: Engine, more: dict[str, object], kind: type[AutolaunchError], said: str
) -> None:
    engine()
    threads = threading.active_count()
    with pytest.raises(kind, match=said):
        launched(home, **more)
    assert threading.active_count() == threads
    assert not (home / "run").exists()


def test_no_plan_another_machines_plan_and_a_taken_port_are_refused(home: Path, engine: Engine) -> None:
    engine()
    with pytest.raises(NoFeasiblePlan, match="no plan for glm-tiny"):
        autolaunch.launch(plan(None), home=home)
    with pytest.raises(UsageError, match="not of this one"):
        autolaunch.launch(autolaunch.plan("glm-4.6", hardware="8xh100"), home=home)
    with launched(home) as server:
        port = port_of(server)
        with pytest.raises(PortTaken, match=f"port {port} is in use"):
            autolaunch.launch(made_up(), home=home, port=port)
    nothing_left(home)


def test_a_lock_that_cannot_be_written_any_more_is_said_and_it_serves(
    home: Path, engine: Engine, tmp_path: Path
) -> None:
    engine()
    (folder := tmp_path / "locks").mkdir()
    with launched(home, lock=folder / "a.lock") as server:
        folder.rmdir()
        server.wait_ready(timeout=30)
        assert asked(server, server.api_key) == 200
    (said,) = [event for event in server.events() if event.name.startswith("lock.")]
    assert (said.name, said.level) == ("lock.failed", "warning")
    nothing_left(home)
