"""``ps``, ``status``, ``wait``, ``logs``, ``stop``, ``restart`` and ``retry`` as processes, against a daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from autolaunch.daemon.ports import free_port
from tests.fakes.served import ROOT, Served, entry

pytestmark = pytest.mark.integration
Serve = Callable[..., Served]

WRONG_OPTION = "--say 'vllm: error: unrecognized arguments: --no-such-option'"
SENTINEL = "hf_sentinel0123456789"


def command(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "autolaunch", *words)


def run(one: Served, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**one.environ, "COLUMNS": "80"}
    return subprocess.run(
        command(*words), cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=50
    )


def document(one: Served, *words: str) -> dict[str, Any]:
    """The document of a command that went well."""
    ended = run(one, *words, "--json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert found["schema"] == 1
    return found


def test_where_nothing_runs_ps_is_empty_and_everything_else_says_how_to_start(serve: Serve) -> None:
    one = serve()
    ended = run(one, "ps")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "nothing runs here" in ended.stdout
    assert document(one, "ps")["processes"] == []
    for words in (("status",), ("status", "a"), ("wait",), ("logs", "a"), ("stop", "a"), ("retry", "--all")):
        ended = run(one, *words)
        assert ended.returncode == 5, words
        assert "sudo systemctl start autolaunch" in ended.stderr
        assert ended.stdout == ""
    told = json.loads(run(one, "status", "--json").stdout)
    assert told["error"]["code"] == "control.not_running"


def test_a_deployment_from_ps_to_its_end(serve: Serve) -> None:
    one = serve()
    one.configure(entry("a", one.port), entry("zai-org/b", free_port("127.0.0.1", 0)))
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    ended = run(one, "wait", "--timeout", "30")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("ready") == 2
    shown = run(one, "ps").stdout
    assert "daemon, process" in shown
    assert "zai-org/b" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    (process,) = document(one, "ps")["processes"]
    assert process["socket"] == str(one.home / "control" / "control.sock")
    assert [each["phase"] for each in process["deployments"]] == ["ready", "ready"]

    page = run(one, "status", "a").stdout
    for word in ("ready for", "checkpoint", "layout", "foretold", str(one.engine("a")), ".log"):
        assert word in page
    assert document(one, "status", "zai-org/b")["name"] == "zai-org/b"
    assert str(one.configuration) in run(one, "status").stdout
    assert document(one, "status")["kind"] == "daemon"

    assert run(one, "logs", "a", "-n", "1").stdout == "listening\n"
    line = json.loads(run(one, "logs", "a", "-n", "1", "--json").stdout)
    assert line == {"schema": 1, "deployment": "a", "line": "listening"}
    assert "engine.ready zai-org/b" in run(one, "logs", "--events", "zai-org/b").stdout
    assert run(one, "logs", "--events", "-n", "1").stdout.count("\n") == 1

    assert document(one, "stop", "a")["deployments"] == [{"name": "a", "phase": "draining"}]
    one.until(lambda: len(one.engines()) == 1)
    ended = run(one, "wait", "a")
    assert ended.returncode == 5
    assert "autolaunch restart a" in ended.stderr
    assert "restart asked for" in run(one, "restart", "a").stdout
    assert run(one, "wait", "a", "--timeout", "1m").returncode == 0
    assert [each["name"] for each in document(one, "restart", "--all")["deployments"]] == ["a", "zai-org/b"]
    assert one.stop() == 0


def test_an_unknown_name_is_exit_2_with_the_nearest_and_nothing_is_touched(serve: Serve) -> None:
    one = serve()
    one.configure(entry("glm-4.6", one.port))
    one.start()
    one.until(lambda: one.told("engine.ready"))
    for words in (("status", "glm-46"), ("logs", "glm-46"), ("wait", "glm-46"), ("stop", "glm-4.6", "glm-46")):
        ended = run(one, *words)
        assert ended.returncode == 2, words
        assert "did you mean glm-4.6?" in ended.stderr
    assert len(one.engines()) == 1
    for wrong in (("stop",), ("stop", "a", "--all"), ("logs",), ("status", "--follow"), ("logs", "a", "-n", "-1")):
        assert run(one, *wrong).returncode == 2, wrong
    assert one.stop() == 0


def test_what_was_given_up_on_says_why_and_retry_starts_it(serve: Serve) -> None:
    one = serve(FAKE_MODES="exit,ready", FAKE_OPTIONS=WRONG_OPTION)
    one.start()
    one.until(lambda: one.told("deployment.failed"))
    ended = run(one, "wait", "a")
    assert ended.returncode == 5
    assert "--no-such-option" in ended.stderr
    assert "autolaunch retry a" in ended.stderr
    assert "--no-such-option" in run(one, "ps").stdout
    assert "last lines" in run(one, "status", "a").stdout
    assert run(one, "retry", "a").returncode == 0
    assert run(one, "wait", "a", "--timeout", "30s").returncode == 0
    assert one.stop() == 0


def test_a_wait_that_takes_too_long_is_exit_124(serve: Serve) -> None:
    one = serve(FAKE_MODES="silent")
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    began = time.monotonic()
    ended = run(one, "wait", "a", "--timeout", "0.5")
    assert ended.returncode == 124
    assert "a is" in ended.stderr
    assert time.monotonic() - began < 10.0
    assert json.loads(run(one, "wait", "--timeout", "0.1", "--json").stdout)["error"]["exit_code"] == 124
    assert one.stop() == 0


def test_a_log_is_followed_until_ctrl_c_or_the_daemons_end(serve: Serve) -> None:
    one = serve()
    one.begin()
    environ = {**one.environ, "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []

    def follow(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(*words), cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        threading.Thread(target=lines.extend, args=(iter(process.stdout.readline, ""),), daemon=True).start()
        return process

    first = follow("logs", "a", "--follow", "-n", "1")
    one.until(lambda: lines == ["listening\n"])
    assert run(one, "restart", "a").returncode == 0
    one.until(lambda: lines.count("listening\n") == 2)
    first.send_signal(signal.SIGINT)
    assert first.wait(10) == 130
    events = follow("logs", "--events", "--follow")
    one.until(lambda: any("engine.ready" in line for line in lines))
    status = follow("status", "a", "--follow", "--json")
    one.until(lambda: any('"phase":"ready"' in line for line in lines))
    one.signal(signal.SIGTERM)
    assert events.wait(20) == 5
    assert status.wait(20) == 5
    one.until(lambda: any('"exit_code":5' in line and json.loads(line) for line in lines))
    assert one.stop() == 0
    for each in (first, events, status):
        assert each.stdout is not None
        each.stdout.close()


def test_what_is_followed_of_a_daemon_that_is_killed_ends_with_an_error(serve: Serve) -> None:
    one = serve()
    one.begin()
    environ = {**one.environ, "PYTHONUNBUFFERED": "1"}
    following = [
        subprocess.Popen(
            command("logs", *words, "--follow", "-n", "1"),
            cwd=ROOT,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for words in (("a",), ("--events",))
    ]
    for each in following:
        assert each.stdout is not None
        assert each.stdout.readline() != ""
    one.kill()
    for each in following:
        _, told = each.communicate(timeout=20)
        assert each.returncode == 5
        assert "control.sock" in told  # it has ended, or was about to be asked for more
    one.begin()
    assert one.stop() == 0


def test_what_was_asked_for_is_in_the_journal(serve: Serve) -> None:
    one = serve()
    one.begin()
    assert run(one, "stop", "a").returncode == 0
    one.until(lambda: one.told("control.stop", "a"))
    assert one.stop() == 0


def test_no_secret_is_in_any_output(serve: Serve) -> None:
    one = serve(HF_TOKEN=SENTINEL, FAKE_MODES="exit", FAKE_OPTIONS=f"--say 'error: the token {SENTINEL} is wrong'")
    one.start()
    one.until(lambda: one.told("engine.failed") or one.told("deployment.failed") or one.told("deployment.waits"))
    del one.environ["HF_TOKEN"]  # who asks does not know it, and cannot take it out
    told = ""
    for words in (("ps",), ("status", "a"), ("logs", "a"), ("logs", "--events"), ("wait", "a", "--timeout", "0.2")):
        for more in ((), ("--json",)):
            ended = run(one, *words, *more)
            told += ended.stdout + ended.stderr
    assert "token" in told
    assert SENTINEL not in told
    assert one.stop() == 0


def test_autolaunch_socket_names_the_one_that_is_asked(serve: Serve) -> None:
    one, other = serve(), serve()
    one.begin()
    other.environ["AUTOLAUNCH_SOCKET"] = str(one.home / "control" / "control.sock")
    assert one.process is not None
    assert document(other, "status")["pid"] == one.process.pid
    other.environ["AUTOLAUNCH_SOCKET"] = os.devnull
    assert run(other, "status").returncode == 5
    assert one.stop() == 0
