"""The control API of a real daemon, over the fake engine."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from autolaunch.client import Client
from autolaunch.daemon.control import connection
from autolaunch.daemon.control.contract import EventDocument
from autolaunch.daemon.control.listening import connected
from autolaunch.daemon.ports import free_port
from selector.errors import NotServing, UnknownDeployment, UsageError, WaitTimedOut
from tests.fakes.served import Served, entry

pytestmark = pytest.mark.integration
Serve = Callable[..., Served]

#: Stands in the environment of the daemon and is printed by its engine: it may be in no answer.
SENTINEL = "hf_sentinel0123456789"


def client_of(one: Served) -> Client:
    return Client(one.home / "control" / "control.sock", timeout_seconds=10.0)


def begun(one: Served) -> Client:
    one.begin()
    return client_of(one)


def raw(client: Client, *pieces: bytes, pause_seconds: float = 0.0, timeout_seconds: float = 5.0) -> bytes:
    """All that comes back for what is sent, until the connection is closed or nothing more comes."""
    with connected(client.path, timeout_seconds) as one:
        answer = b""
        try:
            for piece in pieces:
                one.sendall(piece)
                time.sleep(pause_seconds)  # as slow as the client is to be
            while data := one.recv(65536):
                answer += data
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
        return answer


def asked(client: Client, line: str, *headers: str, host: str = "localhost", body: bytes = b"") -> tuple[int, object]:
    """The status and the document that one request gets."""
    head = "".join(f"{each}\r\n" for each in (line + " HTTP/1.1", f"Host: {host}", "Connection: close", *headers))
    answer = raw(client, head.encode() + b"\r\n" + body)
    first, _, rest = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(rest) if b"application/json" in first else rest


# --- what is seen ------------------------------------------------------------------------------------------


def test_it_is_ready_when_the_socket_answers_and_the_socket_goes_with_it(serve: Serve) -> None:
    one = serve()
    client = client_of(one)
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    status = client.status()
    assert one.process is not None
    assert (status.kind, status.pid, status.wrong) == ("daemon", one.process.pid, None)
    assert status.configuration == str(one.configuration)
    assert [each.name for each in status.deployments] == ["a"]
    path = client.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert one.stop() == 0
    assert not path.exists()


def test_a_deployment_its_plan_and_its_log_are_shown(serve: Serve) -> None:
    one = serve(FAKE_OPTIONS="--say 'a line of the engine'")
    client = begun(one)
    (found,) = client.deployments()
    (replica,), (again,) = found.replicas, client.deployment("a").replicas
    assert replace(again, measurements=()) == replace(replica, measurements=()), "its memory is what it is now"
    assert (found.name, found.model, found.phase, replica.unit) == ("a", "glm-tiny", "ready", "a")
    assert replica.engine is not None
    assert replica.engine.pid == one.engine("a")
    assert replica.chosen is not None
    plan = client.plan("a")
    assert plan.chosen is not None
    assert plan.chosen.engine == replica.chosen.engine
    assert "listening" in list(client.logs("a"))
    assert list(client.logs("a", lines=0)) == []
    with pytest.raises(UnknownDeployment, match="no deployment b"):
        client.deployment("b")
    with pytest.raises(UsageError):
        list(client.logs("a", lines=-1))
    assert one.stop() == 0


def test_why_one_is_given_up_on_is_shown_with_its_last_lines(serve: Serve) -> None:
    one = serve(FAKE_MODES="exit", FAKE_OPTIONS="--say 'vllm: error: unrecognized arguments: --no-such-option'")
    one.start()
    one.until(lambda: one.told("deployment.failed"))
    one.until(lambda: client_of(one).deployment("a").phase == "failed")  # what ran is ended first
    (replica,) = client_of(one).deployment("a").replicas
    assert replica.fault is not None
    assert "--no-such-option" in replica.fault.message
    assert any("unrecognized" in line for line in replica.fault.lines)
    assert any("unrecognized" in line for line in client_of(one).logs("a"))
    with pytest.raises(NotServing) as error:
        client_of(one).wait("a")
    assert "autolaunch retry a" in str(error.value.hint)
    assert one.stop() == 0


# --- what is wanted ----------------------------------------------------------------------------------------


def test_stop_keeps_it_stopped_over_a_restart_of_the_daemon_until_it_is_started(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    assert client.stop("a").phase == "draining"
    client.wait("a", phase="stopped", timeout_seconds=10)
    assert one.engines() == []
    with pytest.raises(NotServing, match="it is stopped"):
        client.wait("a")
    assert one.stop() == 0
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    assert client.deployment("a").phase == "stopped"
    client.start("a")
    client.wait("a", timeout_seconds=20)
    assert len(one.engines()) == 1
    assert one.stop() == 0


def test_restart_replaces_the_engine(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    before = one.engine("a")
    client.restart("a")
    client.wait("a", timeout_seconds=20)
    one.until(lambda: not psutil.pid_exists(before))
    assert len(one.engines()) == 1
    assert one.stop() == 0


def test_retry_clears_what_was_given_up_on_and_a_reload_does_not(serve: Serve) -> None:
    one = serve(FAKE_MODES="exit,ready", FAKE_OPTIONS="--say 'vllm: error: unrecognized arguments: --no-such-option'")
    one.start()
    one.until(lambda: one.told("deployment.failed"))
    client = client_of(one)
    assert client.reload().holds
    assert client.deployment("a").phase == "failed"
    client.retry("a")
    client.wait("a", timeout_seconds=20)
    assert one.stop() == 0


def test_a_reload_tells_whether_the_new_configuration_holds(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    one.configure(entry("a", one.port, prot=5))
    told = client.reload()
    assert not told.holds
    assert "deployments[0]" in str(told.wrong)
    assert client.status().wrong == told.wrong
    one.configure(entry("a", one.port), entry("b", free_port("127.0.0.1", 0)))
    assert client.reload().holds
    assert client.status().wrong is None
    client.wait(timeout_seconds=20)
    assert [each.name for each in client.deployments()] == ["a", "b"]
    assert one.stop() == 0


def test_a_wait_has_an_end(serve: Serve) -> None:
    one = serve(FAKE_MODES="silent")
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    with pytest.raises(WaitTimedOut) as error:
        client_of(one).wait("a", timeout_seconds=0.3)
    assert error.value.exit_code == 124
    assert one.stop() == 0


# --- streams -----------------------------------------------------------------------------------------------


class Followed:
    """What a stream has given so far, read in a thread."""

    def __init__(self, stream: Iterator[object]) -> None:
        self.found: list[object] = []
        self.ended = threading.Event()
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self.found.extend(self._told())
        self.ended.set()

    def _told(self) -> Iterator[object]:
        for each in self._stream:
            self.found.append(each)
        yield from ()


def test_a_log_is_followed_over_a_restart_of_the_engine(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    followed = Followed(client.logs("a", lines=1, follow=True))
    one.until(lambda: followed.found == ["listening"])
    client.restart("a")
    one.until(lambda: followed.found.count("listening") == 2)
    assert one.stop() == 0
    assert followed.ended.wait(5), "it ends with the daemon"


def test_events_are_followed_from_the_first_and_end_with_the_daemon(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    followed = Followed(client.events(follow=True))
    one.until(lambda: len(followed.found) >= len(list(client.events())))
    client.stop("a")
    one.until(lambda: "control.stop" in [each.event for each in followed.found if isinstance(each, EventDocument)])
    assert one.stop() == 0
    assert followed.ended.wait(5)
    events = [each for each in followed.found if isinstance(each, EventDocument)]
    assert [each.serial for each in events] == list(range(1, len(events) + 1))
    assert {"daemon.ready", "engine.ready", "daemon.stopping"} <= {each.event for each in events}


def test_who_does_not_read_holds_nothing_up_and_who_leaves_is_forgotten(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    head = b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    stuck = []
    for _ in range(20):
        each = connected(client.path, 5.0)
        each.sendall(head)
        stuck.append(each)
    for _ in range(300):
        client.reload()
    assert client.deployment("a").phase == "ready"
    for each in stuck:
        each.close()
    assert one.stop() == 0
    assert one.told("internal") == []


# --- who may ask, and how ------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is tried by a process of root's that becomes one")
def test_another_user_gets_nothing_even_where_the_socket_lets_it_in(serve: Serve) -> None:
    # A short path that anybody may go along: that of a test is neither.
    with tempfile.TemporaryDirectory(prefix="al-") as folder:
        Path(folder).chmod(0o755)
        one = serve(RUNTIME_DIRECTORY=folder)
        one.begin()
        client = Client(Path(folder) / "control.sock")
        client.path.chmod(0o666)
        answers = {_as_nobody(client.path, line) for line in LINES}
        assert len(answers) == 1, "nothing is to be learned from it"
        assert " 403 " in answers.pop().splitlines()[0]
        assert client.deployment("a").phase == "ready"
        client.path.chmod(0o660)
        assert _as_nobody(client.path, LINES[0]) == "PermissionError"
        assert one.stop() == 0


LINES = ("GET /v1/status", "GET /v1/nothing", "POST /v1/deployments/a/stop", "GET /v1/deployments/b")


def _as_nobody(place: Path, line: str) -> str:
    """What another user gets, by a child that becomes one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        told = b"nothing"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with connected(place, 5.0) as one:
                one.sendall(line.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                told = b"".join(iter(lambda: one.recv(65536), b""))
        except OSError as error:
            told = type(error).__name__.encode()
        finally:
            os.write(writing, told)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        found = answer.read().decode()
    os.waitpid(child, 0)
    return re.sub(r"Date: .*", "", found)


def test_pages_in_browsers_and_other_names_are_refused(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    assert asked(client, "GET /v1/status")[0] == 200
    for host in ("localhost:80", "autolaunch", "127.0.0.1:9", "[::1]:9", "LOCALHOST"):
        assert asked(client, "GET /v1/status", host=host)[0] == 200, host
    for host in ("evil.example", "localhost.evil.example", "", "[::1", "169.254.169.254", "autolaunch.evil.example"):
        assert asked(client, "GET /v1/status", host=host)[0] == 403, host
    assert asked(client, "POST /v1/deployments/a/stop", "Origin: http://localhost")[0] == 403
    assert asked(client, "POST /v1/deployments/a/stop", "Origin: null")[0] == 403
    assert asked(client, "GET /v1/status", "Host: localhost")[0] in (400, 403), "two names"
    assert raw(client, b"GET /v1/status HTTP/1.1\r\nConnection: close\r\n\r\n").split()[1] in (b"400", b"403")
    assert client.deployment("a").phase == "ready"
    assert one.stop() == 0


def test_bodies_are_bounded_and_none_is_taken(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    line = "POST /v1/deployments/a/restart"
    assert asked(client, line, "Content-Length: 2", body=b"{}")[0] == 400
    assert asked(client, line, "Content-Length: 5000", body=b"x" * 5000)[0] == 413
    assert asked(client, line, "Content-Length: 99999999999")[0] == 413
    began = time.monotonic()
    assert asked(client, line, "Content-Length: 2", "Expect: 100-continue")[0] == 413
    assert time.monotonic() - began < connection.BODY_SECONDS / 2
    chunks = b"400\r\n" + b"x" * 1024 + b"\r\n"
    assert asked(client, line, "Transfer-Encoding: chunked", body=chunks * 8 + b"0\r\n\r\n")[0] == 413
    assert asked(client, line, "Transfer-Encoding: chunked", body=b"zz\r\n")[0] == 400
    assert asked(client, line, "Content-Length: 0")[0] == 200
    assert one.told("internal") == []
    assert one.stop() == 0


def test_what_is_no_request_gets_4xx_and_never_500(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    heads = (
        b"\x00\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status\r\n\r\n",
        b"GET http://localhost/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET /v1/deployments/%2e%2e%2f%00/logs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/deployments/\xff/logs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    )
    for head in heads:
        answer = raw(client, head, timeout_seconds=0.5)
        code = int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0
        assert code in {0, 200} or 400 <= code < 500, (head[:60], answer[:300])
        if code >= 400:
            assert b'"error"' in answer, (head[:60], answer)
    assert client.status().kind == "daemon"
    assert one.told("internal") == []
    assert one.stop() == 0


@pytest.mark.timeout(60)
def test_a_head_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    began = time.monotonic()
    pieces = (b"GET /v1/status HTTP/1.1\r\n", *(b"X: y\r\n" for _ in range(40)))
    assert raw(client, *pieces, pause_seconds=0.5, timeout_seconds=30.0) == b""
    assert time.monotonic() - began < connection.HEAD_SECONDS + 5.0
    assert one.stop() == 0


def test_connections_are_bounded_and_others_are_served_when_they_leave(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    idle = [connected(client.path, 5.0) for _ in range(connection.CONNECTIONS + 10)]
    assert idle[-1].recv(1) == b"", "one too many"
    for each in idle:
        each.close()
    one.until(lambda: _status_of(client) == 200)
    assert one.stop() == 0


def _status_of(client: Client) -> int:
    try:
        return asked(client, "GET /v1/status")[0]
    except (OSError, IndexError, http.client.HTTPException):
        return 0


# --- two at once, and what is left ---------------------------------------------------------------------------


def test_a_socket_that_a_killed_daemon_left_is_replaced(serve: Serve) -> None:
    one = serve()
    client = begun(one)
    one.kill()
    assert client.path.exists()
    one.begin()
    assert client.deployment("a").phase == "ready"
    assert one.stop() == 0


def test_a_second_daemon_does_not_take_the_socket_of_the_first(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    first, second = serve(RUNTIME_DIRECTORY=str(folder)), serve(RUNTIME_DIRECTORY=str(folder))
    first.begin()
    client = Client(folder / "control.sock")
    assert first.process is not None
    assert client.status().pid == first.process.pid
    assert second.start().wait(20) == 5
    assert "another process listens" in second.said.read_text()
    second.nothing_left()
    assert client.status().pid == first.process.pid
    assert first.stop() == 0


def test_no_secret_is_in_any_answer(serve: Serve) -> None:
    one = serve(HF_TOKEN=SENTINEL, FAKE_MODES="ready,exit", FAKE_OPTIONS=f"--say 'token {SENTINEL}'")
    client = begun(one)
    os.kill(one.engine("a"), signal.SIGKILL)
    one.until(lambda: client.deployment("a").phase in ("failed", "backing off"))
    answers = [
        json.dumps(asked(client, f"GET {path}")[1], default=bytes.decode)
        for path in (
            *("/v1/status", "/v1/deployments", "/v1/deployments/a", "/v1/deployments/a/plan"),
            *("/v1/deployments/a/logs?lines=10000", "/v1/events", "/v1/openapi.json"),
        )
    ]
    assert all(len(answer) > 2 for answer in answers[:4])
    assert SENTINEL not in "".join(answers)
    assert one.stop() == 0
    assert SENTINEL not in one.said.read_text()
