"""Several daemons over the fake engine, one gateway in front: balanced, one killed under load, back again, and misused.

Every gateway is real, and so is each way in which a host is lost: SIGKILL, SIGSTOP, a port that takes connections and
says nothing.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from autolaunch import Client
from autolaunch.daemon.control.contract import HostDocument
from autolaunch.daemon.gateway.keys import key_of, made
from autolaunch.daemon.ports import free_port
from tests.fakes.asking import CHAT, Asker, Stream, ask, chat, get, key, metric, read, until
from tests.fakes.served import Served, entry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

Serve = Callable[..., Served]

#: What the guide promises: a host that hangs is sent nothing after so long, one that is back is sent requests after
#: so long, and what a host that hangs has is given up after so long. The machine of the tests has little to spare.
DOWN_SECONDS, BACK_SECONDS, LOST_SECONDS, SLACK_SECONDS = 5.0, 5.0, 15.0, 5.0


def host(port: int, name: str, **more: object) -> str:
    """One host, as the configuration has it."""
    flat = {"name": name, "url": f"http://127.0.0.1:{port}", **more}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in flat.items()]
    return f"[[gateway.hosts]]\n{''.join(lines)}"


def client(one: Served) -> Client:
    return Client(one.home / "control" / "control.sock")


def hosts(one: Served) -> dict[str, HostDocument]:
    return {each.name: each for each in client(one).status().hosts}


def in_state(one: Served, **wanted: str) -> None:
    until(lambda: {name: each.state for name, each in hosts(one).items()} == wanted, f"not {wanted}", 20.0)


def states(one: Served, host: str) -> dict[str, str]:
    """Of the models of a host, as its gateway has heard."""
    return {each.name: each.state for each in hosts(one)[host].models}


def started(*daemons: Served, names: tuple[str, ...] = ("a",)) -> None:
    for each in daemons:
        each.start()
    for each in daemons:
        each.until(lambda: all(each.told("engine.ready", name) for name in names))  # noqa: B023 - awaited here


def fronted(serve: Serve, *behind: Served, **more: object) -> Served:
    """A daemon without an engine before these, which has heard of all of them."""
    front = serve()
    front.configure(*(host(each.gateway_port, f"h{number}", **more) for number, each in enumerate(behind, 2)))
    front.start()
    front.until(lambda: front.told("daemon.ready"))
    in_state(front, **{f"h{number}": "up" for number in range(2, len(behind) + 2)})
    return front


class Outcome(NamedTuple):
    """How one request went: whether its client got a word of an answer, and whether that came whole."""

    streamed: bool
    begun: bool
    whole: bool
    status: int | None
    seconds: float
    told: str = ""


def asked(port: int, number: int) -> Outcome:
    """One request, every second streamed, of some words of a fiftieth of a second each."""
    streamed = number % 2 == 0
    began = time.monotonic()
    status, data = None, b""
    with Asker(port, seconds=60.0) as asker:
        try:
            body = chat(stream=streamed, max_tokens=10 + number % 20, user=f"user {number}")
            asker.send("POST", CHAT, body)
            response = asker.connection.getresponse()
            status = response.status
            while piece := response.read1(65536):
                data += piece
            fault = ""
        except OSError as error:
            fault = repr(error)
    took = time.monotonic() - began
    if status == 200 and streamed and not fault:
        told = read(data)  # well-formed, however it ends
        whole = told.error is None and told.finish == "stop"
        return Outcome(True, bool(told.words), whole, status, took, str(told.error))
    begun = streamed and b'"content"' in data
    return Outcome(streamed, begun, status == 200 and not fault, status, took, fault or str(data[:300]))


def load(port: int, count: int = 400, at_once: int = 32, *, meanwhile: Callable[[], None]) -> list[Outcome]:
    """So many requests, so many at a time; ``meanwhile`` is done when a third have ended."""
    done = threading.Semaphore(0)

    def one(number: int) -> Outcome:
        try:
            return asked(port, number)
        finally:
            done.release()

    with ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(one, number) for number in range(count)]
        for _ in range(count // 3):
            done.acquire()
        meanwhile()
        return [each.result() for each in waiting]


# --- under load -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["steady", "headfirst"])
def test_a_host_that_is_killed_under_load_costs_no_request_whose_answer_had_not_begun(serve: Serve, mode: str) -> None:
    """Engines that send a word with the head, or the head while they read the prompt, as vLLM does."""
    two, three = serve(FAKE_MODES=mode), serve(FAKE_MODES=mode)
    for each in (two, three):
        each.configure(entry("a", None))
    started(two, three)
    front = fronted(serve, two, three)

    killed: list[float] = []

    def kill() -> None:
        assert hosts(front)["h2"].requests > 0, "nothing was with it"
        two.kill()
        killed.append(time.monotonic())

    outcomes = load(front.gateway_port, 400 if mode == "steady" else 160, meanwhile=kill)
    failed = [each for each in outcomes if not each.whole]
    assert [each for each in failed if not each.begun] == []
    assert all(each.streamed for each in failed)
    assert len(failed) <= 32, "more than were under way"
    assert {each.status for each in outcomes} == {200}
    counts = {name: metric(front.gateway_port, "autolaunch_host_failures_total", host=name) for name in ("h2", "h3")}
    assert counts == {"h2": 1.0, "h3": 0.0}
    (down,) = front.told("host.down")
    assert (down["host"], down["level"]) == ("h2", "warning")
    in_state(front, h2="down", h3="up")
    assert hosts(front)["h2"].fault is not None
    assert (states(front, "h2"), states(front, "h3")) == ({"a": "unreachable"}, {"a": "serving"})
    assert metric(front.gateway_port, "autolaunch_host_up", host="h2") == 0.0

    # It comes back, and takes requests again.
    two.start()
    two.until(lambda: len(two.told("engine.ready", "a")) >= 1)
    began = time.monotonic()
    # Its gateway was up, and said so, before its engine was.
    until(lambda: states(front, "h2") == {"a": "serving"}, "it was not seen", BACK_SECONDS + SLACK_SECONDS)
    assert time.monotonic() - began < BACK_SECONDS + SLACK_SECONDS
    outcomes = load(front.gateway_port, 60, 12, meanwhile=lambda: None)
    assert all(each.whole for each in outcomes)
    assert metric(two.gateway_port, "autolaunch_requests_total", model="a", code="200") >= 10
    assert Counter(each["host"] for each in front.told("host.up")) == {"h2": 2, "h3": 1}
    assert front.stop() == 0
    assert three.stop() == 0
    assert two.stop(swept=False) == 0


def test_two_hosts_that_name_each_other_share_the_load_and_either_may_be_killed(serve: Serve) -> None:
    """No gateway in front: clients ask one of the two, and what it has too much of the other does."""
    two, three = serve(FAKE_MODES="steady"), serve(FAKE_MODES="headfirst")
    two.configure(host(three.gateway_port, "h3"), entry("a", None))
    three.configure(host(two.gateway_port, "h2"), entry("a", None))
    started(two, three)
    in_state(two, h3="up")
    in_state(three, h2="up")
    outcomes = load(two.gateway_port, 200, 24, meanwhile=three.kill)
    assert [each for each in outcomes if not each.whole and not each.begun] == []
    served = metric(two.gateway_port, "autolaunch_host_requests_running", host="h3")
    assert served == 0.0
    in_state(two, h3="down")
    assert ask(two.gateway_port).status == 200
    assert two.stop() == 0
    three.nothing_left(10.0, swept=False)


def test_requests_are_spread_over_hosts_by_what_each_has_to_do(serve: Serve) -> None:
    two, three = serve(FAKE_MODES="steady"), serve(FAKE_MODES="steady")
    two.configure(entry("a", None))
    three.configure(entry("a", None, pinned={"data_parallel": 2}))
    started(two, three)
    three.until(lambda: three.told("engine.ready", "a#2"))
    front = fronted(serve, two, three)
    until(lambda: _engines(three) == 2, "not both serve")
    time.sleep(2.5)  # until the front has asked again, which it does every two seconds
    streams = [Stream(front.gateway_port, words=400, user=f"user {number}") for number in range(24)]
    until(lambda: all(each.words for each in streams), "a stream did not begin")
    shares = {name: each.requests for name, each in hosts(front).items()}
    assert sum(shares.values()) == 24
    assert 5 <= shares["h2"] <= 11, shares  # of three engines it has one
    for stream in streams:
        stream.leave()
    until(lambda: sum(each.requests for each in hosts(front).values()) == 0, "it is counted still")
    assert all(each.stop() == 0 for each in (front, two, three))


def _engines(one: Served) -> int:
    (found,) = get(one.gateway_port, "/v1/models", autolaunch_hop="1").document["data"]
    return int(found["engines"])


def test_streams_that_wait_for_their_first_word_lose_nothing_when_their_host_is_killed(serve: Serve) -> None:
    two, three = serve(FAKE_MODES="headfirst"), serve(FAKE_MODES="headfirst")
    for each in (two, three):
        each.configure(entry("a", None))
    started(two, three)
    front = fronted(serve, two, three)
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(asked, front.gateway_port, 2 * number) for number in range(16)]
        until(lambda: sum(each.requests for each in hosts(front).values()) == 16, "not all are under way", 5.0)
        share = hosts(front)["h2"].requests
        assert share > 0, "nothing was with it"
        two.kill()
        outcomes = [each.result() for each in waiting]
    assert [each for each in outcomes if not each.whole and not each.begun] == []
    moved = metric(three.gateway_port, "autolaunch_requests_total", model="a", code="200") - (16 - share)
    assert moved > 0, "all of them had a word before their host was killed"
    assert front.stop() == 0
    assert three.stop() == 0
    two.nothing_left(10.0, swept=False)


# --- hosts that hang ----------------------------------------------------------------------------------------------


def test_a_host_that_is_frozen_loses_what_it_has_within_the_stated_time(serve: Serve) -> None:
    two, three = serve(FAKE_MODES="steady"), serve(FAKE_MODES="steady")
    for each in (two, three):
        each.configure(entry("a", None))
    started(two, three)
    front = fronted(serve, two, three)
    streams = [Stream(front.gateway_port, words=2500, user=f"user {number}") for number in range(12)]
    until(lambda: all(each.words for each in streams), "a stream did not begin")
    assert two.process is not None
    began = time.monotonic()
    two.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(16) as pool:
            outcomes = list(pool.map(lambda number: asked(front.gateway_port, number), range(1, 33, 2)))
        assert [each for each in outcomes if not each.whole] == []
        assert max(each.seconds for each in outcomes) < LOST_SECONDS + SLACK_SECONDS
        in_state(front, h2="down", h3="up")
        until(lambda: any(each.over for each in streams), "nothing was given up", LOST_SECONDS + SLACK_SECONDS)
        took = time.monotonic() - began
        assert took < LOST_SECONDS + SLACK_SECONDS
        cut = [each for each in streams if each.over]
        for stream in cut:
            told = stream.told()
            assert told.error is not None
            assert told.error["code"] == "engine_died"
        # Those of the other host go on.
        assert 0 < len(cut) < 12
    finally:
        two.signal(signal.SIGCONT)
    in_state(front, h2="up", h3="up")
    for stream in streams:
        if not stream.over:
            stream.leave()
    assert all(each.stop() == 0 for each in (front, two, three))


@contextmanager
def taking_and_silent() -> Iterator[int]:
    """A port that takes connections and says nothing on them."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@contextmanager
