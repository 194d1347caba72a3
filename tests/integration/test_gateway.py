"""The gateway of ``autolaunch serve`` over the fake engine: names, keys, pages, what passes whole, and what is told."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autolaunch import Client
from autolaunch.daemon.gateway.keys import key_of
from autolaunch.daemon.gateway.serve import ROUTES
from autolaunch.daemon.ports import free_port
from tests.fakes.asking import CHAT, Asker, Stream, ask, chat, get, key, metric
from tests.fakes.engine import CALLS, THOUGHTS
from tests.fakes.served import ROOT, Served, entry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

Serve = Callable[..., Served]

FIRST, SECOND = "al-sentinel-first-key-0123456789abcdef", "al-sentinel-second-key-0123456789abcdef"
HUB_TOKEN = "hf_sentinel0hub1token2of3this4test"  # noqa: S105 - nobody's
PATHS = (*ROUTES, "/v1/models", "/v1/models/a", "/health", "/ready", "/metrics", "/", "/v1/nothing", "/docs")


def keys_file(one: Served, **secrets: str) -> Path:
    path = one.folder / "keys"
    path.write_text("".join(f"{key_of(name, secret).line}\n" for name, secret in secrets.items()))
    path.chmod(0o600)
    return path


def begin(one: Served, *names: str) -> None:
    one.start()
    one.until(lambda: all(one.told("engine.ready", name) for name in names))


def client(one: Served) -> Client:
    return Client(one.home / "control" / "control.sock")


def reload(one: Served) -> None:
    """By SIGHUP; waits until it was read or refused."""
    before = len(one.told("configuration.read") + one.told("configuration.wrong"))
    one.signal(signal.SIGHUP)
    one.until(lambda: len(one.told("configuration.read") + one.told("configuration.wrong")) > before)


def autolaunch(one: Served, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        (sys.executable, "-m", "autolaunch", *arguments),
        cwd=ROOT,
        env=one.environ,
        capture_output=True,
        timeout=60,
        check=False,
    )


# --- what passes whole --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two deployments that no test of this part stops: one calls tools, one says what it was asked."""
    one = Served(tmp_path_factory.mktemp("several"), environ={"FAKE_MODES": "calls,echo"})
    one.configure(entry("glm-tools", None))
    try:
        begin(one, "glm-tools")
        one.configure(entry("glm-tools", None), entry("glm-echo", None))
        reload(one)
        one.until(lambda: one.told("engine.ready", "glm-echo"))
        yield one
        assert one.stop() == 0
    finally:
        one.close()


def test_deployments_are_asked_by_their_names_and_a_wrong_one_names_the_nearest(several: Served) -> None:
    port = several.gateway_port
    listed = get(port, "/v1/models").document["data"]
    assert [(each["id"], each["object"], each["status"]) for each in listed] == [
        ("glm-tools", "model", "serving"),
        ("glm-echo", "model", "serving"),
    ]
    answer = ask(port, model="glm-toolz")
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert "did you mean 'glm-tools'?" in answer.document["error"]["message"]
    for wild in (
        "../../etc/passwd",
        "glm-tools\x00",
        "\uff47\uff4c\uff4d-tools",
        "/glm-tools",
        "glm-tools\n",
        "a" * 299,
        "",
    ):
        answer = ask(port, model=wild)
        assert answer.status in (400, 404)
        assert len(answer.body) < 1000
    assert ask(port, model="a" * 301).status == 400
    assert ask(port, model="glm-echo").status == 200


