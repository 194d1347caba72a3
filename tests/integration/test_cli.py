"""The command as a person runs it: a process of its own, a real engine, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import psutil
import pytest

HOME = Path(os.environ.get("AUTOLAUNCH_TEST_HOME") or platformdirs.user_cache_dir("autolaunch-tests", appauthor=False))
ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-c", "from autolaunch.__main__ import main; main()")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def environment(home: Path = HOME) -> dict[str, str]:
    return {**os.environ, "AUTOLAUNCH_HOME": str(home)}


def started(*arguments: str, home: Path = HOME) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (*MAIN, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(home),
    )


def finished(*arguments: str, home: Path = HOME) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*MAIN, *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(home),
        timeout=280,
        check=False,
    )


def left_running(home: Path) -> list[str]:
    """Processes that name this home on their command line or in their environment, given a moment to be gone."""
    found: list[str] = []
    for _ in range(40):
        found = []
        for process in psutil.process_iter():
            try:
                told = " ".join(process.cmdline())
                if process.pid != os.getpid() and (
                    str(home) in told or process.environ().get("AUTOLAUNCH_HOME") == str(home)
                ):
                    found.append(told)
            except psutil.Error:
                continue
        if not found:
            break
        time.sleep(0.05)
    return found


def test_ask_answers_with_its_timings_and_leaves_nothing() -> None:
    done = finished("glm-tiny", "--port", "0", "--ask", "hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "first token after" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_ask_with_json_is_one_document() -> None:
    done = finished("glm-tiny", "--port", "0", "--ask", "hello", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["served_name"] == "glm-tiny"
    assert document["completion_tokens"] > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_served_model_is_stopped_by_a_signal_with_all_it_started(number: signal.Signals, code: int) -> None:
    finished("glm-tiny", "--port", "0", "--ask", "hello")  # the environment is there
    with started("glm-tiny", "--port", "0", "--json") as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            text += line
        engine = psutil.Process(json.loads(text)["pid"])
        tree = [engine, *engine.children(recursive=True)]
        process.send_signal(number)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    gone, alive = psutil.wait_procs(tree, timeout=5)
    assert not alive
    assert len(gone) == len(tree)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_while_everything_is_being_prepared_leaves_nothing_running(tmp_path: Path, seconds: float) -> None:
    with started("glm-tiny", "--port", "0", home=tmp_path) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert left_running(tmp_path) == []


def test_a_taken_port_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with started("glm-tiny", "--port", str(port), home=tmp_path) as process:
            _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert f"port {port} is in use" in err
    assert not (tmp_path / "engines").exists()
    assert not (tmp_path / "models").exists()
