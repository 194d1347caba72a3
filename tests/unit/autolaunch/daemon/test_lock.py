"""One daemon a folder of state."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from autolaunch.daemon.lock import DaemonLock, Holder, holder
from selector.errors import ConfigurationError, DaemonRunning

HOLDING = """
import sys
from pathlib import Path
from autolaunch.daemon.lock import DaemonLock
lock = DaemonLock(Path(sys.argv[1]), clock=lambda: 1_800_000_000.0)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_daemon_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with DaemonLock(tmp_path / "state", clock=lambda: 1_800_000_000.0) as lock:
        assert stat.S_IMODE(lock.path.stat().st_mode) == 0o600
        with pytest.raises(DaemonRunning) as told:
            DaemonLock(tmp_path / "state")
        assert told.value.message == f"a daemon runs already: process {os.getpid()}, since 2027-01-15T08:00:00Z"
        assert told.value.exit_code == 5
        assert holder(tmp_path / "state") == Holder(os.getpid(), "2027-01-15T08:00:00Z")
    assert holder(tmp_path / "state") is None
    DaemonLock(tmp_path / "state").release()


def test_the_lock_ends_with_a_killed_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DaemonRunning, match=f"process {other.pid}, since 2027-01-15"):
            DaemonLock(tmp_path)
        other.kill()
        other.wait()
        with DaemonLock(tmp_path):
            assert holder(tmp_path) is not None


@pytest.mark.parametrize("text", [b"", b"\xff" * 500, b"-1 2027-01-15T08:00:00Z\n", b"12 \x1b[2Jnow\n", b"0 x"])
def test_what_the_file_says_of_its_holder_is_not_believed_blindly(tmp_path: Path, text: bytes) -> None:
    with DaemonLock(tmp_path) as lock:
        lock.path.write_bytes(text)
        with pytest.raises(DaemonRunning, match=r"another process$"):
            DaemonLock(tmp_path)
        assert holder(tmp_path) is None


def test_a_look_at_the_lock_takes_nothing(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert not (tmp_path / "daemon.lock").exists()


def test_an_engine_that_is_started_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = DaemonLock(tmp_path)
    program = (sys.executable, "-c", "print(); input()")
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False, env={"PYTHONUNBUFFERED": "1"}
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # what is closed on exec is closed a moment after it has begun
        lock.release()
        DaemonLock(tmp_path).release()
        child.stdin.write(b"end\n")


@pytest.mark.parametrize("there", ["file", "link", "folder"])
def test_where_no_lock_can_be_it_is_said(tmp_path: Path, there: str) -> None:
    folder = tmp_path / "state"
    if there == "file":
        folder.touch()
    else:
        folder.mkdir()
        if there == "link":
            (folder / "daemon.lock").symlink_to(tmp_path / "elsewhere")
        if there == "folder":
            (folder / "daemon.lock").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be locked"):
        DaemonLock(folder)
    assert not (tmp_path / "elsewhere").exists()
