"""A GGUF file is as long as its header says, and a header that lies is an error with the file's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies

from autolaunch.headers import whole_gguf
from autolaunch.weights import checked, weights_of
from engines import miniature
from selector.catalog import Catalog
from selector.contract import Checkpoint
from selector.errors import DownloadError

TINY = Catalog().model("glm-tiny")
GGUF = next(each for each in TINY.checkpoints if each.format == "gguf")
CHECKPOINT = Checkpoint(
    repo=GGUF.repo,
    hub="huggingface",
    format="gguf",
    quantization=GGUF.quantization,
    download_bytes=GGUF.download_bytes,
    file_prefix=GGUF.file_prefix,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = miniature.generate(TINY, tmp_path_factory.mktemp("models") / "gguf", GGUF)
    return weights_of(folder, CHECKPOINT)


def test_a_whole_file_passes(whole: Path) -> None:
    whole_gguf(whole)
    checked(whole.parent, CHECKPOINT)


@pytest.mark.parametrize("kept", [0, 3, 20, 24, 1000, 20_000, -1, -4096])
def test_a_file_that_was_cut_is_refused_by_its_name(whole: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / whole.name
    data = whole.read_bytes()
    cut.write_bytes(data[:kept])
    with pytest.raises(DownloadError, match=r"glm-tiny-F32\.gguf"):
        checked(tmp_path, CHECKPOINT)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "glm-tiny-F32.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(DownloadError, match="no GGUF header"):
        checked(tmp_path, CHECKPOINT)


@given(place=strategies.integers(4, 4000), value=strategies.integers(0, 255))
def test_a_damaged_header_is_either_refused_or_as_good_as_whole(whole: Path, place: int, value: int) -> None:
    """Whatever a byte is turned into, nothing but a DownloadError comes of it, and at once."""
    damaged = whole.with_name("damaged.gguf")
    if not damaged.exists():
        shutil.copy(whole, damaged)
    with damaged.open("r+b") as file:
        file.seek(place)
        before = file.read(1)
        file.seek(place)
        file.write(bytes((value,)))
    try:
        whole_gguf(damaged)
    except DownloadError as error:
        assert "damaged.gguf" in error.message
    finally:
        with damaged.open("r+b") as file:
            file.seek(place)
            file.write(before)


def test_a_part_that_is_missing_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "glm-tiny-F32-00001-of-00002.gguf")
    with pytest.raises(DownloadError, match=r"glm-tiny-F32-00002-of-00002\.gguf is missing"):
        checked(tmp_path, CHECKPOINT)
    shutil.copy(whole, tmp_path / "glm-tiny-F32-00002-of-00002.gguf")
    checked(tmp_path, CHECKPOINT)
    assert weights_of(tmp_path, CHECKPOINT).name == "glm-tiny-F32-00001-of-00002.gguf"


def test_a_file_in_the_hubs_sub_folder_is_found(whole: Path, tmp_path: Path) -> None:
    nested = msgspec.structs.replace(CHECKPOINT, file_prefix="F32/glm-tiny-F32")
    (tmp_path / "F32").mkdir()
    shutil.copy(whole, tmp_path / "F32" / whole.name)
    checked(tmp_path, nested)
    assert weights_of(tmp_path, nested).parent.name == "F32"
    checked(whole.parent, nested)


def test_a_quantization_that_is_not_there_is_named(whole: Path) -> None:
    other = msgspec.structs.replace(CHECKPOINT, file_prefix="glm-tiny-Q8_0")
    with pytest.raises(DownloadError, match="glm-tiny-Q8_0"):
        checked(whole.parent, other)
