"""What runs a program on a node, without a cluster around it: its lines, its end, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from autolaunch.cluster import keeper, runner
from autolaunch.cluster.runner import Runner

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

KEEPER = Path(keeper.__file__).read_text()
#: Begins a descendant that left the session, lost its parent and does not listen; and waits, as deaf as that.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(300)"
if os.fork() == 0:
    child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    print("pid", child.pid, flush=True)
    os._exit(0)
os.wait()
print("pid", os.getpid(), flush=True)
{then}
"""


def begun(*argv: str, timeout_seconds: float = 30.0, most_bytes: int = 1 << 20, **environment: str) -> Runner:
    return Runner(KEEPER, argv, environment, timeout_seconds, most_bytes)


def heard(
    one: Runner, *, until: Callable[[list[tuple[str, str]]], bool] = lambda _: False
) -> tuple[list[tuple[str, str]], Any]:
    """What it said until it ended, or until enough of it came."""
    lines: list[tuple[str, str]] = []
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        more, ended = one.heard(1.0)
        lines += more
        if ended is not None or until(lines):
            return lines, ended
    raise AssertionError(f"it did not end: {lines}")


def pids(lines: list[tuple[str, str]]) -> list[int]:
    return [int(text.split()[1]) for _, text in lines if text.startswith("pid ")]


def gone(*processes: int) -> bool:
    """Whether they end within a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(
            psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in processes
        ):
            return True
        time.sleep(0.05)  # the kernel tells nobody but the parent
    return False


def test_what_nobody_asks_for_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that lost its head, and with it whoever wanted to know."""
    monkeypatch.setattr(runner, "UNHEARD_SECONDS", 3.0)
    one = begun(sys.executable, "-c", STUBBORN.format(then="time.sleep(300)"))
    lines, ended = heard(one, until=lambda lines: len(pids(lines)) == 2)
    assert ended is None
    time.sleep(2.0)  # nobody asks, but not for long enough
    more, ended = one.heard(2.0)
    assert (more, ended) == ([], None)
    assert all(psutil.pid_exists(pid) for pid in pids(lines))
    assert gone(*pids(lines))
    assert heard(one)[1]["outcome"] == "cancelled"


def test_lines_come_by_stream_and_the_exit_code_is_the_programs() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); print('last', end=''); sys.exit(7)"
    lines, ended = heard(begun(sys.executable, "-c", code))
    assert [text for stream, text in lines if stream == "stdout"] == ["out", "last"]
    assert [text for stream, text in lines if stream == "stderr"] == ["err"]
    assert (ended["outcome"], ended["exit_code"], ended["dropped_bytes"]) == ("exited", 7, 0)


def test_an_argument_is_one_argument_and_nothing_a_shell_would_make_of_it() -> None:
    told = ("a b", "$(id)", "; exit 9", "*", "", "-x", "ü\n2")
    lines, _ = heard(begun(sys.executable, "-c", "import sys; print(repr(sys.argv[1:]))", *told))
    assert lines == [("stdout", repr(list(told)))]


def test_there_is_no_input_and_the_place_is_the_root() -> None:
    lines, _ = heard(begun(sys.executable, "-c", "import os, sys; print(repr(sys.stdin.read()), os.getcwd())"))
    assert lines == [("stdout", "'' /")]


def test_a_signal_that_ended_it_is_its_exit_code() -> None:
    _, ended = heard(begun(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    assert (ended["outcome"], ended["exit_code"]) == ("exited", 137)


@pytest.mark.parametrize("program", ["no-program-of-that-name", "/no/such/program"])
def test_a_program_that_is_not_there_is_missing(program: str) -> None:
    _, ended = heard(begun(program))
    assert ended["outcome"] == "missing"


def test_a_program_that_cannot_be_run_has_failed(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\0\0\0\0")
    broken.chmod(0o755)
    _, ended = heard(begun(str(broken)))
    assert ended["outcome"] == "failed"
    assert "format" in ended["message"]
    assert heard(begun(sys.executable, "a\0b"))[1]["outcome"] == "failed"


def test_a_program_is_looked_for_beside_python_then_on_the_path_then_among_the_users_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "python" / "bin", tmp_path / "path", tmp_path / "home" / ".local" / "bin"]
    for each in places:
        each.mkdir(parents=True)
        (each / "tool").write_text("#!/bin/sh\n")
        (each / "tool").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(places[0] / "python3"))
    environment = {"PATH": str(places[1]), "HOME": str(tmp_path / "home")}
    for each in places:
        assert runner.place_of("tool", environment) == str(each / "tool")
        (each / "tool").unlink()
    assert runner.place_of("tool", environment) is None


def test_variables_are_over_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.environ['OURS'], os.environ['HOME'])"
    lines, _ = heard(begun(sys.executable, "-c", code, OURS="x", HOME="/home/of/ours"))
    assert lines == [("stdout", "x /home/of/ours")]


