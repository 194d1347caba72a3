"""The gateway of ``autolaunch serve`` over the fake engine, while engines die, clients leave and the daemon ends."""

from __future__ import annotations

import os
import signal
import time
import urllib.parse
from collections.abc import Callable

import psutil
import pytest

from autolaunch import Client
from tests.fakes.asking import Asker, Stream, ask, chat, get, left, metric, read, tells_to_come_again, until
from tests.fakes.served import Served, entry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

Serve = Callable[..., Served]


def begin(one: Served, *names: str) -> dict[str, int]:
    """Starts it and waits until all these serve; the engines' process ids by key."""
    one.start()
    ready(one, *names)
    return {name: one.engine(name) for name in names}


def ready(one: Served, *names: str, times: int = 1) -> None:
    one.until(lambda: all(len(one.told("engine.ready", name)) >= times for name in names))


def engine_port(one: Served, name: str) -> int:
    """Where the newest engine of a replica listens, which is nobody's business but a test's."""
    port: int | None = urllib.parse.urlsplit(one.told("engine.ready", name)[-1]["url"]).port
    assert port is not None
    return port


def client(one: Served) -> Client:
    return Client(one.home / "control" / "control.sock")


def under_way(one: Served, name: str) -> int:
    return sum(each.requests or 0 for each in client(one).deployment(name).replicas)


def streams(one: Served, count: int, **more: object) -> list[Stream]:
    """So many, all of which have begun to speak."""
    found = [Stream(one.gateway_port, **more) for _ in range(count)]  # type: ignore[arg-type]  # a test's own
    until(lambda: all(each.words for each in found), "a stream did not begin")
    return found


def test_an_engine_that_is_killed_under_32_streams_ends_each_in_order_and_disturbs_nothing_else(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None), entry("b", None))
    engines = begin(one, "a", "b")
    assert one.process is not None
    daemon, started = one.process.pid, client(one).status().started
    other = streams(one, 1, model="b", words=200)[0]
    cut = streams(one, 32)
    assert under_way(one, "a") == 32
    os.kill(engines["a"], signal.SIGKILL)
    with Asker(one.gateway_port) as waiting:
        waiting.send("POST", "/v1/chat/completions", chat(), {"Prefer": "wait=60"})
        for each in cut:
            told = each.told()
            assert told.words
            assert told.error is not None
            assert told.finish is None
        until(lambda: tells_to_come_again(ask(one.gateway_port)), "it does not tell that it loads")
        assert waiting.answer().status == 200
    ready(one, "a", times=2)
    assert ask(one.gateway_port).status == 200
    # Of an engine whose answers end with their connections it is not seen that it died.
    ends = [
        metric(one.gateway_port, "autolaunch_request_errors_total", reason=f"engine_{end}") for end in ("died", "error")
    ]
    assert sum(ends) == 32
    assert other.told() == (["on "] * 200, "stop", None)
    assert (one.process.pid, client(one).status().started) == (daemon, started)
    assert one.engine("b") == engines["b"]
    assert len(one.told("engine.ready", "b")) == 1
    one.until(lambda: under_way(one, "a") == 0)
    assert one.stop() == 0


def test_a_replica_that_is_killed_loses_its_own_streams_alone(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None, pinned={"data_parallel": 2}))
    engines = begin(one, "a", "a#2")
    before = {name: left(engine_port(one, name))["asked"] for name in engines}
    begun = [Stream(one.gateway_port, words=250, user=f"one {number}") for number in range(16)]
    until(lambda: all(each.words for each in begun), "a stream did not begin")
    shares = {name: left(engine_port(one, name))["asked"] - before[name] for name in engines}
    assert sum(shares.values()) == 16
    assert min(shares.values()) >= 5, "one of them has all the work"
    os.kill(engines["a"], signal.SIGKILL)
    asked_at = time.monotonic()
    assert ask(one.gateway_port).status == 200
    assert time.monotonic() - asked_at < 3.0, "it waited for the replica that is gone"
    told = [each.told() for each in begun]
    assert sum(each.error is not None for each in told) == shares["a"]
    assert sum(each == (["on "] * 250, "stop", None) for each in told) == shares["a#2"]
    ready(one, "a", times=2)
    assert one.engine("a#2") == engines["a#2"]
    assert one.stop() == 0


def test_a_conversation_stays_with_its_replica_and_others_are_spread(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", None, pinned={"data_parallel": 2}))
    begin(one, "a", "a#2")
    ports = [engine_port(one, name) for name in ("a", "a#2")]

    def asked() -> list[int]:
        return [left(port)["asked"] for port in ports]

    went = set()
    for number in range(12):
        before = asked()
        for turn in range(3):
            first = {"role": "user", "content": f"question {number}"}
            more = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}] * turn
            said = [{"role": "system", "content": "be brief"}, first, *more]
            assert ask(one.gateway_port, messages=said).status == 200
        gained = [now - then for now, then in zip(asked(), before, strict=True)]
        assert sorted(gained) == [0, 3]
        went.add(gained.index(3))
    assert went == {0, 1}
    assert one.stop() == 0


