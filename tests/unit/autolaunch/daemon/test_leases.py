"""Leases between processes: one holder a device, all or nothing, gone with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autolaunch.daemon.leases import Leases
from selector.errors import DevicesTaken, EngineStartError

A, B, C = "GPU-a", "GPU-b", "GPU-c"


def test_a_device_has_one_holder_who_is_named(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    with leases.take("glm-4.6", (A, B)), pytest.raises(DevicesTaken) as told:
        leases.take("glm-4.5v", (B, C))
    assert told.value.message == f"device GPU-b is in use by glm-4.6 (process {os.getpid()})"
    assert told.value.exit_code == 5


def test_it_is_all_or_nothing(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    held = leases.take("one", (C,))
    with pytest.raises(DevicesTaken):
        leases.take("two", (A, B, C))
    held.release()
    held.release()
    with leases.take("three", (C, B, A)) as lease:
        assert lease.uuids == (A, B, C)


def test_without_devices_it_is_empty_and_makes_nothing(tmp_path: Path) -> None:
    with Leases(tmp_path / "leases").take("glm-tiny", ()) as lease:
        assert lease.uuids == ()
    assert not (tmp_path / "leases").exists()


def test_a_name_of_a_device_is_no_path(tmp_path: Path) -> None:
    with Leases(tmp_path / "leases").take("one", ("MIG-GPU-a/1/0", "../../x", "\0")):
        assert all(path.parent == tmp_path / "leases" for path in (tmp_path / "leases").iterdir())
        assert len(list((tmp_path / "leases").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 400, b'{"pid": 1}'])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path, content: bytes) -> None:
    with Leases(tmp_path).take("one", (A,)):
        (tmp_path / f"{A}.lock").write_bytes(content)
        with pytest.raises(DevicesTaken, match=r"by another process$"):
            Leases(tmp_path).take("two", (A,))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineStartError, match="cannot be made"):
        Leases(tmp_path / "file").take("one", (A,))


def test_a_lease_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from autolaunch.daemon.leases import Leases\n"
        "lease = Leases(pathlib.Path(sys.argv[1])).take('glm-4.6', ['GPU-a'])\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DevicesTaken, match=rf"by glm-4.6 \(process {other.pid}\)"):
            Leases(tmp_path).take("glm-4.5v", (A,))
        other.send_signal(signal.SIGKILL)
        other.wait()
        Leases(tmp_path).take("glm-4.5v", (A,)).release()