def test_images_pass_whole(several: Served) -> None:
    """3 MB of them, as an address with the data in it, beside text that is no ASCII."""
    picture = base64.b64encode(os.urandom(3 * 2**20)).decode()
    parts = [
        {"type": "text", "text": 'Was ist das? \u00fc \u2603 \U0001f600 "\\'},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    messages = [{"role": "user", "content": parts}]
    said = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    answer = ask(several.gateway_port, model="glm-echo", messages=messages)
    assert answer.status == 200
    assert answer.document["choices"][0]["message"]["content"] == hashlib.sha256(said.encode()).hexdigest()


def test_calls_of_tools_and_reasoning_pass_whole(several: Served) -> None:
    port = several.gateway_port
    wanted = [(each, name, "".join(pieces)) for each, name, pieces in CALLS]
    message = ask(port, model="glm-tools").document["choices"][0]["message"]
    assert message["reasoning_content"] == "".join(THOUGHTS)
    calls = [(each["id"], each["function"]["name"], each["function"]["arguments"]) for each in message["tool_calls"]]
    assert calls == wanted
    stream = Stream(port, model="glm-tools")
    assert stream.told().finish == "tool_calls"
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in stream.data.decode().splitlines()
        if line.startswith("data: {")
    ]
    assert [each["reasoning_content"] for each in deltas if "reasoning_content" in each] == list(THOUGHTS)
    found: dict[int, list[str]] = {}
    for call in (call for each in deltas for call in each.get("tool_calls", ())):
        if "id" in call:
            found[call["index"]] = [call["id"], call["function"]["name"], ""]
        found[call["index"]][2] += call["function"]["arguments"]
    assert [tuple(each) for each in found.values()] == wanted


def test_pages_and_names_that_are_not_ours_are_refused_at_both_doors(several: Served) -> None:
    port = several.gateway_port
    for path in PATHS:
        for method in ("GET", "POST", "OPTIONS"):
            assert get(port, path, method=method, Origin="https://evil.example").status == 403
            assert get(port, path, method=method, Origin="null").status == 403
            answer = get(port, path, method=method, Host="evil.example")
            assert answer.status == 403
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]"):
        assert get(port, "/v1/models", Host=host).status == 200
    for host in ("127.0.0.1.evil.example", "localhost.evil.example", "localhost@evil.example", "a b", "", "x" * 300):
        assert get(port, "/v1/models", Host=host).status in (400, 403)
    socket_path = several.home / "control" / "control.sock"
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    for header in ("Host: evil.example", "Host: localhost\r\nOrigin: http://localhost", "Host: localhost\r\nHost: b"):
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(socket_path))
            asked.settimeout(30)
            asked.sendall(
                f"POST /v1/deployments/glm-tools/stop HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n".encode()
            )
            assert asked.recv(64)[8:13] in (b" 403 ", b" 400 ")
    assert get(port, "/ready").status == 200


