"""The state file: read back as it was, whole at every moment, never a reason not to serve."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from autolaunch.daemon import state_file
from autolaunch.daemon.deployment import Changes, Fault, Kept, KeptDeployment, KeptRun
from autolaunch.daemon.state_file import StateFile, boot_id
from selector.request import Pins

FAULT = Fault(reason="out of memory", permanent=True, message="out of memory", lines=("a", "b"))
FULL = Kept(
    boot_id="one",
    deployments={
        "glm-4.6": KeptDeployment(
            wanted="stopped",
            failures=(1.5, 2.5),
            latched=FAULT,
            changes=Changes(pinned=Pins(engine="vllm", gpus=(0, 1)), context_tokens=4096, steps=("less context",)),
            run=KeptRun(mark="m", guard_pid=2, guard_started=1.0, engine_pid=3, engine_started=2.0),
        )
    },
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.json"


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_what_was_written_is_read_by_the_next_daemon(path: Path) -> None:
    assert StateFile(path).write(FULL) is None
    assert StateFile(path).read("one") == (FULL, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert names(path) == ["state.json"]


def test_no_file_is_an_empty_state_and_nothing_to_be_said(path: Path) -> None:
    assert StateFile(path).read("one") == (Kept(boot_id="one"), None)


def test_of_another_boot_only_what_is_wanted_holds(path: Path) -> None:
    StateFile(path).write(FULL)
    kept, said = StateFile(path).read("two")
    assert said is None
    assert kept == Kept(boot_id="two", deployments={"glm-4.6": KeptDeployment(wanted="stopped")})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is corrupt"),
        (b"{", "is corrupt"),
        (b"\xff\xfe", "is corrupt"),
        (b'{"schema":1}', "is corrupt"),
        (b'{"schema":1,"boot_id":"one","left_by":"a stranger"}', "is corrupt"),
        (b'{"schema":2,"boot_id":"one"}', "schema '2'"),
        (b"[" * 100_000, "is corrupt"),
        (b" " * (state_file.MAXIMUM_BYTES + 1), "larger"),
    ],
    ids=["empty", "cut", "binary", "no boot", "foreign key", "later schema", "deep", "large"],
)
def test_what_cannot_be_read_is_set_aside_and_said(path: Path, content: bytes, said: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    file = StateFile(path, clock=lambda: 1_800_000_000.5)
    kept, told = file.read("one")
    assert kept == Kept(boot_id="one")
    assert told is not None
    assert said in told
    assert "state.json.corrupt-1800000000" in told
    assert path.with_name("state.json.corrupt-1800000000").read_bytes() == content
    assert not path.exists()
    assert file.write(FULL) is None
    assert StateFile(path).read("one") == (FULL, None)


def test_five_of_those_set_aside_are_kept_the_newest(path: Path) -> None:
    path.parent.mkdir()
    for second in range(98, 105):  # 100 comes after 99
        path.write_bytes(b"{")
        StateFile(path, clock=lambda second=second: second).read("one")  # type: ignore[misc]  # bound in the loop
    assert names(path) == sorted(f"state.json.corrupt-{second}" for second in range(100, 105))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_set_aside_and_never_waited_for(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    file = StateFile(path)
    kept, said = file.read("one")
    assert kept == Kept(boot_id="one")
    assert said is not None
    assert "is no regular file" in said
    assert file.write(FULL) is None
    assert path.is_file()


def test_what_has_not_changed_is_not_written(path: Path) -> None:
    file = StateFile(path)
    file.write(FULL)
    before = path.stat().st_ino
    assert file.write(FULL) is None
    assert path.stat().st_ino == before
    again = StateFile(path)
    again.read("one")
    again.write(FULL)
    assert path.stat().st_ino == before
    file.write(Kept(boot_id="one"))
    assert path.stat().st_ino != before


def test_a_full_disk_is_said_once_and_so_is_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(path)
    file.write(FULL)
    write = os.write

    def full(descriptor: int, content: Any) -> int:
        if len(content) > 20:
            return write(descriptor, content[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        said = file.write(Kept(boot_id="one"))
        assert said is not None
        assert "No space left on device" in said
        assert "serving goes on" in said
        assert file.write(Kept(boot_id="one", deployments={"a": KeptDeployment()})) is None
    assert names(path) == ["state.json"]
    assert StateFile(path).read("one") == (FULL, None)
    assert file.write(Kept(boot_id="one")) == f"the state is written to {path} again"
    assert file.write(FULL) is None
    assert StateFile(path).read("one") == (FULL, None)


@pytest.mark.parametrize("call", ["open", "fsync", "mkdir"])
def test_a_file_system_that_is_read_only_never_raises(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, call, refuse)
    said = StateFile(path).write(FULL)
    assert said is not None
    assert "Read-only file system" in said


def test_what_a_killed_writer_left_is_written_over(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("state.json.new").write_bytes(b"x" * 10_000)
    assert StateFile(path).write(FULL) is None
    assert names(path) == ["state.json"]
    assert msgspec.json.decode(path.read_bytes(), type=Kept) == FULL


def test_a_link_in_the_temporary_files_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    other = tmp_path / "other"
    other.write_text("mine")
    path.with_name("state.json.new").symlink_to(other)
    StateFile(path).write(FULL)
    assert other.read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own name for a boot is Linux's")
def test_a_boot_has_one_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert boot_id() == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    monkeypatch.setattr(state_file, "_BOOT_ID", tmp_path / "none")
    assert boot_id() == f"{psutil.boot_time():.0f}"
