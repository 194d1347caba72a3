"""After one launch the next plan on this host is nearer to what was measured; what is absurd is not believed."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autolaunch.daemon.ports import free_port
from autolaunch.daemon.process import GRACE_SECONDS

ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-c", "from autolaunch.__main__ import main; main()")
#: More than are needed for a speed to count (selector.calibration.LEAST_SAMPLES).
REQUESTS = 8

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class Home:
    """A home with the engines of all tests, and a memory of its own."""

    def __init__(self, path: Path, engines_home: Path) -> None:
        self.path = path
        path.mkdir()
        (engines_home / "engines").mkdir(parents=True, exist_ok=True)
        (path / "engines").symlink_to(engines_home / "engines")
        self.environ = {**os.environ, "AUTOLAUNCH_HOME": str(path)}
        self.learned = path / "learned.sqlite3"

    def run(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            (*MAIN, *arguments, "--json"),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environ,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def chosen(self, engine: str) -> dict[str, Any]:
        found = self.run("plan", "glm-tiny", "--engine", engine)["chosen"]
        assert isinstance(found, dict)
        return found

    @contextmanager
    def launched(self, engine: str) -> Iterator[str]:
        """The model in the foreground, and where it answers."""
        port = free_port("127.0.0.1", 0)
        with subprocess.Popen(
            (*MAIN, "glm-tiny", "--engine", engine, "--port", str(port)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environ,
        ) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                deadline = time.monotonic() + 120
                while not answers(url):
                    assert process.poll() is None, "it has ended"
                    assert time.monotonic() < deadline, "it does not answer"
                    time.sleep(0.2)  # another program begins to listen when it is ready to
                yield url
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=GRACE_SECONDS + 30)


def answers(url: str) -> bool:
    """Whether a token comes; there is no socket to wait at before the gateway is open."""
    try:
        ask(url, 0, tokens=1)
    except OSError:
        return False
    return True


def ask(url: str, number: int, tokens: int = 48) -> None:
    """One streamed answer of some forty tokens."""
    body = {
        "model": "glm-tiny",
        "messages": [{"role": "user", "content": f"{number}: count to a hundred, please"}],
        "max_tokens": tokens,
        "stream": True,
    }
    request = urllib.request.Request(  # noqa: S310 - as below
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - of loopback, as it was made above
        assert b"data:" in answer.read()


@pytest.fixture
def home(tmp_path: Path, engines_home: Path) -> Home:
    return Home(tmp_path / "home", engines_home)


def in_use(chosen: dict[str, Any]) -> int:
    device = chosen["memory"]["per_device"]
    return sum(device[f"{name}_bytes"] for name in ("weights", "activations", "graphs", "runtime"))


def decode(chosen: dict[str, Any]) -> float:
    return float(chosen["speed"]["decode_tokens_per_second"])


def learned_of(chosen: dict[str, Any]) -> list[str]:
    return [each["code"] for each in chosen["notes"] if each["code"].startswith("learned")]


@pytest.mark.parametrize("engine", ["mlx", "llamacpp", "transformers"])
def test_the_plan_after_a_launch_is_nearer_to_what_was_measured(engine: str, home: Home) -> None:
    first = home.chosen(engine)
    assert learned_of(first) == []
    with home.launched(engine) as url:
        for number in range(REQUESTS):
            ask(url, number)
        (replica,) = home.run("status", "glm-tiny")["replicas"]
        shown = {each["name"]: each["measured"] for each in replica["measurements"]}
    second = home.chosen(engine)
    memory, speed = shown["main memory in use"], shown["one request"]
    taken = first["memory"]["per_device"]["kv_cache_bytes"] if "KV cache" in shown else 0
    for name, seen, before, after in (
        ("memory", memory, in_use(first) + taken, in_use(second) + taken),
        ("speed", speed, decode(first), decode(second)),
        ("load", shown["load"], first["speed"]["load_seconds"], second["speed"]["load_seconds"]),
    ):
        far, near = abs(math.log(before / seen)), abs(math.log(after / seen))
        figures = f"foretold {before:,.1f}, then {after:,.1f}; measured {seen:,.1f}: {far:.3f} to {near:.3f}"
        print(f"{engine} {name}: {figures}")  # noqa: T201 - by how much is what the test shows
        # Nearer than this is chance: so much two launches of one engine differ by on a shared machine.
        assert near <= far / 2 or near < 0.05, f"{name} is no nearer"
    assert second["memory"]["basis"] == second["speed"]["basis"] == "measured"
    assert "learned.measured" in learned_of(second)
    home.learned.unlink()
    third = home.chosen(engine)
    assert (in_use(third), decode(third)) == (in_use(first), decode(first))
    assert learned_of(third) == []


def test_what_is_absurd_is_not_believed_and_said(home: Home) -> None:
    first = home.chosen("llamacpp")
    with home.launched("llamacpp"):
        pass
    assert home.learned.exists()
    absurd = {
        "source": "start",
        "at": time.time(),
        "weights_bytes": 1 << 45,
        "resident_bytes": 1 << 50,
        "load_seconds": 1e8,
        "decode_tokens_per_second": 1e11,
    }
    for content in (json.dumps(absurd), "{}", "9" * 100_000, '{"source":"start","at":1.0,"weights_bytes":-5}'):
        with sqlite3.connect(home.learned) as memory:
            memory.execute("UPDATE measured SET figures = ?", (content,))
        memory.close()
        poisoned = home.chosen("llamacpp")
        (code,) = set(learned_of(poisoned))
        assert code == ("learned.refused" if content.startswith('{"source": "start"') else "learned.unread")
        kept = [each for each in poisoned["notes"] if not each["code"].startswith("learned")]
        poisoned["checkpoint"]["local"] = first["checkpoint"]["local"]  # it was made meanwhile
        for part in ("limits", "memory", "speed", "parallel", "checkpoint"):
            assert poisoned[part] == first[part], part
        assert kept == first["notes"]
