"""The gateway of ``autolaunch serve`` over real engines on the miniature: killed, left, and asked by many at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autolaunch import Client
from selector.facts import EngineName
from tests.fakes.asking import CHAT, Asker, Stream, ask, chat, key, tells_to_come_again, until
from tests.fakes.served import Served, entry
from tests.integration.test_faults_real import borrowed, prepared

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Serve = Callable[..., Served]

#: More than the miniature says before a test has done with it.
LONG = 100_000


@pytest.fixture
def serve(tmp_path: Path, engines_home: Path) -> Iterator[Callable[..., Served]]:
    """A daemon over real engines that serves deployments ``a``, ``b``, … on these."""
    made: list[Served] = []

    def make(*engines: EngineName) -> Served:
        home = borrowed(tmp_path / "served" / "home", engines_home)
        for engine in set(engines):
            prepared(home, engine)
        one = Served(tmp_path / "served", real=True)
        made.append(one)
        names = "abcd"[: len(engines)]
        one.configure(*(entry(name, None, pinned={"engine": each}) for name, each in zip(names, engines, strict=True)))
        one.start()
        one.until(lambda: all(one.told("engine.ready", name) for name in names), 120.0)
        return one

    yield make
    for one in made:
        left = one.processes()
        one.close()
        assert left == [], "the test left these"


def client(one: Served) -> Client:
    return Client(one.home / "control" / "control.sock")


def under_way(one: Served, name: str) -> int:
    return sum(each.requests or 0 for each in client(one).deployment(name).replicas)


def rests(process: psutil.Process) -> bool:
    """Whether an engine does nothing for half a second; one that writes takes all of a core."""

    def used_seconds() -> float:
        found = process.cpu_times()
        return float(found.user + found.system)

    before = used_seconds()
    time.sleep(0.5)  # in which it would
    return used_seconds() - before < 0.1


def test_a_real_engine_that_is_killed_under_32_streams_ends_each_in_order(serve: Serve) -> None:
    one = serve("mlx", "mlx")
    assert one.process is not None
    engines = {name: one.engine(name) for name in "ab"}
    started = client(one).status().started
    other = Stream(one.gateway_port, model="b", words=LONG)
    cut = [Stream(one.gateway_port, words=LONG) for _ in range(32)]
    until(lambda: other.words and all(each.words for each in cut), "a stream did not begin", 90.0)
    assert not any(each.over for each in cut)
    os.kill(engines["a"], signal.SIGKILL)
    with Asker(one.gateway_port, seconds=120.0) as waiting:
        waiting.send("POST", CHAT, chat(), {"Prefer": "wait=100"})
        for each in cut:
            told = each.told()
            assert told.error is not None
            assert told.finish is None
        until(lambda: tells_to_come_again(ask(one.gateway_port)), "it does not tell that it loads")
        assert waiting.answer().status == 200
    words = other.words
    until(lambda: other.words > words, "the other's stream was disturbed")
    assert b'"error"' not in other.data
    other.leave()
    assert client(one).status().started == started
    assert one.engine("b") == engines["b"]
    assert one.engine("a") != engines["a"]
    assert one.stop() == 0


def test_a_real_engine_answers_nobody_but_the_gateway(serve: Serve) -> None:
    """It has a key of its own, which a client is neither asked for nor told."""
    one = serve("llamacpp")
    engine = psutil.Process(one.engine("a"))
    (port,) = {each.laddr.port for each in engine.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    secret = engine.environ()["LLAMA_API_KEY"]
    assert [ask(port).status, ask(port, headers=key("al-anything-else")).status] == [401, 401]
    assert ask(port, headers=key(secret)).status == 200
    answer = ask(one.gateway_port, headers=key("al-anything-else"))
    assert answer.status == 200
    assert secret not in f"{answer} {client(one).deployments()} {list(client(one).logs('a', lines=10_000))}"
    assert secret not in " ".join(engine.cmdline())
    assert one.stop() == 0
    written = [path for path in one.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in written if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("engine", ["mlx", "llamacpp"])
def test_a_real_engine_works_for_nobody_who_has_left(serve: Serve, engine: EngineName) -> None:
    one = serve(engine)
    process = psutil.Process(one.engine("a"))
    begun = [Stream(one.gateway_port, words=LONG) for _ in range(3)]
    until(lambda: any(each.words for each in begun), "no stream began", 90.0)
    assert under_way(one, "a") == 3
    assert not rests(process)
    for each in begun:
        each.leave()
    one.until(lambda: under_way(one, "a") == 0)
    until(lambda: rests(process), "it works on for clients that have gone")
    assert ask(one.gateway_port).status == 200
    assert len(one.told("engine.ready")) == 1
    assert one.stop() == 0
