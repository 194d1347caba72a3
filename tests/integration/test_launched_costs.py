"""What a launch leaves behind in a program that makes many, and the API under many threads at once."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import autolaunch
from tests.fakes.launched import launched
from tests.fakes.supervised import FakeEngine, nothing_left, patched

pytestmark = [pytest.mark.integration]

#: Each starts two processes of Python (the guard and the fake engine): a fifth of a second on two idle cores.
CYCLES, WARM_UP = 1000, 50
#: What the heap may grow by in all those cycles; a run's own traces are hundreds of kilobytes a cycle.
GROWTH_BYTES = 24 * 2**20


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path / "home"))
    patched(monkeypatch, tmp_path / "home", FakeEngine())
    return tmp_path / "home"


def open_files() -> list[str]:
    """What each descriptor of this process is, without its number."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the folder's own descriptor is among them either way
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}").partition(":[")[0])  # noqa: PTH115 - as above
        except OSError:
            continue
    return sorted(found)


def entries(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc tells")
@pytest.mark.timeout(1500)  # five times what they take where nothing else runs
def test_a_thousand_launches_leak_no_file_thread_process_or_memory(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cycle() -> None:
        with launched(home) as server:
            server.wait_ready(timeout=60)

    for _ in range(WARM_UP):
        cycle()
    gc.collect()
    us = psutil.Process()
    before = (open_files(), threading.active_count(), entries(home), us.memory_info().rss)
    began = time.monotonic()
    for _ in range(CYCLES - WARM_UP):
        cycle()
        assert threading.active_count() == before[1]
    seconds = time.monotonic() - began
    gc.collect()
    after = (open_files(), threading.active_count(), entries(home), us.memory_info().rss)
    with capsys.disabled():
        print(  # noqa: T201 - a figure of the run
            f"\n{CYCLES} launches: {seconds / (CYCLES - WARM_UP):.2f} s each, {len(after[0])} files open, "
            f"{after[1]} threads, {(after[3] - before[3]) / 2**20:.1f} MiB more"
        )
    assert after[:3] == before[:3]
    assert us.children(recursive=True) == []
    assert after[3] - before[3] < GROWTH_BYTES
    nothing_left(home)


@pytest.mark.timeout(120)
def test_many_threads_probe_plan_look_and_stop_at_once(home: Path) -> None:
    reference = autolaunch.plan("glm-4.6", hardware="8xh100").to_json()
    with launched(home) as server, autolaunch.Client() as client:
        server.wait_ready(timeout=30)

        def plan() -> None:
            assert autolaunch.plan("glm-4.6", hardware="8xh100").to_json() == reference

        def probe() -> None:
            assert autolaunch.probe().host.os == "linux" or sys.platform == "darwin"

        def look() -> None:
            assert server.phase == "ready"
            assert client.deployment("glm-tiny").phase == "ready"
            assert server.measurements
            assert next(server.events()).serial == 1

        calls: tuple[Callable[[], None], ...] = (plan, probe, look, look)
        with ThreadPoolExecutor(16) as threads:
            for done in [threads.submit(calls[number % len(calls)]) for number in range(96)]:
                done.result(60)
            for done in [threads.submit(server.stop) for _ in range(16)]:
                done.result(60)
        assert server.phase == "stopped"
    nothing_left(home)
