"""What a node says of an environment and of weights that another machine has."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch.cli.app import run
from autolaunch.cluster.likeness import ENDS_BYTES, Asked, Told, files_of, look, sample, samples
from selector.contract import Checkpoint
from selector.errors import DownloadError, UsageError

GGUF = Checkpoint(
    repo="org/m", hub="huggingface", format="gguf", quantization="Q4_K_M", download_bytes=1, file_prefix="Q4/m-Q4_K_M"
)


def asked(folder: Path, *names: str, **changes: Any) -> Asked:
    values: dict[str, Any] = {
        "environment": str(folder / "engines" / "x"),
        "lock_sha256": "ab" * 32,
        "folder": str(folder),
        "files": samples(folder, names),
    }
    return Asked(**{**values, **changes})


@pytest.mark.parametrize("place", [0, ENDS_BYTES - 1, ENDS_BYTES, 2 * ENDS_BYTES - 1, 3 * ENDS_BYTES - 1])
def test_a_byte_at_either_end_of_a_file_tells_two_apart(tmp_path: Path, place: int) -> None:
    content = bytearray(place + 1 if place >= ENDS_BYTES else 3 * ENDS_BYTES)
    (tmp_path / "a").write_bytes(content)
    before = sample(tmp_path, "a")
    content[place] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert sample(tmp_path, "a") != before


def test_what_is_missing_other_or_no_file_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / name).write_bytes(b"abc")
    question = asked(tmp_path, *"abcde")
    assert look(question, tmp_path).weights == "same"
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"abd")
    (tmp_path / "c").unlink()
    os.mkfifo(tmp_path / "c")  # which is not waited for
    (tmp_path / "d").unlink()
    (tmp_path / "d").mkdir()
    found = look(question, tmp_path)
    assert (found.weights, found.differing, found.examples) == ("different", 4, ("a", "b", "c"))
    gone = look(msgspec.structs.replace(question, folder=str(tmp_path / "nowhere")), tmp_path)
    assert (gone.weights, gone.environment) == ("absent", "absent")


def test_only_the_very_mark_tells_of_one_disk(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("0123")
    for text, seen in (("0123", True), ("012", False), ("01234", False), ("", False)):
        question = asked(tmp_path, mark=str(tmp_path / "mark"), mark_text=text)
        assert look(question, tmp_path).shared is seen
    assert not look(asked(tmp_path, mark=str(tmp_path / "other"), mark_text="0123"), tmp_path).shared


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b"])
def test_files_elsewhere_are_not_looked_at(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (one,) = samples(tmp_path, ("a",))
    with pytest.raises(UsageError):
        look(asked(tmp_path, files=(msgspec.structs.replace(one, path=name),)), tmp_path)


def test_of_several_files_of_gguf_those_of_the_checkpoint_count(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M-00001-of-00002.gguf", "m-Q8_0.gguf", "config.json", ".git/x", ".cache/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"abc")
    assert files_of(tmp_path, GGUF) == ("config.json", "m-Q4_K_M-00001-of-00002.gguf")


def test_what_cannot_be_read_here_is_not_asked_of_others(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be read"):
        samples(tmp_path, ("nowhere",))


def test_the_command_answers_in_json_and_takes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path))
    (tmp_path / "a").write_bytes(b"abc")
    told = msgspec.json.encode(asked(tmp_path, "a"))
    for content, code in ((told, 0), (b"{}", 2), (b"\xff", 2), (b"[" * 100_000, 2), (b"x" * ((16 << 20) + 1), 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run(["node-check", "--json"]) == code
        document = capsys.readouterr().out
        if code == 0:
            assert msgspec.json.decode(document, type=Told).weights == "same"
        else:
            assert json.loads(document)["error"]["code"] == "usage"


def test_the_command_is_in_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "node-check" not in capsys.readouterr().out
