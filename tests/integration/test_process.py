"""The process tree: nothing is left running, the output is bounded, whatever the engine does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from autolaunch.daemon.output import LINE_CHARACTERS, RING_LINES, Output, printable
from autolaunch.daemon.ports import free_port
from autolaunch.daemon.process import EngineProcess
from selector.errors import EngineStartError
from selector.probe.system import run
from tests.fakes.supervised import alive

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
Start = Callable[..., EngineProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(*arguments: str, mode: str = "ready", grace_seconds: float = 5.0) -> EngineProcess:
            port = free_port("127.0.0.1", 0)
            argv = (sys.executable, str(FAKE), "--port", str(port), "--mode", mode, *arguments)
            return stack.enter_context(
                EngineProcess(
                    argv,
                    environment=dict(os.environ),
                    working_directory=tmp_path,
                    log_path=tmp_path / "engine.log",
                    grace_seconds=grace_seconds,
                )
            )

        yield started


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def listening(process: EngineProcess) -> bool:
    return "listening" in process.tail()


def test_an_engine_leads_a_session_of_its_own_and_ends_on_request(start: Start) -> None:
    process = start()
    until(lambda: listening(process))
    assert os.getsid(process.pid) == process.pid
    assert process.poll() is None
    began = time.monotonic()
    assert process.stop() == -signal.SIGTERM
    assert time.monotonic() - began < 3.0
    assert not psutil.pid_exists(process.pid)


def test_stopping_twice_is_harmless(start: Start) -> None:
    process = start()
    until(lambda: listening(process))
    assert process.stop() == process.stop()


def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    process = start(mode="deaf", grace_seconds=0.3)
    until(lambda: listening(process))
    began = time.monotonic()
    assert process.stop() == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - began < 4.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to a subreaper")
def test_descendants_in_other_sessions_are_ended_too(start: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    process = start("--pids", str(pids), mode="children", grace_seconds=0.5)
    until(lambda: listening(process))
    assert len(alive(pids)) == 3
    process.stop()
    assert alive(pids) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to a subreaper")
def test_what_an_engine_leaves_behind_when_it_exits_is_ended(start: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    process = start("--pids", str(pids), mode="orphan", grace_seconds=0.3)
    assert process.wait(20.0) == 4
    assert alive(pids) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_tree_dies_with_its_launcher(number: int, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    port = free_port("127.0.0.1", 0)
    code = (
        "import os, sys, time; from pathlib import Path; from autolaunch.daemon.process import EngineProcess\n"
        "EngineProcess(sys.argv[1:], environment=dict(os.environ), working_directory=Path.cwd(), grace_seconds=0.3)\n"
        "time.sleep(3600)\n"
    )
    root = str(Path(__file__).parents[2])
    engine = (sys.executable, str(FAKE), "--port", str(port), "--mode", "children", "--pids", str(pids))
    with subprocess.Popen((sys.executable, "-c", code, *engine), cwd=root) as launcher:
        until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        launcher.send_signal(number)
        launcher.wait(10)
    until(lambda: alive(pids) == [])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_the_engine_dies_when_its_guard_is_killed(start: Start) -> None:
    process = start()
    until(lambda: listening(process))
    os.kill(process._guard.pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(process.pid))


def test_a_program_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="/no/such/engine could not be started: No such file"):
        EngineProcess(("/no/such/engine",), environment={}, working_directory=tmp_path)


def test_a_flood_neither_blocks_the_engine_nor_fills_the_memory(start: Start) -> None:
    process = start(mode="flood")
    until(lambda: process.output_bytes > 3_000_000)
    lines = process.tail(10_000)
    assert len(lines) <= RING_LINES + 1
    assert not any("\x1b" in line or "\x00" in line or "title" in line for line in lines)


def test_a_line_of_ten_megabytes_keeps_its_beginning(start: Start) -> None:
    process = start(mode="longline")
    until(lambda: listening(process))
    assert process.output_bytes > 10_000_000
    assert max(len(line) for line in process.tail()) <= LINE_CHARACTERS
    process.stop()
    assert process.output.log_path is not None
    assert process.output.log_path.stat().st_size < 2 * LINE_CHARACTERS


def test_the_log_begins_anew_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolaunch.daemon.output.LOG_BYTES", 1_000)
    output = Output(tmp_path / "engine.log")
    for number in range(100):
        output.feed(f"line {number} of an engine that says a lot\n".encode())
    output.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000
    assert "line 99 " in (tmp_path / "engine.log").read_text()


def test_a_log_that_cannot_be_written_does_not_stop_the_reading(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = Output(tmp_path / "file" / "engine.log")
    output.feed(b"one\ntwo")
    assert output.tail() == ("one", "two")


def test_a_progress_bar_is_lines() -> None:
    output = Output(None)
    output.feed(b"10%\r50%\r")
    output.feed(b"100%\ndone\n")
    assert output.tail() == ("10%", "50%", "100%", "done")


def test_escapes_are_stripped_and_words_are_kept() -> None:
    assert printable("\x1b[1;32mINFO\x1b[0m\tok \x1b]8;;http://x\x07link\x9b") == "INFO\tok link"


def test_the_listener_is_known_to_be_ours_or_not(start: Start) -> None:
    process = start()
    until(lambda: listening(process))
    port = int(process.argv[process.argv.index("--port") + 1])
    assert process.listens_on(port) is True
    assert process.listens_on(free_port("127.0.0.1", 0)) is False
    assert process.cpu_seconds()


def test_a_program_with_more_than_a_thousand_files_open_can_have_one(start: Start) -> None:
    """``select`` refuses descriptors above 1023; the guard's is as high as the launcher's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < 1100:
            held.append(os.dup(held[0]))
        process = start()
        assert process.ends_on > 1023
        until(lambda: listening(process))
        assert not process.stopping
        assert run(("echo", "hello")).output == "hello\n", "nor do the programs that are asked about the machine"
        assert process.stop() == -signal.SIGTERM
        assert not psutil.pid_exists(process.pid)
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
