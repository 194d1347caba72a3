"""The miniatures on the disk: the same bytes each time, whole or not there."""

from __future__ import annotations

import errno
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from engines import miniature
from engines.miniature import folder
from engines.miniature.layout import File
from selector.catalog import Catalog
from selector.errors import ConfigurationError, DownloadError, NoRoomOnDisk
from selector.facts import ModelFacts

CATALOG = Catalog()
TINY = CATALOG.model("glm-tiny")
TINY_VISION = CATALOG.model("glm-tiny-v")

SUMS: dict[str, dict[str, str]] = {
    "glm-tiny": {
        "chat_template.jinja": "9f97f6475ba81689d9e2b59fe076afb01b3b5ec085d475b0035ac40dbafb45be",
        "config.json": "ccaf845d358b5bfcf5fd07d6a4adb9e4356590522158b94c653e6016fb18e066",
        "generation_config.json": "e2821d3da6d853ccab9662e458ca1f6f2e3c92be0c9a387a3010565a93ed41f0",
        "miniature.json": "9e772faac2e3b6083124afc93a2f9fa1f711c7a8c3ca78a85b6787e014a36529",
        "model-00001-of-00002.safetensors": "73df6905c35b7b4d8e8ae87ab9f67c6b12b8c91bae85c83ef616952708911154",
        "model-00002-of-00002.safetensors": "07b8e57ffb39cb1b11838903417b6d00b874b2febddbb0573791e9cd7713d032",
        "model.safetensors.index.json": "9a5ddddbaf0d9cfbc2a96c98d54f20a834b7a4273f6c3af0084f4ad6972e3df4",
        "special_tokens_map.json": "c9c23e663f54997f8e29b29c83b1670b70e86f12a7ccdfa5d61fda55a45db217",
        "tokenizer.json": "623df075890880f24e0097e55b6d17f6d8eba5e40b9dae4245ed384bbc72267b",
        "tokenizer_config.json": "51b4d447e862f957c0bcba3062113418bb06d77965f986fd843b8adf0c805c86",
    },
    "glm-tiny-GGUF": {
        "glm-tiny-F32.gguf": "bb34418117b36630e0dab5f30034f0f3bf1ff4a366daf2dd9461e477d7bca9ac",
        "miniature.json": "98b8446e854f998a1a3e38b60d97bf9974fc9d8b41e7a2144c54af101775fba9",
    },
    "glm-tiny-v": {
        "chat_template.jinja": "9f97f6475ba81689d9e2b59fe076afb01b3b5ec085d475b0035ac40dbafb45be",
        "config.json": "e8eba17c88c33196cb1aa9757e3dd09d390cc7a5e9eea87c41dd7f907277a44b",
        "generation_config.json": "8a40f9ad6e4d5513e17ea910091652a8812788eec461bf5266420f2ebb4b7dd7",
        "miniature.json": "842a1c166369135166200ee306f4345383d58f4f9561aefa0d110f3d24fd3761",
        "model-00001-of-00002.safetensors": "215eccc0c247a82dd801a1f89a5596b89e2a9b8b9ba871f77416467b6355c781",
        "model-00002-of-00002.safetensors": "0437defb18c9cbd555747bca52159af74f3982827206193106b225e969ae2736",
        "model.safetensors.index.json": "dd9d5cfee17444cb7add79eb5334b041bf33ae035242472dcee646eafe3e09bc",
        "preprocessor_config.json": "f586e8e9c796760febff38b0a2dd69d22d5d012727263f2e145ded0fa427ec27",
        "special_tokens_map.json": "c9c23e663f54997f8e29b29c83b1670b70e86f12a7ccdfa5d61fda55a45db217",
        "tokenizer.json": "623df075890880f24e0097e55b6d17f6d8eba5e40b9dae4245ed384bbc72267b",
        "tokenizer_config.json": "006f93513307790c9f30d1058a1576065567cc7757cf7882c1f54e78589c4ba9",
        "video_preprocessor_config.json": "557c2cd06dfdd8a1888b8ca4d0590707437d312949271b3b96319960ad618523",
    },
}

MADE = {each.repo.split("/")[1]: (model, each) for model in (TINY, TINY_VISION) for each in model.checkpoints}


def sums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def neighbours(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "models" / "glm-tiny"


@pytest.mark.parametrize("repo", SUMS)
def test_the_same_bytes_come_out_on_every_machine(repo: str, tmp_path: Path) -> None:
    model, checkpoint = MADE[repo]
    assert sums(miniature.generate(model, tmp_path / "there", checkpoint)) == SUMS[repo]


@pytest.mark.parametrize("repo", SUMS)
def test_the_size_is_known_before_anything_is_written_and_is_that_of_the_profile(repo: str, tmp_path: Path) -> None:
    model, checkpoint = MADE[repo]
    expected = miniature.size_bytes(model, checkpoint)
    folder = miniature.generate(model, tmp_path / "there", checkpoint)
    assert sum(path.stat().st_size for path in folder.iterdir()) == expected < 10_000_000
    assert expected == checkpoint.download_bytes


def test_the_first_checkpoint_is_made_when_nobody_says_which(place: Path) -> None:
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]
    assert miniature.checkpoint_of(TINY, "somebody/else") == TINY.checkpoints[0]
    assert miniature.checkpoint_of(TINY, "autolaunch/glm-tiny-GGUF").format == "gguf"


