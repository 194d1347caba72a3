"""``autolaunch serve`` over the fake engine with replicas: engines of one name that come and go one by one."""

from __future__ import annotations

import os
import signal
import urllib.parse
from collections.abc import Callable

import pytest

from tests.fakes.served import Served, entry
from tests.integration.test_daemon import get
from tests.integration.test_daemon_kills import kill_daemon_and_guards

pytestmark = pytest.mark.integration

Serve = Callable[..., Served]


def replicas(one: Served, count: int, **more: object) -> None:
    one.configure(entry("a", None, pinned={"data_parallel": count}, **more))


def keys(count: int) -> list[str]:
    return ["a", *(f"a#{number}" for number in range(2, count + 1))]


def begin(one: Served, count: int = 2) -> dict[str, int]:
    """Starts it with so many replicas and waits until all serve; their engines' process ids by key."""
    replicas(one, count)
    one.start()
    return serving(one, count)


def serving(one: Served, count: int) -> dict[str, int]:
    one.until(lambda: {each["deployment"] for each in one.told("engine.ready")} >= set(keys(count)))
    return {key: one.engine(key) for key in keys(count)}


def ports(one: Served) -> dict[str, int]:
    """The port of each replica's newest engine."""
    found = {each["deployment"]: urllib.parse.urlsplit(each["url"]).port for each in one.told("engine.ready")}
    return {key: port for key, port in found.items() if port is not None}


def running(one: Served) -> set[int]:
    return {each.pid for each in one.engines()}


def test_each_replica_is_an_engine_of_its_own_and_all_end_with_the_daemon(serve: Serve) -> None:
    one = serve()
    engines = begin(one)
    assert running(one) == set(engines.values())
    assert len(running(one)) == 2
    places = ports(one)
    assert len(set(places.values())) == 2
    assert [get(port)[0] for port in places.values()] == [200, 200]
    assert set(one.state()["deployments"]) == {"a", "a#2"}
    marks = {each["run"]["mark"] for each in one.state()["deployments"].values()}
    assert len(marks) == 2
    assert one.stop() == 0


def test_a_replica_that_dies_is_replaced_while_the_other_serves(serve: Serve) -> None:
    one = serve()
    engines = begin(one)
    other = ports(one)["a"]
    os.kill(engines["a#2"], signal.SIGKILL)
    one.until(lambda: one.told("engine.failed", "a#2"))
    assert get(other)[0] == 200
    one.until(lambda: len(one.told("engine.ready", "a#2")) == 2)
    one.until(lambda: one.engine("a#2") != engines["a#2"])  # the state is written a moment later
    assert running(one) == {engines["a"], one.engine("a#2")}
    assert one.told("engine.failed", "a") == []
    assert len(one.told("engine.ready", "a")) == 1
    assert get(ports(one)["a#2"])[0] == 200
    failures = {key: each.get("failures", []) for key, each in one.state()["deployments"].items()}
    assert [len(failures[key]) for key in ("a", "a#2")] == [0, 1]
    assert one.stop() == 0


def test_a_reload_adds_and_removes_replicas_and_leaves_the_others_running(serve: Serve) -> None:
    one = serve()
    engines = begin(one)
    replicas(one, 3)
    one.signal(signal.SIGHUP)
    assert serving(one, 3) | engines == serving(one, 3)
    assert len(running(one)) == 3
    replicas(one, 1)
    one.signal(signal.SIGHUP)
    one.until(lambda: len(one.told("configuration.read")) == 2)
    assert running(one) == {engines["a"]}
    removed = {each["deployment"]: each["message"] for each in one.told("deployment.removed")}
    assert set(removed) == {"a#2", "a#3"}
    assert "fewer replicas" in removed["a#2"]
    one.until(lambda: set(one.state()["deployments"]) == {"a"})
    assert len(one.told("engine.ready", "a")) == 1
    assert one.stop() == 0


def test_replicas_that_a_killed_daemon_left_are_ended_those_that_are_gone_from_the_plan_too(serve: Serve) -> None:
    one = serve(FAKE_MODES="children")
    engines = begin(one, 3)
    before = {each.pid for each in one.processes()}
    kill_daemon_and_guards(one)
    one.until(lambda: one.engines() == [])  # they went with their guards, and what they had started did not
    assert len(one.processes()) == 3 * 2
    again = begin(one, 2)
    assert not before & {each.pid for each in one.processes()}
    assert running(one) == set(again.values())
    assert {each["deployment"] for each in one.told("engine.left")} == set(engines)
    one.until(lambda: set(one.state()["deployments"]) == {"a", "a#2"})
    assert one.stop(swept=False) == 0


def test_a_replica_that_is_given_up_on_leaves_the_other_serving(serve: Serve) -> None:
    """The second to start ends at once, however often it is tried."""
    one = serve(FAKE_MODES="ready,exit")
    replicas(one, 2)
    one.start()
    one.until(lambda: one.told("engine.ready") and one.told("engine.failed"))
    (ready,) = one.told("engine.ready")
    assert {each["deployment"] for each in one.told("engine.failed")} == set(keys(2)) - {ready["deployment"]}
    assert get(ports(one)[ready["deployment"]])[0] == 200
    assert one.stop() == 0
