"""What was verified is remembered, and no longer than it holds."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from autolaunch.hubs import kept
from autolaunch.hubs.kept import Kept, keep, load, stamped, with_stamps
from autolaunch.hubs.listing import HubFile, Listing

COMMIT = "ab" * 20


@pytest.fixture
def whole(tmp_path: Path) -> Kept:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    files = tuple(HubFile(path=name, size_bytes=3, sha256="cd" * 32) for name in ("a.json", "b.safetensors"))
    for file in files:
        (folder / file.path).write_bytes(b"abc")
    listing = Listing(repo="org/m", hub="huggingface", revision=COMMIT, files=files)
    stamps = [stamp for file in files if (stamp := stamped(folder, file, "cd" * 32)) is not None]
    return with_stamps(Kept(listing=listing, folder=str(folder)), stamps)


def test_what_was_verified_is_read_back_and_holds(whole: Kept, tmp_path: Path) -> None:
    assert whole.whole
    keep(tmp_path, whole)
    assert load(tmp_path, "huggingface", "org/m", COMMIT) == whole
    assert list(kept.every(tmp_path)) == [whole]
    assert load(tmp_path, "modelscope", "org/m", COMMIT) is None
    assert load(tmp_path, "huggingface", "org/m", COMMIT, "Q4") is None
    kept.forget(tmp_path, whole)
    assert load(tmp_path, "huggingface", "org/m", COMMIT) is None


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, 1)


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replaced(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"xyz")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [gone, cut, touched, replaced])
def test_a_file_that_changed_in_any_way_is_verified_no_longer(whole: Kept, change: object) -> None:
    change(Path(whole.folder) / "b.safetensors")  # type: ignore[operator] # one of those above
    assert not whole.whole


def test_a_file_without_a_stamp_is_not_verified(whole: Kept) -> None:
    assert not msgspec.structs.replace(whole, stamps=whole.stamps[:1]).whole
    assert msgspec.structs.replace(whole, stamps=()).whole is False


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b"x" * 100, b"[" * 100_000])
def test_what_cannot_be_read_is_nothing(whole: Kept, tmp_path: Path, content: bytes) -> None:
    keep(tmp_path, whole)
    place = kept.place_of(tmp_path, "huggingface", "org/m", COMMIT, None)
    place.write_bytes(content)
    assert load(tmp_path, "huggingface", "org/m", COMMIT) is None
    place.unlink()
    os.mkfifo(place)
    assert load(tmp_path, "huggingface", "org/m", COMMIT) is None  # and is not waited for


def test_a_home_that_may_not_be_written_is_nobodys_fault(whole: Kept, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keep(tmp_path / "file", whole)
    assert list(kept.every(tmp_path / "file")) == []