def full() -> Iterator[int]:
    """A port whose queue of connections is full: whoever connects waits."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        held = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            held.append(one)
        yield port
        for one in held:
            one.close()


@pytest.mark.parametrize("made_so", [taking_and_silent, full], ids=["silent", "full"])
def test_a_host_that_hangs_on_accept_holds_up_nothing(serve: Serve, made_so: Callable[[], object]) -> None:
    two = serve()
    two.configure(entry("a", None))
    started(two)
    with made_so() as silent:  # type: ignore[attr-defined]  # one of the two above
        front = serve()
        front.configure(host(two.gateway_port, "h2"), host(silent, "h3", models=["a", "b"]))
        front.start()
        front.until(lambda: front.told("daemon.ready"))
        in_state(front, h2="up", h3="down")
        assert "within 2 s" in (hosts(front)["h3"].fault or "")
        began = time.monotonic()
        assert [ask(front.gateway_port, user=str(number)).status for number in range(10)] == [200] * 10
        assert time.monotonic() - began < 2.0
        refused = ask(front.gateway_port, model="b")
        assert (refused.status, refused.code) == (503, "model_unreachable")
        assert int(refused.headers["retry-after"]) >= 1
        assert front.stop() == 0
    assert two.stop() == 0


def test_when_both_hosts_are_down_it_is_503_with_a_time_and_who_waits_is_served(serve: Serve) -> None:
    two, three = serve(), serve()
    for each in (two, three):
        each.configure(entry("a", None))
    started(two, three)
    front = fronted(serve, two, three)
    two.kill()
    three.kill()
    in_state(front, h2="down", h3="down")
    refused = ask(front.gateway_port)
    assert (refused.status, refused.code) == (503, "model_unreachable")
    assert int(refused.headers["retry-after"]) >= 1
    assert get(front.gateway_port, "/ready").status == 503
    with Asker(front.gateway_port) as waiting:
        waiting.send("POST", CHAT, chat(), {"Prefer": "wait=60"})
        three.start()
        assert waiting.answer().status == 200
    assert get(front.gateway_port, "/ready").status == 200
    assert front.stop() == 0
    assert three.stop(swept=False) == 0
    two.nothing_left(10.0, swept=False)


# --- keys and configuration -------------------------------------------------------------------------------------------


def keyed(one: Served, secret: str) -> None:
    keys = one.folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(key_of("front", secret).line + "\n")
    one.configure(entry("a", None), keys_file=str(keys))


def key_file(folder: Path, secret: str) -> Path:
    path = folder / "h2.key"
    path.touch(mode=0o600)
    path.write_text(secret + "\n")
    return path


def test_a_wrong_key_is_told_without_it_and_mended_by_a_reload(serve: Serve, tmp_path: Path) -> None:
    right, wrong, clients = made(), made(), made()
    two = serve()
    keyed(two, right)
    started(two)
    front = serve()
    file = key_file(tmp_path, wrong)
    own = front.folder / "keys"
    own.touch(mode=0o600)
    own.write_text(key_of("web", clients).line + "\n")
    front.configure(host(two.gateway_port, "h2", api_key_file=str(file)), entry("a", None), keys_file=str(own))
    started(front)
    in_state(front, h2="down")
    fault = hosts(front)["h2"].fault
    assert fault is not None
    assert "401" in fault
    # A client's key is for the gateway that it asks, and the host's for the host.
    assert ask(front.gateway_port, headers=key(right)).status == 401
    assert ask(front.gateway_port, headers=key(clients)).status == 200
    assert ask(two.gateway_port, headers=key(clients)).status == 401
    held = Stream(front.gateway_port, words=5, headers=key(clients))
    file.write_text(right)
    front.signal(signal.SIGHUP)
    in_state(front, h2="up")
    held.told()
    outcomes = [ask(front.gateway_port, headers=key(clients), user=str(number)).status for number in range(12)]
    assert outcomes == [200] * 12
    assert metric_of(two, right) > 0
    said = b"".join((front.said.read_bytes(), two.said.read_bytes(), client(front).status().hosts.__repr__().encode()))
    state = (front.home / "daemon" / "state.json").read_bytes()
    page = get(front.gateway_port, "/metrics", Authorization=f"Bearer {clients}").body
    for secret in (right, wrong, clients):
        assert secret.encode() not in said + state + page
    assert front.stop() == 0
    assert two.stop() == 0


def metric_of(one: Served, secret: str) -> int:
    page = get(one.gateway_port, "/metrics", Authorization=f"Bearer {secret}").body.decode()
    (line,) = [each for each in page.splitlines() if each.startswith('autolaunch_key_requests_total{key="front"}')]
    return int(float(line.split()[-1]))


def test_a_reload_takes_hosts_in_and_drops_them_without_ending_a_request(serve: Serve) -> None:
    two, three = serve(FAKE_MODES="steady"), serve(FAKE_MODES="steady")
    for each in (two, three):
        each.configure(entry("a", None))
    started(two, three)
    front = fronted(serve, two)
    streams = [Stream(front.gateway_port, words=300, user=f"user {number}") for number in range(6)]
    until(lambda: all(each.words for each in streams), "a stream did not begin")
    front.configure(host(two.gateway_port, "h2"), host(three.gateway_port, "h3"))
    front.signal(signal.SIGHUP)
    in_state(front, h2="up", h3="up")
    front.configure(host(three.gateway_port, "h3"))
    front.signal(signal.SIGHUP)
    in_state(front, h3="up")
    assert ask(front.gateway_port, max_tokens=3).status == 200
    front.configure(host(three.gateway_port, "h3", url="ftp://h3"))
    front.signal(signal.SIGHUP)
    front.until(lambda: front.told("configuration.wrong"))
    in_state(front, h3="up")
    assert [each.told()[1:] for each in streams] == [("stop", None)] * 6
    assert all(each.stop() == 0 for each in (front, two, three))


def test_a_host_that_loads_is_passed_over_and_one_that_serves_answers_for_it(serve: Serve) -> None:
    """The first to be asked loads for two seconds; until then the other host answers, and nobody gets 503."""
    two = serve()
    two.configure(entry("a", None))
    started(two)
    own = serve(FAKE_MODES="slow")
    own.configure(host(two.gateway_port, "h2"), entry("a", None))
    own.start()
    own.until(lambda: own.told("daemon.ready"))
    in_state(own, h2="up")
    counts: Counter[int] = Counter()
    while not own.told("engine.ready"):
        counts[ask(own.gateway_port).status] += 1
    counts[ask(own.gateway_port).status] += 1
    assert counts.keys() == {200}
    listed = get(own.gateway_port, "/v1/models").document["data"]
    assert [(each["id"], each["status"]) for each in listed] == [("a", "serving")]
    assert own.stop() == 0
    assert two.stop() == 0


def test_gateways_that_name_each_other_answer_at_once_where_neither_serves(serve: Serve) -> None:
    two, three = serve(FAKE_MODES="silent"), serve(FAKE_MODES="silent")
    two.configure(host(three.gateway_port, "h3"), entry("a", None))
    three.configure(host(two.gateway_port, "h2"), entry("a", None))
    for each in (two, three):
        each.start()
        each.until(lambda: each.told("daemon.ready"))  # noqa: B023 - awaited here
    in_state(two, h3="up")
    in_state(three, h2="up")
    for each in (two, three):
        began = time.monotonic()
        refused = ask(each.gateway_port)
        assert (refused.status, refused.code) == (503, "model_loading")
        assert time.monotonic() - began < 2.0
        counted = metric(each.gateway_port, "autolaunch_requests_total", model="a", code="503")
        assert counted == 1.0, "it came round"
    # One that names itself is told so; by an address that is not its own in the configuration, when it answers.
    two.configure(host(two.gateway_port, "itself"), entry("a", None))
    two.signal(signal.SIGHUP)
    two.until(lambda: two.told("configuration.wrong"))
    own = host(two.gateway_port, "itself", url=f"http://0.0.0.0:{two.gateway_port}")
    two.configure(own, entry("a", None), allowed_hosts=["0.0.0.0"])  # noqa: S104 - a name, not what is bound
    two.signal(signal.SIGHUP)
    in_state(two, itself="down")
    assert "this gateway itself" in (hosts(two)["itself"].fault or "")
    assert two.stop() == 0
    assert three.stop() == 0


def test_a_port_that_nobody_listens_at_is_asked_for_without_end_and_costs_nothing(serve: Serve) -> None:
    two = serve()
    two.configure(entry("a", None))
    started(two)
    front = serve()
    front.configure(host(two.gateway_port, "h2"), host(free_port("127.0.0.1", 0), "gone"))
    front.start()
    front.until(lambda: front.told("host.down"))
    in_state(front, h2="up", gone="down")
    assert [ask(front.gateway_port, user=str(number)).status for number in range(20)] == [200] * 20
    time.sleep(5.0)  # what is asked of it meanwhile is to be told once
    assert len(front.told("host.down")) == 1
    assert front.stop() == 0
    assert two.stop() == 0