def test_only_the_gateway_listens_beyond_the_engines_loopback(several: Served) -> None:
    listening = {
        (each.laddr.ip, each.laddr.port)
        for process in several.processes()
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", several.gateway_port) in listening
    assert len(listening) == 3
    assert {ip for ip, _ in listening} == {"127.0.0.1"}


def test_metrics_move_with_traffic_and_hold_no_name_that_a_client_made_up(several: Served) -> None:
    port = several.gateway_port

    def counted(**labels: str) -> float:
        return metric(port, "autolaunch_requests_total", **labels)

    before = [counted(model="glm-tools", code="200"), counted(model="unknown", code="404")]
    assert ask(port, model="glm-tools").status == 200
    Stream(port, model="glm-tools").told()
    for number in range(20):
        assert ask(port, model=f'junk-{number}"\n# evil').status == 404
    after = [counted(model="glm-tools", code="200"), counted(model="unknown", code="404")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 20]
    assert metric(port, "autolaunch_requests_running") == 0
    assert metric(port, "autolaunch_engine_starts_total") == 2
    page = get(port, "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert b"junk" not in page.body
    if (promtool := shutil.which("promtool")) is not None:
        checked = subprocess.run(
            (promtool, "check", "metrics"), input=page.body, capture_output=True, timeout=60, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, b"")


# --- keys ---------------------------------------------------------------------------------------------------


def test_no_route_answers_without_its_key(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", None), keys_file=str(keys_file(one, first=FIRST)))
    begin(one, "a")
    port = one.gateway_port
    wrong: tuple[dict[str, str], ...] = (
        {},
        key("al-wrong"),
        key(FIRST[:-1]),
        key(FIRST + "x"),
        key(f"{FIRST} {FIRST}"),
        {"Authorization": FIRST},
        {"Authorization": f"Basic {FIRST}"},
        {"X-Api-Key": "al-wrong"},
        {**key(FIRST), "X-Api-Key": "al-wrong"},
        {"Cookie": f"key={FIRST}"},
        {"X-Forwarded-For": "127.0.0.1"},
    )
    with Asker(port) as asker:
        for path in PATHS:
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
                for headers in wrong if method in ("GET", "POST") else wrong[:2]:
                    asker.send(method, path, chat() if method == "POST" else None, headers)
                    answer = asker.answer()
                    assert answer.status == 401, (method, path, headers)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    if method != "HEAD":
                        assert b"engine" not in answer.body
                        assert FIRST.encode() not in answer.body
        # What a browser asks before it asks is no route; no page was allowed here, so it is refused all the same.
        preflight = {"Origin": "https://chat.example.com", "Access-Control-Request-Method": "POST"}
        asker.send("OPTIONS", CHAT, None, preflight)
        assert asker.answer().status == 403
        asker.send("POST", f"{CHAT}?key={FIRST}", chat())
        assert asker.answer().status == 401
        for headers in (key(FIRST), {"X-Api-Key": FIRST}, {"authorization": f"bearer {FIRST}"}):
            asker.send("POST", CHAT, chat(), headers)
            assert asker.answer().status == 200
    with socket.create_connection(("127.0.0.1", port), 30) as twice:
        line = f"Authorization: Bearer {FIRST}\r\n"
        twice.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{line}{line}\r\n".encode())
        assert twice.recv(64).startswith(b"HTTP/1.1 401")
    assert one.stop() == 0


def test_a_reload_takes_a_key_away_from_connections_that_are_open_and_a_wrong_file_takes_none(serve: Serve) -> None:
    one = serve()
    path = keys_file(one, first=FIRST, second=SECOND)
    one.configure(entry("a", None), keys_file=str(path))
    begin(one, "a")
    with Asker(one.gateway_port) as kept:

        def status(secret: str) -> int:
            kept.send("GET", "/v1/models", headers=key(secret))
            return kept.answer().status

        assert [status(FIRST), status(SECOND)] == [200, 200]
        local = kept.connection.sock.getsockname()
        keys_file(one, first=FIRST)
        reload(one)
        assert [status(FIRST), status(SECOND)] == [200, 401]
        path.write_text(f"second:{SECOND}\n")
        reload(one)
        said = one.told("configuration.wrong")[-1]["message"]
        assert str(path) in said
        assert "the old configuration holds" in said
        assert [status(FIRST), status(SECOND)] == [200, 401]
        path.unlink()
        reloaded = client(one).reload()
        assert not reloaded.holds
        assert str(path) in str(reloaded.wrong)
        assert client(one).status().wrong == reloaded.wrong
        assert [status(FIRST), status(SECOND)] == [200, 401]
        path.mkdir()
        assert not client(one).reload().holds
        path.rmdir()
        keys_file(one, first=FIRST).chmod(0o666)
        assert not client(one).reload().holds
        assert [status(FIRST), status(SECOND)] == [200, 401]
        keys_file(one, second=SECOND)
        assert client(one).reload().holds
        assert [status(FIRST), status(SECOND)] == [401, 200]
        assert kept.connection.sock.getsockname() == local, "it was another connection"
    assert len(one.told("engine.ready")) == 1
    assert one.stop() == 0


def test_no_secret_is_in_any_output(serve: Serve) -> None:
    """The key of a client, the key that the engine was given, and the hub's token: everywhere that can be looked."""
    one = serve(FAKE_KEYED="1", FAKE_MODES="ready,ready,refuse", HF_TOKEN=HUB_TOKEN, OPENAI_API_KEY=HUB_TOKEN)
    one.configure(entry("a", None), keys_file=str(keys_file(one, first=FIRST)))
    begin(one, "a")
    engine = psutil.Process(one.engine("a"))
    of_engine = [engine.environ()["FAKE_ENGINE_KEY"]]
    port = one.gateway_port
    outputs: list[bytes] = []

    def asked() -> None:
        outputs.extend(ask(port, headers=headers).body for headers in ({}, key(FIRST), key(FIRST[:-1]), key(HUB_TOKEN)))
        for path in PATHS:
            answer = get(port, path, **key(FIRST))
            outputs.extend((answer.body, json.dumps(dict(answer.headers)).encode()))
        outputs.append(ask(port, model=FIRST, headers=key(FIRST)).body.replace(FIRST.encode(), b""))  # its own words
        control = client(one)
        outputs.extend(
            repr(each).encode()
            for each in (control.status(), control.deployments(), control.plan("a"), list(control.events()))
        )
        outputs.append("\n".join(control.logs("a")).encode())
        outputs.extend(" ".join(process.cmdline()).encode() for process in one.processes())

    asked()
    assert ask(port, headers=key(FIRST)).status == 200
    os.kill(engine.pid, signal.SIGKILL)
    one.until(lambda: len(one.told("engine.ready", "a")) == 2)
    one.until(lambda: one.engine("a") != engine.pid)
    of_engine.append(psutil.Process(one.engine("a")).environ()["FAKE_ENGINE_KEY"])
    assert of_engine[0] != of_engine[1]
    assert HUB_TOKEN not in psutil.Process(one.engine("a")).environ().values()
    assert ask(port, headers=key(FIRST)).status == 200
    asked()
    for arguments in (("ps",), ("status",), ("status", "a"), ("logs", "a")):
        done = autolaunch(one, *arguments, "--json")
        outputs.extend((done.stdout, done.stderr))
        assert done.returncode == 0, done.stderr
    assert one.stop() == 0
    files = [path for path in one.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 5
    outputs.extend(path.read_bytes() for path in files)
    for secret in (FIRST, HUB_TOKEN, *of_engine):
        assert [each[:200] for each in outputs if secret.encode() in each] == []


# --- where it listens ---------------------------------------------------------------------------------------


def test_a_port_that_somebody_has_ends_the_start_with_who_has_it_and_nothing_loaded(serve: Serve) -> None:
    one = serve()
    with socket.create_server(("127.0.0.1", one.gateway_port)):
        assert one.start().wait(30) == 5
    said = one.said.read_text()
    assert str(one.gateway_port) in said
    assert str(os.getpid()) in said
    assert "engine." not in said.replace("engine.port", "")
    one.nothing_left()


def test_a_reload_moves_the_endpoint_to_a_port_that_is_free_and_to_no_other(serve: Serve) -> None:
    one = serve(FAKE_MODES="steady")
    one.configure(entry("a", None))
    begin(one, "a")
    before, after = one.gateway_port, free_port("127.0.0.1", 0)
    stream = Stream(before, words=200)
    with socket.create_server(("127.0.0.1", after)):
        one.configure(entry("a", None), entry("b", None), port=after)
        reload(one)
        assert str(after) in one.told("configuration.wrong")[-1]["message"]
        assert ask(before).status == 200
        assert {each.name for each in client(one).deployments()} == {"a"}
    one.configure(entry("a", None), port=after)
    reload(one)
    assert one.told("configuration.read")
    assert ask(after).status == 200
    with pytest.raises(ConnectionRefusedError):
        ask(before)
    assert str(after) in str(client(one).status().url)
    assert not stream.over
    assert stream.told() == (["on "] * 200, "stop", None)
    assert len(one.told("engine.ready")) == 1
    assert one.stop() == 0


def test_a_reload_opens_the_endpoint_to_others_on_the_port_that_it_has(serve: Serve) -> None:
    """And only who has a key is served from then on, on connections of before too."""
    one = serve()
    path = keys_file(one, first=FIRST)
    one.configure(entry("a", None))
    begin(one, "a")
    with Asker(one.gateway_port) as kept:
        kept.send("GET", "/v1/models")
        assert kept.answer().status == 200
        one.configure(entry("a", None), host="0.0.0.0", keys_file=str(path))  # noqa: S104 - with a key
        reload(one)
        assert one.told("configuration.wrong") == []
        kept.send("GET", "/v1/models")
        assert kept.answer().status == 401
    with Asker(one.gateway_port) as fresh:
        fresh.send("GET", "/v1/models", headers=key(FIRST))
        assert fresh.answer().status == 200
    assert one.stop() == 0
