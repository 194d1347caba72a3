"""``autolaunch bench`` as a user runs it: a daemon with a real engine on the miniature, loaded by the real guidellm."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autolaunch.bench.environment import guidellm
from autolaunch.daemon.gateway.keys import key_of
from tests.fakes.behind import KEY
from tests.fakes.served import ROOT, Served, entry
from tests.integration.test_faults_real import borrowed, prepared

#: guidellm's environment is made first where there is none.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SHORT = ("--input-tokens", "64", "--output-tokens", "32", "--concurrency", "2", "--requests", "4", "--seconds", "60")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, engines_home: Path) -> Iterator[Served]:
    """One that serves ``a`` on mlx to whoever has ``KEY``. guidellm's environment is kept between runs."""
    folder = tmp_path_factory.mktemp("bench")
    home = borrowed(folder / "home", engines_home)
    prepared(home, "mlx")
    guidellm(engines_home)
    (home / "tools").symlink_to(engines_home / "tools")
    one = Served(folder, real=True)
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{key_of('tests', KEY).line}\n")
    (folder / "key").write_text(f"{KEY}\n")
    one.configure(entry("a", None, pinned={"engine": "mlx"}), keys_file=str(keys))
    try:
        one.start()
        one.until(lambda: one.told("engine.ready", "a"), 120.0)
        yield one
        assert one.stop() == 0
    finally:
        one.close()


def autolaunch(one: Served, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "autolaunch", *arguments],
        cwd=ROOT,
        env={**one.environ, "AUTOLAUNCH_HOME": str(home or one.home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def keyed(one: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    return autolaunch(one, "bench", *arguments, "--api-key-file", str(one.folder / "key"))


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def foretold(one: Served, home: Path | None = None) -> Any:
    """What is planned next, of the engine that was measured."""
    return document(autolaunch(one, "plan", "glm-tiny", "--engine", "mlx", "--json", home=home))["chosen"]


def codes(chosen: Any) -> set[str]:
    return {each["code"] for each in chosen["notes"] if each["code"].startswith("learned")}


def nearer(seen: float, before: Any, after: Any) -> bool:
    """Whether the second plan is nearer to the speed than the first, by half at least (a plan's prompts are longer)."""
    far, near = (abs(math.log(each["speed"]["decode_tokens_per_second"] / seen)) for each in (before, after))
    return near < far / 2


def test_a_deployment_is_measured_beside_what_was_foretold_and_kept_for_others(daemon: Served, tmp_path: Path) -> None:
    before = foretold(daemon)
    assert before["speed"]["basis"] == "assumed"
    done = keyed(daemon, *SHORT, "--json")
    found = document(done)
    assert KEY not in done.stdout + done.stderr
    assert (found["deployment"], found["model"], found["engine"].split()[0], found["tool"]) == (
        "a",
        "a",
        "mlx",
        "0.3.1",
    )
    assert (found["alone"]["requests"], found["together"]["requests"]) == (4, 4)
    assert (found["alone"]["errors"], found["together"]["errors"]) == (0, 0)
    assert found["together"]["output_tokens"] == 32
    # Words are counted by the model's own tokenizer, which nobody had to fetch.
    assert found["together"]["input_tokens"] == pytest.approx(64, rel=0.4)
    names = {each["name"]: (each["predicted"], each["measured"]) for each in found["figures"]}
    assert set(names) == {"one request", "2 requests", "first token"}
    assert all(predicted > 0 < measured for predicted, measured in names.values())
    assert found["kept"]

    rows = tmp_path / "rows.jsonl"
    assert document(autolaunch(daemon, "bench", "--export", str(rows), "--json"))["rows"] >= 1
    (row,) = (
        each for line in rows.read_text().splitlines() if (each := json.loads(line))["measured"]["source"] == "bench"
    )
    assert row["where"]["repo"] == "autolaunch/glm-tiny"
    assert row["measured"]["decode_tokens_per_second"] == found["measured"]["decode_tokens_per_second"]

    # The daemon's deployment is the very configuration that is planned next here: its speed is now the measured one.
    seen = found["measured"]["decode_tokens_per_second"]
    after = foretold(daemon)
    assert after["speed"]["basis"] == "measured"
    assert codes(after) == {"learned.measured"}
    assert nearer(seen, before, after)

    other = tmp_path / "other"
    other.mkdir()
    (other / "engines").symlink_to(daemon.home / "engines")  # of an engine that is not of its version it tells nothing
    bare = foretold(daemon, other)
    assert codes(bare) == set()
    taken = document(autolaunch(daemon, "bench", "--import", str(rows), "--json", home=other))
    assert taken["rows"] == taken["like_this"] >= 1
    assert autolaunch(daemon, "bench", "--export", "-", home=other).stdout == ""
    # There it was not measured, and what it is corrected by is said.
    there = foretold(daemon, other)
    assert there["speed"]["basis"] == bare["speed"]["basis"] == "assumed"
    assert codes(there) == {"learned.measured"}
    assert any("on another host" in each["message"] for each in there["notes"])
    assert nearer(seen, bare, there)
    assert there["speed"]["decode_tokens_per_second"] == after["speed"]["decode_tokens_per_second"]


def test_an_endpoint_is_measured_by_its_address_and_nothing_is_kept(daemon: Served, tmp_path: Path) -> None:
    (tmp_path / "tools").symlink_to(daemon.home / "tools")
    key = str(daemon.folder / "key")
    url = f"http://127.0.0.1:{daemon.gateway_port}"
    line = ("bench", "--url", url, "--model", "a", "--api-key-file", key, *SHORT)
    done = autolaunch(daemon, *line, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not kept: no plan of this host is of this endpoint" in done.stdout
    assert "foretold" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not (tmp_path / "learned.sqlite3").exists()


def test_without_the_key_it_is_said_where_one_goes(daemon: Served) -> None:
    done = autolaunch(daemon, "bench", *SHORT)
    assert done.returncode == 2
    assert "wants a key" in done.stderr
    assert "--api-key-file" in done.stderr


def test_ctrl_c_ends_it_with_everything_that_it_started(daemon: Served) -> None:
    before = {each.pid for each in daemon.processes()}
    line = ("bench", "--output-tokens", "2000", "--api-key-file", str(daemon.folder / "key"))
    with subprocess.Popen(
        [sys.executable, "-m", "autolaunch", *line],
        cwd=ROOT,
        env=daemon.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not any("guidellm" in " ".join(_line(each)) for each in daemon.processes() if each.pid not in before):
            assert time.monotonic() < deadline, "guidellm was not started"
            assert process.poll() is None
            time.sleep(0.05)
        # No key in any process's arguments, whoever lists them.
        assert not any(KEY in " ".join(_line(each)) for each in psutil.process_iter())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    deadline = time.monotonic() + 10
    while left := [each for each in daemon.processes() if each.pid not in before]:
        assert time.monotonic() < deadline, [_line(each) for each in left]
        time.sleep(0.05)


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