def test_one_checkpoint_takes_the_place_of_another_in_a_folder(place: Path) -> None:
    miniature.generate(*(TINY, place, miniature.checkpoint_of(TINY, "autolaunch/glm-tiny-GGUF")))
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]


def test_a_format_that_is_not_made_is_a_clear_error(place: Path) -> None:
    other = msgspec.structs.replace(TINY.checkpoints[0], format="bnb")
    with pytest.raises(ConfigurationError, match=r"no miniature of glm-tiny in the format bnb"):
        miniature.generate(TINY, place, other)
    assert not place.parent.exists()


def test_the_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert miniature.generate(TINY, Path("here")) == tmp_path / "here"


def test_a_whole_one_is_reused(place: Path) -> None:
    before = miniature.generate(TINY, place).stat()
    after = miniature.generate(TINY, place).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_user_may_read_it(place: Path) -> None:
    assert miniature.generate(TINY, place).stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json", "miniature.json"])
def test_an_altered_file_is_made_anew(name: str, place: Path) -> None:
    miniature.generate(TINY, place)
    altered = bytearray((place / name).read_bytes())
    altered[-5] ^= 1
    (place / name).write_bytes(altered)
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]
    assert neighbours(place) == [".glm-tiny.lock", "glm-tiny"]


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_missing_file_is_made_anew(name: str, place: Path) -> None:
    miniature.generate(TINY, place)
    (place / name).unlink()
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]


def test_a_miniature_of_other_shapes_is_replaced(place: Path) -> None:
    wider = msgspec.structs.replace(TINY, architecture=msgspec.structs.replace(TINY.architecture, n_routed_experts=16))
    miniature.generate(wider, place)
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]


def test_where_the_shapes_are_from_does_not_change_them(place: Path) -> None:
    before = miniature.generate(TINY, place).stat().st_ino
    cited = msgspec.structs.replace(TINY, architecture=msgspec.structs.replace(TINY.architecture, source="elsewhere"))
    assert miniature.generate(cited, place).stat().st_ino == before


def test_an_empty_folder_is_filled(place: Path) -> None:
    place.mkdir(parents=True)
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]


def test_what_an_interrupted_run_left_is_removed(place: Path) -> None:
    left = place.with_name(".glm-tiny.partial-abc")
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    stranger = place.with_name(".glm-tiny-v.partial-abc")
    stranger.mkdir()
    miniature.generate(TINY, place)
    assert neighbours(place) == [".glm-tiny-v.partial-abc", ".glm-tiny.lock", "glm-tiny"]


def test_a_folder_that_is_no_miniature_is_not_touched(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(DownloadError, match="no miniature"):
        miniature.generate(TINY, place)
    assert (place / "thesis.txt").read_text() == "years of work"


def test_a_link_is_not_replaced_by_a_folder(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.parent.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(DownloadError, match="no miniature"):
        miniature.generate(TINY, place)
    assert place.is_symlink()


def test_no_room_is_seen_before_the_first_byte(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(NoRoomOnDisk, match=r"needs 6\.9 MB .* 1\.0 MB are free") as caught:
        miniature.generate(TINY, place)
    assert caught.value.hint
    assert neighbours(place) == [".glm-tiny.lock"]


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third file to be written ends in ``error``."""
    real, count = folder._write, 0

    def write(draft: Path, file: File) -> miniature.FileEntry:
        nonlocal count
        count += 1
        if count == 3:
            raise error
        return real(draft, file)

    monkeypatch.setattr(folder, "_write", write)


def test_a_disk_that_fills_up_is_named_and_nothing_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(NoRoomOnDisk, match="filled up"):
        miniature.generate(TINY, place)
    assert neighbours(place) == [".glm-tiny.lock"]


def test_an_interrupt_leaves_nothing_and_the_next_run_makes_it(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing(KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            miniature.generate(TINY, place)
        assert neighbours(place) == [".glm-tiny.lock"]
    assert sums(miniature.generate(TINY, place)) == SUMS["glm-tiny"]


def test_an_altered_one_stays_when_its_successor_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    miniature.generate(TINY, place)
    (place / "config.json").write_text("{}")
    failing(OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(NoRoomOnDisk):
        miniature.generate(TINY, place)
    assert (place / "config.json").read_text() == "{}"


def test_a_folder_that_may_not_be_written_is_named_with_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(PermissionError(errno.EACCES, "Permission denied", str(place)), monkeypatch)
    with pytest.raises(DownloadError, match="Permission denied") as caught:
        miniature.generate(TINY, place)
    assert str(place) in caught.value.message
    assert "AUTOLAUNCH_HOME" in str(caught.value.hint)


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(DownloadError, match="models"):
        miniature.generate(TINY, tmp_path / "models" / "glm-tiny")


def test_callers_at_the_same_time_make_it_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callers, real, made = 4, folder._make, []
    together = threading.Barrier(callers)

    def make(model: ModelFacts, files: tuple[File, ...], directory: Path, recipe: str) -> None:
        made.append(directory)
        real(model, files, directory, recipe)

    monkeypatch.setattr(folder, "_make", make)

    def call(_: int) -> Path:
        together.wait()
        return miniature.generate(TINY, place)

    with ThreadPoolExecutor(callers) as pool:
        assert set(pool.map(call, range(callers))) == {place}
    assert made == [place]
    assert sums(place) == SUMS["glm-tiny"]
