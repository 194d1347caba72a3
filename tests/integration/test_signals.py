"""Signals against a real process: the test's own child, which runs our entry point or our handlers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The entry point with a command line that waits inside the part named first, and says when it does.
WAITING = """
import sys, time
import autolaunch.cli.main as main
def waiting(arguments):
    try:
        print("here", flush=True)  # inside: a signal may follow at once
        time.sleep(30)
    finally:
        print("cleaning", flush=True)
        {cleaning}
        print("clean", flush=True)
main._run = waiting
main.main()
"""


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (sys.executable, "-c", code, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cleans_up_says_so_and_sets_the_exit_code(number: signal.Signals, code: int) -> None:
    with start(WAITING.format(cleaning="pass")) as process:
        assert line(process) == "here"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert "clean" in out.splitlines()
    assert err.startswith("autolaunch: stopped")
    assert "Traceback" not in err


def test_a_second_ctrl_c_does_not_break_the_cleaning() -> None:
    process = subprocess.Popen(
        (sys.executable, "-c", WAITING.format(cleaning="sys.stdin.readline()")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        assert line(process) == "here"
        process.send_signal(signal.SIGINT)
        assert line(process) == "cleaning"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate("go on\n", timeout=20)
    assert process.returncode == 130
    assert out.splitlines() == ["clean"]
    assert err == "autolaunch: stopped\n"


def test_a_deferred_signal_is_raised_when_the_block_is_done() -> None:
    code = """
import os, signal
from autolaunch.cli import signals
signals.install()
try:
    with signals.deferred():
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        print("stopped the engine")
    print("never")
except signals.Stopped as stopped:
    print(stopped.exit_code)
"""
    with start(code) as process:
        out, err = process.communicate(timeout=20)
    assert out.splitlines() == ["stopped the engine", "143"], err


def test_an_interrupt_that_python_swallowed_leaves_us_able_to_hear_the_next() -> None:
    code = """
import os, signal, gc
from autolaunch.cli import signals
signals.install()
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
import sys
sys.unraisablehook = lambda _: None
Finalized()
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
    print("deaf")
except signals.Stopped:
    print("heard")
"""
    with start(code) as process:
        out, err = process.communicate(timeout=20)
    assert out.strip() == "heard", err


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    code = """
import os, signal
from autolaunch.cli import signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signals.install()
os.kill(os.getpid(), signal.SIGHUP)
print("goes on")
"""
    with start(code) as process:
        out, err = process.communicate(timeout=20)
    assert out.strip() == "goes on", err


MAIN = "from autolaunch.cli.main import main; main()"
BROKEN = """
import autolaunch.cli.main as main
def broken(arguments):
    raise KeyError("a bug of ours")
main._run = broken
main.main()
"""


def test_a_fault_of_ours_exits_1_in_one_sentence() -> None:
    with start(BROKEN, "models") as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert "this is a fault of autolaunch, not of yours: KeyError: 'a bug of ours'" in err
    assert "--verbose" in err
    assert "Traceback" not in err


def test_a_fault_of_ours_shows_where_when_asked() -> None:
    with start(BROKEN, "models", "--verbose") as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" in err
    with start(BROKEN, "models", AUTOLAUNCH_DEBUG="1") as process:
        _, err = process.communicate(timeout=20)
    assert "Traceback" in err


def test_a_fault_of_ours_is_json_for_programs() -> None:
    with start(BROKEN, "models", "--json") as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert json.loads(out)["error"]["code"] == "internal"


def test_nobody_reading_is_no_error_to_speak_of() -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        (sys.executable, "-c", MAIN, "hardware"),
        stdout=written,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=20,
        check=False,
    )
    os.close(written)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("arguments", [["hardware"], ["hardware", "--json"], ["plan", "nothing", "--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_that_cannot_be_written_is_said(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            (sys.executable, "-c", MAIN, *arguments),
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            cwd=ROOT,
            timeout=20,
            check=False,
        )
    assert done.returncode == 1
    assert b"the output cannot be written" in done.stderr
    assert b"fault of autolaunch" not in done.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["hardware"], 0), (["plan", "nothing"], 2)])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_lead_nowhere(arguments: list[str], code: int, closed: str) -> None:
    command = f'exec "$0" -c "$1" {" ".join(arguments)} {closed}'
    done = subprocess.run(
        ("/bin/sh", "-c", command, sys.executable, MAIN), capture_output=True, cwd=ROOT, timeout=20, check=False
    )
    assert done.returncode == code
    assert b"fault of autolaunch" not in done.stderr + done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_messages_that_nobody_can_take_do_not_change_the_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        for arguments, code in ((["plan", "nothing"], 2), (["hardware"], 0)):
            done = subprocess.run(
                (sys.executable, "-c", MAIN, *arguments),
                stdout=subprocess.PIPE,
                stderr=full,
                cwd=ROOT,
                timeout=20,
                check=False,
            )
            assert done.returncode == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_hang_up_is_129_also_when_no_stream_can_be_written() -> None:
    code = """
import os, sys, time
import autolaunch.cli.main as main
def waiting(arguments):
    print("lost", file=sys.stdout)
    os.write(int(arguments[0]), b"here")
    time.sleep(30)
main._run = waiting
main.main()
"""
    read, written = os.pipe()
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            (sys.executable, "-c", code, str(written)),
            stdout=full,
            stderr=full,
            pass_fds=(written,),
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # what is lost is lost at the end
            cwd=ROOT,
        )
    with process:
        os.close(written)
        assert os.read(read, 4) == b"here"
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 129
    os.close(read)


def test_a_plan_in_json_loads_nothing_heavy() -> None:
    code = """
import sys
from autolaunch.cli.app import run
run(["plan", "glm-4.6", "--hardware", "8xh200", "--json"])
heavy = {"rich", "psutil", "pynvml", "asyncio", "http", "huggingface_hub", "subprocess"} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
"""
    with start(code) as process:
        out, err = process.communicate(timeout=20)
    assert json.loads(out)["schema"] == 1
    assert err.strip() == "[]"
