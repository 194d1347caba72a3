"""The program that exports carry: what a hub's client left is whole, or it says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autolaunch.exporting.fetch_whole import wrong


def shard(path: Path, *, cut: int = 0) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"1234"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[: len(content) - cut])


def checkpoint(folder: Path, *, count: int = 3) -> None:
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for name in names:
        shard(folder / name)
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {f"t{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_what_is_whole_is_so(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    assert wrong(tmp_path, "") is None
    shard(tmp_path / "q" / "m-Q4-00001-of-00001.gguf")
    assert wrong(tmp_path, "q/m-Q4") is None


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "config.json"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path)
    (tmp_path / name).unlink()
    assert wrong(tmp_path, "") == f"{name} is missing"


def test_one_shard_without_its_index_is_not_all(tmp_path: Path) -> None:
    shard(tmp_path / "model-00001-of-00003.safetensors")
    assert wrong(tmp_path, "") == "model-00002-of-00003.safetensors is missing"
    shard(tmp_path / "m-00002-of-00002.gguf")
    assert wrong(tmp_path, "m") == "m-00001-of-00002.gguf is missing"


def test_nothing_is_not_whole(tmp_path: Path) -> None:
    assert wrong(tmp_path, "") == "*.safetensors is missing"


def test_a_shard_that_was_cut_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    shard(tmp_path / "model-00003-of-00003.safetensors", cut=1)
    assert wrong(tmp_path, "") == "model-00003-of-00003.safetensors is not as long as it says"