def test_a_client_that_leaves_midway_takes_its_request_with_it(serve: Serve) -> None:
    """Streamed or not: the engine works for nobody who has gone, and nothing stays counted as under way."""
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None))
    begin(one, "a")
    port = engine_port(one, "a")
    gone = streams(one, 8)
    whole = [Asker(one.gateway_port) for _ in range(4)]
    for each in whole:
        each.send("POST", "/v1/chat/completions", chat(max_tokens=3000))
    stays = streams(one, 1, words=150)[0]
    until(lambda: left(port)["now"] == 13, "not all are with the engine")
    assert under_way(one, "a") == 13
    for stream in gone:
        stream.leave()
    for each in whole:
        each.connection.close()
    until(lambda: left(port)["left"] == 12, "the engine works on for clients that have gone")
    assert stays.told() == (["on "] * 150, "stop", None)
    one.until(lambda: under_way(one, "a") == 0)
    assert left(port)["now"] == 0
    assert list(client(one).logs("a")).count("a client left") == 12
    assert metric(one.gateway_port, "autolaunch_request_errors_total", reason="client_left") == 12
    assert one.stop() == 0


def test_64_slow_streams_at_a_time_stay_well_formed(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None))
    begin(one, "a")
    for each in [Stream(one.gateway_port, words=40) for _ in range(64)]:
        assert each.told() == (["on "] * 40, "stop", None)
    assert one.stop() == 0


def test_sigterm_ends_16_streams_in_order_and_whoever_waits_is_answered(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady,silent")
    one.configure(entry("a", None))
    begin(one, "a")
    one.configure(entry("a", None), entry("b", None))
    one.signal(signal.SIGHUP)
    one.until(lambda: one.told("configuration.read"))
    cut = streams(one, 16)
    with Asker(one.gateway_port) as waiting:
        waiting.send("POST", "/v1/chat/completions", chat("b"), {"Prefer": "wait=600"})
        one.until(lambda: metric(one.gateway_port, "autolaunch_requests_waiting", model="b") == 1)
        asked_at = time.monotonic()
        assert one.stop(30.0) == 0
        assert time.monotonic() - asked_at < 15.0
        for each in cut:
            told = each.told()
            assert told.words
            assert told.error is not None
        answer = waiting.answer()
        assert (answer.status, answer.code) == (503, "stopping")
        assert int(answer.headers["retry-after"]) >= 1
    assert not psutil.pid_exists(one.process.pid)  # type: ignore[union-attr]  # it was begun


def test_a_long_answer_is_not_cut_off_as_idle_and_only_requests_wake_what_sleeps(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None, idle_seconds=2))
    begin(one, "a")
    with Asker(one.gateway_port) as whole:
        whole.send("POST", "/v1/chat/completions", chat(max_tokens=150))
        assert Stream(one.gateway_port, words=150).told() == (["on "] * 150, "stop", None)
        assert whole.answer().status == 200
    assert one.told("engine.idle") == []

    def looks() -> None:
        for path in ("/v1/models", "/v1/models/a", "/health", "/ready", "/metrics"):
            assert get(one.gateway_port, path).status == 200

    deadline = time.monotonic() + 20.0
    while not one.told("engine.idle"):
        looks()
        assert time.monotonic() < deadline, "looking keeps it awake"
        time.sleep(0.1)  # as somebody's monitoring does
    one.until(lambda: one.engines() == [])
    until(lambda: get(one.gateway_port, "/v1/models/a").document["status"] == "asleep", "it does not sleep")
    looks()
    client(one).deployments()
    time.sleep(0.5)  # in which it would begin
    assert one.engines() == []
    assert tells_to_come_again(ask(one.gateway_port))
    answer = ask(one.gateway_port, headers={"Prefer": "wait=60"})
    assert answer.status == 200
    assert len(one.told("engine.ready", "a")) == 2
    assert one.stop() == 0


def test_a_model_that_loads_tells_how_far_it_is_and_when_to_come_again(serve: Serve) -> None:
    one = serve(FAKE_MODES="slow")
    one.configure(entry("a", None))
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    with Asker(one.gateway_port) as waiting:
        waiting.send("POST", "/v1/chat/completions", chat(stream=True), {"Prefer": "respond-async, wait=60"})
        for _ in range(2):
            answer = ask(one.gateway_port)
            assert tells_to_come_again(answer)
            assert str(one.folder) not in answer.body.decode()
            ready_page = get(one.gateway_port, "/ready")
            assert (ready_page.status, ready_page.document["models"]) == (503, {"a": "loading"})
            assert int(ready_page.headers["retry-after"]) >= 1
            assert get(one.gateway_port, "/health").status == 200
            assert get(one.gateway_port, "/v1/models/a").document["status"] == "loading"
            one.until(lambda: client(one).deployment("a").phase in ("loading", "ready"))
        answer = waiting.answer()
    assert answer.status == 200
    assert read(answer.body).finish == "stop"
    assert ask(one.gateway_port, headers={"Prefer": "wait=0"}).status == 200
    assert get(one.gateway_port, "/ready").status == 200
    assert one.stop() == 0