def test_devices_that_were_hidden_from_the_worker_are_shown_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's variables are changed by Ray after it began: those that it began with are the node's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lines, _ = heard(begun(sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"))
    assert lines == [("stdout", "None")]


@pytest.mark.parametrize("how", ["deadline", "cancel", "by itself"])
def test_nothing_that_descends_from_it_is_left(how: str) -> None:
    then = "pass" if how == "by itself" else "time.sleep(300)"
    code = STUBBORN.replace("{then}", then)
    began = time.monotonic()
    one = begun(sys.executable, "-c", code, timeout_seconds=3.0 if how == "deadline" else 60.0)
    lines, ended = heard(one, until=lambda lines: len(pids(lines)) == 2)
    if how == "cancel":
        one.cancel()
    if ended is None:
        _, ended = heard(one)
    assert ended["outcome"] == {"deadline": "timed_out", "cancel": "cancelled", "by itself": "exited"}[how]
    found = pids(lines)
    assert len(found) == 2
    assert gone(*found)
    assert time.monotonic() - began < 20


def test_nothing_is_left_when_the_worker_is_killed(tmp_path: Path) -> None:
    source = f"""
import sys
made = {{"__name__": "runner"}}
exec(open({str(Path(runner.__file__))!r}).read(), made)
keeper = open({str(Path(keeper.__file__))!r}).read()
one = made["Runner"](keeper, [sys.executable, "-c", sys.argv[1]], {{}}, 60.0, 1 << 20)
while True:
    for _, text in one.heard(1.0)[0]:
        print(text, flush=True)
"""
    code = STUBBORN.replace("{then}", "time.sleep(300)")
    with subprocess.Popen([sys.executable, "-I", "-c", source, code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        found = pids([("stdout", worker.stdout.readline()), ("stdout", worker.stdout.readline())])
        assert len(found) == 2
        between = [each.pid for each in psutil.Process(found[1]).parents() if each.pid not in (1, os.getpid())][:1]
        assert psutil.Process(between[0]).cmdline()[1:3] == ["-I", "-"]
        assert between[0] not in [each.pid for each in psutil.Process(worker.pid).children()], "Ray would kill it first"
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(10)
        assert gone(*found, *between)


def test_a_flood_is_bounded_and_counted() -> None:
    code = "import sys\nfor _ in range(20000): sys.stdout.write('x' * 99 + '\\n')"
    lines, ended = heard(begun(sys.executable, "-c", code, most_bytes=10_000))
    assert len(lines) == 100
    assert ended["outcome"] == "exited"
    assert ended["dropped_bytes"] == 20_000 * 100 - 10_000


def test_of_a_line_that_is_too_long_the_beginning_is_kept() -> None:
    code = "import sys; sys.stdout.write('x' * 1_000_000 + '\\nnext\\n')"
    lines, ended = heard(begun(sys.executable, "-c", code, most_bytes=10_000_000))
    assert [len(text) for _, text in lines] == [runner.MOST_LINE_BYTES, 4]
    assert ended["dropped_bytes"] == 1_000_001 - runner.MOST_LINE_BYTES


def test_bytes_that_are_no_text_do_no_harm() -> None:
    lines, _ = heard(begun(sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'\xff\x00\x1b[2J\n')"))
    assert lines == [("stdout", "\ufffd\x00\x1b[2J")]


def test_what_a_program_is_given_to_read_it_reads_whole_and_then_comes_to_its_end() -> None:
    code = "import sys; told = sys.stdin.read(); print(len(told), told[-3:])"
    assert heard(begun(sys.executable, "-c", code))[0] == [("stdout", "0 ")]
    text = "abé" * 1_000_000  # far more than a pipe holds, or a variable
    one = Runner(KEEPER, (sys.executable, "-c", code), {}, 30.0, 1 << 20, text)
    assert heard(one)[0] == [("stdout", "3000000 abé")]
    deaf = Runner(KEEPER, (sys.executable, "-c", "print(1)"), {}, 30.0, 1 << 20, text)
    assert heard(deaf)[1]["exit_code"] == 0
