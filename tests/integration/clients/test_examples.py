"""The examples of the Python API: typed for their users, and run as they stand, on the miniature with real engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import programs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples"


def run(name: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """An example, where the ``openai`` client of ``requirements/clients`` can be imported beside autolaunch."""
    (packages,) = programs("openai").parent.glob("lib/python*/site-packages")
    return subprocess.run(
        (sys.executable, str(EXAMPLES / name), *arguments),
        cwd=home.parent,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(packages))),
            "AUTOLAUNCH_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


@pytest.fixture
def home(engines_home: Path, tmp_path: Path) -> Path:
    """A home of its own, with the engines of all tests."""
    found = tmp_path / "home"
    found.mkdir()
    for shared in ("engines", "models", "wheels"):
        (engines_home / shared).mkdir(parents=True, exist_ok=True)
        (found / shared).symlink_to(engines_home / shared)
    return found


def test_it_launches_asks_reads_what_was_measured_and_stops(home: Path) -> None:
    done = run("launch_and_ask.py", home=home)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.search(r"^main memory in use: [\d,]+ bytes foretold, [\d,]+ measured$", done.stdout, re.MULTILINE)
    assert lines[-1] == "glm-tiny is stopped"
    assert done.stderr == ""
    assert list((home / "run").iterdir()) == []


def test_with_asyncio_it_shows_its_events_and_asks_several_at_once(home: Path) -> None:
    done = run("launch_async.py", home=home)
    assert done.returncode == 0, done.stderr
    assert " s  a token came back" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(" has ended")
    assert list((home / "run").iterdir()) == []


def test_hosts_are_compared_before_anything_is_fetched(home: Path) -> None:
    done = run("choose_a_host.py", "glm-4.6", "8xh100", "8xh200", "m3-ultra-512gb", "cpu-64gb", home=home)
    assert done.returncode == 0, done.stderr
    assert "cpu-64gb: nothing fits" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("best is 8xh200: ")


def test_a_plan_is_rehearsed_before_it_is_trusted(home: Path) -> None:
    done = run("rehearse_first.py", home=home)
    assert done.returncode == 0, done.stderr
    assert "started: ok (a token came back)" in done.stdout
    assert "failed" not in done.stdout
