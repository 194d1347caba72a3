"""``autolaunch serve`` as a process, over the fake engine: how it begins, is told things, and ends."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from autolaunch.daemon.ports import free_port
from tests.fakes.served import ROOT, Served, entry

Serve = Callable[..., Served]


def get(port: int) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        response = connection.getresponse()
        return response.status, dict(response.getheaders())
    finally:
        connection.close()


def test_it_serves_and_ends_in_order_with_exit_code_0(serve: Serve) -> None:
    one = serve()
    one.begin()
    assert get(one.port)[0] == 200
    assert len(one.engines()) == 1
    assert one.stop() == 0
    names = [each["event"] for each in one.events()]
    assert names.index("daemon.ready") < names.index("engine.ready") < names.index("daemon.stopping")
    assert names[-1] == "daemon.stopped"


@pytest.mark.timeout(240)
def test_sigterm_at_any_moment_leaves_nothing_within_the_bound(serve: Serve) -> None:
    """Fifty moments, from before Python has begun to well after the engine serves: always the same, drawn once."""
    lanes = (serve(), serve())
    for one in lanes:  # the first start makes the weights
        one.begin()
        assert one.stop() == 0
    began = time.monotonic()
    lanes[0].begin()
    whole = time.monotonic() - began
    assert lanes[0].stop() == 0
    drawn = random.Random(5)  # noqa: S311 - moments, no secrets
    moments = [drawn.uniform(0.0, 1.5) * whole for _ in range(50)]
    with ThreadPoolExecutor(len(lanes)) as pool:
        early = sum(pool.map(ended_at, lanes, (moments[::2], moments[1::2])))
    assert early < 30


def ended_at(one: Served, moments: list[float]) -> int:
    """Starts and ends a daemon at these times after its start; how often it had not got to take the signal itself."""
    early = 0
    for moment in moments:
        one.start()
        time.sleep(moment)
        asked_at = time.monotonic()
        code = one.stop(20.0)
        assert time.monotonic() - asked_at < 10.0, f"after {moment:.3f} s"
        if code != 0:
            # Before there was a command to take it: Python's own end, or the command line's.
            assert code in (-signal.SIGTERM, 128 + signal.SIGTERM), one.said.read_text()
            assert "daemon." not in one.said.read_text()
            early += 1
        if (one.home / "daemon" / "state.json").exists():
            one.state()
    return early


def test_a_second_sigterm_changes_nothing(serve: Serve) -> None:
    one = serve(FAKE_MODES="deaf")
    one.begin()
    one.signal(signal.SIGTERM)
    time.sleep(0.2)
    one.signal(signal.SIGTERM)
    one.signal(signal.SIGINT)
    assert one.stop() == 0


def test_a_second_daemon_ends_at_once_and_names_the_holder(serve: Serve) -> None:
    one = serve()
    one.begin()
    assert one.process is not None
    began = time.monotonic()
    command = (sys.executable, "-m", one.module, "serve", "--config", str(one.configuration))
    second = subprocess.run(command, cwd=ROOT, env=one.environ, capture_output=True, text=True, check=False)
    assert second.returncode == 5
    assert f"process {one.process.pid}" in second.stderr
    assert time.monotonic() - began < 5.0
    assert len(one.engines()) == 1
    assert one.stop() == 0


def test_a_typo_is_exit_78_with_the_keys_path_and_the_nearest_key(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", one.port, idle_second=5))
    assert one.start().wait(10) == 78
    text = one.said.read_text()
    assert "deployments[0]" in text
    assert "idle_seconds" in text
    one.nothing_left()


def test_a_reload_with_a_typo_keeps_the_old_configuration_and_says_so(serve: Serve) -> None:
    one = serve()
    engine = one.begin()
    one.configure(entry("a", one.port, prot=5))
    one.signal(signal.SIGHUP)
    one.until(lambda: one.told("configuration.wrong"))
    (said,) = one.told("configuration.wrong")
    assert "the old configuration holds" in said["message"]
    assert "deployments[0]" in said["message"]
    assert [each.pid for each in one.engines()] == [engine]
    assert get(one.port)[0] == 200
    assert one.stop() == 0


def test_a_reload_adds_removes_and_changes_and_leaves_the_others_alone(serve: Serve) -> None:
    one = serve()
    ports = [free_port("127.0.0.1", 0) for _ in range(3)]
    one.configure(entry("a", one.port), entry("b", ports[0]), entry("c", ports[1]))
    one.start()
    one.until(lambda: len(one.told("engine.ready")) == 3)
    before = {name: one.engine(name) for name in "abc"}
    one.configure(entry("a", one.port), entry("c", ports[1], idle_seconds=900), entry("d", ports[2]))
    one.signal(signal.SIGHUP)
    one.until(lambda: one.told("engine.ready", "d") and len(one.told("engine.ready", "c")) == 2)
    one.until(lambda: set(one.state()["deployments"]) == set("acd"))
    after = {name: one.engine(name) for name in "acd"}
    assert after["a"] == before["a"]
    assert after["c"] != before["c"]
    assert not psutil.pid_exists(before["b"])
    assert sorted(each.pid for each in one.engines()) == sorted(after.values())
    assert one.stop() == 0


def test_reloads_at_any_moment_make_one_engine_a_deployment(serve: Serve) -> None:
    """While it begins, in quick succession, and while it ends."""
    one = serve()
    one.start()
    one.until((one.home / "daemon" / "daemon.lock").exists)
    other = entry("b", free_port("127.0.0.1", 0))
    time.sleep(0.05)
    for turn in range(6):
        one.configure(entry("a", one.port), *((other,) if turn % 2 else ()))
        one.signal(signal.SIGHUP)
        time.sleep(0.05)
    one.until(lambda: one.told("engine.ready", "a") and one.told("engine.ready", "b"))
    assert len(one.engines()) == 2
    one.configure(entry("a", one.port), other, entry("c", free_port("127.0.0.1", 0)))
    one.signal(signal.SIGTERM)
    one.signal(signal.SIGHUP)
    assert one.stop() == 0


def test_nobody_who_reads_what_it_says_does_not_stop_it(serve: Serve) -> None:
    one = serve()
    one.start(seen=False)
    one.until(one.engines)
    one.until(lambda: _answers(one.port))
    assert one.stop() == 0


def test_streams_that_are_closed_do_not_stop_it_and_nothing_is_written_into_its_files(serve: Serve) -> None:
    one = serve()
    command = (sys.executable, "-m", one.module, "serve", "--config", str(one.configuration))
    code = "import os, sys; [os.close(n) for n in (0, 1, 2)]; os.execv(sys.argv[1], sys.argv[1:])"
    one.process = subprocess.Popen((sys.executable, "-c", code, *command), cwd=ROOT, env=one.environ)
    one.until(lambda: _answers(one.port))
    one.state()
    assert (one.home / "daemon" / "daemon.lock").read_text().startswith(f"{one.process.pid} ")
    assert one.stop() == 0


def test_somebody_who_asks_a_sleeping_model_is_told_to_come_again_and_wakes_it(serve: Serve) -> None:
    """A look at what models there are wakes none."""
    one = serve()
    one.configure(entry("a", one.port, idle_seconds=1))
    one.start()
    one.until(lambda: one.told("engine.idle"))
    one.until(lambda: one.engines() == [])
    assert get(one.gateway_port)[0] == 200
    assert _asked(one.gateway_port) == 503
    one.until(one.engines)
    one.until(lambda: len(one.told("engine.ready")) == 2)
    one.until(lambda: len(one.told("engine.idle")) == 2)
    one.until(lambda: one.engines() == [])
    assert get(one.gateway_port)[0] == 200
    assert len(one.told("engine.ready")) == 2
    assert _asked(one.gateway_port, Prefer="wait=20") == 200
    assert one.stop() == 0


def test_notify_and_listen_variables_and_tokens_never_reach_the_engine_or_the_outputs(serve: Serve) -> None:
    sentinel = "hf_sentinel0value1of2a3secret4"
    one = serve(
        NOTIFY_SOCKET="/nonexistent/notify",
        WATCHDOG_USEC="30000000",
        LISTEN_FDS="1",
        HF_TOKEN=sentinel,
        OPENAI_API_KEY=sentinel,
    )
    engine = psutil.Process(one.begin())
    names = engine.environ()
    assert not [name for name in names if name.startswith(("NOTIFY_", "WATCHDOG_", "LISTEN_"))]
    assert sentinel not in names.values()
    assert names["SPT_NOENV"] == "1"  # or a worker that renames itself writes over its mark
    for process in one.processes():
        assert sentinel not in " ".join(process.cmdline())
        if process.pid != one.process.pid:  # type: ignore[union-attr]  # it was begun
            assert sentinel not in process.environ().values()
    os.kill(engine.pid, signal.SIGKILL)
    one.until(lambda: one.told("engine.failed"))
    assert one.stop() == 0
    written = [path for path in one.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(written) > 5
    assert [path for path in written if sentinel.encode() in path.read_bytes()] == []


def test_every_line_of_json_can_be_read(serve: Serve) -> None:
    one = serve()
    one.begin()
    assert one.stop() == 0
    lines = one.said.read_text().splitlines()
    assert all({"time", "level", "event", "message"} <= set(json.loads(line)) for line in lines)


def _asked(port: int, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=25)
    try:
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        assert response.status == 200 or int(response.headers["Retry-After"]) > 0
        return response.status
    finally:
        connection.close()


def _answers(port: int) -> bool:
    return _status(port) > 0


def _status(port: int) -> int:
    try:
        status, headers = get(port)
    except (OSError, http.client.HTTPException):
        return 0
    assert status == 200 or int(headers["Retry-After"]) > 0
    return status
