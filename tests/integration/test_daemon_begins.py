"""``autolaunch serve`` over the fake engine, where something hangs or is wrong when it begins or ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autolaunch.daemon.doorman import CLIENTS, REQUEST_BYTES, Doorman
from autolaunch.daemon.ports import free_port
from tests.fakes.served import Served, entry
from tests.integration.test_daemon import get

Serve = Callable[..., Served]


def test_a_deployment_that_cannot_be_planned_keeps_no_other_from_serving(serve: Serve, tmp_path: Path) -> None:
    """An engine's path that holds none: the daemon stays to explain it."""
    one = serve()
    one.configure(entry("a", one.port), entry("b", free_port("127.0.0.1", 0), engine_path=str(tmp_path / "none")))
    one.begin()
    one.until(lambda: one.told("deployment.failed", "b"))
    assert str(tmp_path / "none") in one.told("deployment.failed", "b")[0]["message"]
    assert get(one.port)[0] == 200
    assert one.stop() == 0


def test_a_probe_that_hangs_while_it_begins_does_not_keep_it_from_ending(serve: Serve) -> None:
    one = serve(FAKE_PROBE_HANGS_AFTER="0")
    one.start()
    one.until((one.home / "daemon" / "daemon.lock").exists)
    time.sleep(0.5)
    assert one.stop(5.0) == 0
    assert one.told("daemon.ready") == []


def test_a_probe_that_hangs_while_it_plans_is_waited_for_no_longer_than_the_bound(serve: Serve) -> None:
    one = serve(FAKE_PROBE_HANGS_AFTER="1")
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    asked_at = time.monotonic()
    assert one.stop(10.0) == 0
    assert time.monotonic() - asked_at >= 2.0
    assert one.told("daemon.hangs")


def test_a_port_that_others_take_while_a_model_sleeps_is_said_and_taken_back(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", one.port, idle_seconds=1))
    one.start()
    one.until(lambda: one.told("engine.ready"))
    taken = threading.Event()

    def squat() -> None:
        """Takes the port in the moment between the engine and the door."""
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            try:
                with socket.create_server(("127.0.0.1", one.port)):
                    one.until(lambda: one.told("door"))
                    taken.set()
                    return
            except OSError:
                continue

    thread = threading.Thread(target=squat)
    thread.start()
    one.until(lambda: one.told("engine.idle"))
    thread.join(20.0)
    if not taken.is_set():
        one.stop()
        pytest.skip("the door was faster")
    one.until(lambda: _open(one.port))
    assert one.stop() == 0


def _open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


# --- the door ----------------------------------------------------------------------------------------


def at_the_door(story: Callable[[Doorman, list[None]], object]) -> list[None]:
    """Opens a door and lets clients come to it, in a thread; what was asked."""
    asked: list[None] = []

    async def play() -> None:
        door = Doorman("127.0.0.1", free_port("127.0.0.1", 0), lambda: asked.append(None))
        await door.open(15.0)
        await asyncio.to_thread(story, door, asked)
        door.close()
        assert not _open(door.port)

    asyncio.run(asyncio.wait_for(play(), 30.0))
    return asked


def told(door: Doorman, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", door.port), 10.0) as client:
        try:
            client.sendall(request)
            return b"".join(iter(lambda: client.recv(65_536), b""))
        except ConnectionError:
            return b""


def test_every_client_is_told_when_to_come_again_and_the_first_wakes() -> None:
    def story(door: Doorman, _asked: list[None]) -> None:
        for _ in range(3):
            answer = told(door, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 15\r\n" in answer

    assert len(at_the_door(story)) == 1


def test_heads_without_an_end_wake_nobody_and_are_cut() -> None:
    def story(door: Doorman, _asked: list[None]) -> None:
        assert told(door, b"GET / HTTP/1.1\r\nX: " + b"x" * (4 * REQUEST_BYTES)) == b""

    assert at_the_door(story) == []


def test_clients_that_say_nothing_are_few_and_sent_away() -> None:
    def story(door: Doorman, _asked: list[None]) -> None:
        began = time.monotonic()
        clients = [socket.create_connection(("127.0.0.1", door.port), 10.0) for _ in range(CLIENTS + 20)]
        assert b"".join(client.recv(100) for client in clients) == b""
        assert time.monotonic() - began < 8.0
        for client in clients:
            client.close()

    assert at_the_door(story) == []


def test_a_door_that_is_closed_while_it_opens_stays_closed() -> None:
    async def play() -> None:
        door = Doorman("127.0.0.1", free_port("127.0.0.1", 0), lambda: None)
        opening = asyncio.ensure_future(door.open(1.0))
        await asyncio.sleep(0)
        door.close()
        await opening
        assert not door.is_open
        assert not await asyncio.to_thread(_open, door.port)

    asyncio.run(play())


def test_a_sleeping_models_door_moves_with_its_port(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", one.port, idle_seconds=1))
    one.start()
    one.until(lambda: one.told("engine.idle"))
    one.until(lambda: one.engines() == [] and _open(one.port))
    other = free_port("127.0.0.1", 0)
    one.configure(entry("a", other, idle_seconds=1))
    one.signal(signal.SIGHUP)
    one.until(lambda: _open(other))
    assert not _open(one.port)
    assert one.engines() == []
    assert one.stop() == 0