def test_a_model_that_is_stopped_says_so_at_once_and_serves_when_it_is_started(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", None))
    begin(one, "a")
    client(one).stop("a")
    one.until(lambda: client(one).deployment("a").phase == "stopped")
    for headers in ({}, {"Prefer": "wait=60"}):
        answer = ask(one.gateway_port, headers=headers)
        assert (answer.status, answer.code) == (503, "model_stopped")
        assert int(answer.headers["retry-after"]) >= 1
    assert get(one.gateway_port, "/ready").status == 200  # nobody wants it
    time.sleep(0.3)  # in which somebody who asked could have started it
    assert client(one).deployment("a").phase == "stopped"
    client(one).start("a")
    assert ask(one.gateway_port, headers={"Prefer": "wait=60"}).status == 200
    assert one.stop() == 0


def test_a_model_that_was_given_up_on_says_nothing_of_why_to_clients_until_somebody_retries(serve: Serve) -> None:
    said = "error: unrecognized arguments: --sentinel=/of/the/log"
    one = serve(FAKE_MODES="exit,ready", FAKE_OPTIONS=f"--say 'vllm: {said}'")
    one.configure(entry("a", None))
    one.start()
    one.until(lambda: one.told("deployment.failed"))
    one.until(lambda: ask(one.gateway_port).code == "model_failed")  # the gateway hears of it a moment later
    fault = client(one).deployment("a").replicas[0].fault
    assert fault is not None
    assert said in f"{fault.message} {fault.lines}"
    for headers in ({}, {"Prefer": "wait=60"}):
        answer = ask(one.gateway_port, headers=headers)
        assert (answer.status, answer.code) == (503, "model_failed")
        assert int(answer.headers["retry-after"]) >= 1
        told = f"{answer.body!r} {answer.headers}"
        for part in ("sentinel", "unrecognized", "vllm", str(one.folder), "/of/the/log"):
            assert part not in told
    for path in ("/ready", "/v1/models", "/metrics"):
        assert b"sentinel" not in get(one.gateway_port, path).body
    assert get(one.gateway_port, "/ready").status == 503
    client(one).retry("a")
    assert ask(one.gateway_port, headers={"Prefer": "wait=60"}).status == 200
    assert get(one.gateway_port, "/ready").status == 200
    assert one.stop() == 0


def test_who_waits_for_a_model_that_is_stopped_or_removed_meanwhile_is_told(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady,silent,silent")
    one.configure(entry("a", None))
    begin(one, "a")
    one.configure(entry("a", None), entry("b", None), entry("c", None))
    client(one).reload()
    cut = streams(one, 2)
    with Asker(one.gateway_port) as stopped, Asker(one.gateway_port) as removed:
        for model, asker in (("b", stopped), ("c", removed)):
            asker.send("POST", "/v1/chat/completions", chat(model), {"Prefer": "wait=600"})
        one.until(lambda: metric(one.gateway_port, "autolaunch_requests_waiting") == 2)
        client(one).stop("b")
        answer = stopped.answer()
        assert (answer.status, answer.code) == (503, "model_stopped")
        one.configure(entry("b", None))
        client(one).reload()
        answer = removed.answer()
        assert (answer.status, answer.code) == (404, "model_not_found")
    for each in cut:
        assert each.told().error is not None
    assert ask(one.gateway_port).status == 404
    assert metric(one.gateway_port, "autolaunch_requests_running") == 0
    assert metric(one.gateway_port, "autolaunch_requests_waiting") == 0
    assert one.stop() == 0


def test_an_answer_that_had_not_begun_comes_from_the_other_replica_or_its_client_is_told_to_ask_again(
    serve: Serve,
) -> None:
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None, pinned={"data_parallel": 2}))
    engines = begin(one, "a", "a#2")
    askers = [Asker(one.gateway_port) for _ in range(8)]
    for number, asker in enumerate(askers):
        asker.send("POST", "/v1/chat/completions", chat(max_tokens=100, user=f"one {number}"))
    until(lambda: all(left(engine_port(one, name))["now"] for name in engines), "one of them has all the work")
    os.kill(engines["a"], signal.SIGKILL)
    answers = [asker.answer() for asker in askers]
    assert [each.status for each in answers] == [200] * 8
    for asker in askers:
        asker.send("POST", "/v1/chat/completions", chat(max_tokens=3000))
    until(lambda: left(engine_port(one, "a#2"))["now"] == 8, "not all are with the engine")
    os.kill(engines["a#2"], signal.SIGKILL)
    for asker in askers:
        answer = asker.answer()
        asker.connection.close()
        assert (answer.status, answer.code) == (503, "engine_died")
        assert int(answer.headers["retry-after"]) >= 1
        message = answer.document["error"]["message"]
        assert "no answer" in message or "started again" in message  # before, or after it was noticed
    assert one.stop() == 0
