"""What a checkpoint says of itself comes to the profile that it was made from."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.adding.profile import (
    free_id,
    profile_of,
    refuse_known,
    source_of,
    toml_of,
    write_profile,
)
from autolaunch.adding.sources import Folder
from engines import miniature
from selector.architecture import stored_weights
from selector.catalog import Catalog
from selector.errors import AutolaunchError, DownloadError, UsageError
from tests.fakes.small import small


@pytest.mark.parametrize(
    ("model_id", "repo"),
    [("glm-4.6", "zai-org/GLM-4.6-FP8"), ("glm-tiny", "autolaunch/glm-tiny"), ("glm-tiny-v", "autolaunch/glm-tiny-v")],
)
def test_a_made_checkpoint_comes_to_the_profile_that_it_was_made_from(
    catalog: Catalog, tmp_path: Path, model_id: str, repo: str
) -> None:
    known = catalog.model(model_id)
    model, checkpoint = small(known, next(each for each in known.checkpoints if each.repo == repo))
    folder = miniature.generate(model, tmp_path / "made", checkpoint)
    found = profile_of(Folder(folder), catalog, name="a-new-one")
    (read,) = found.checkpoints
    assert (read.format, read.quantization) == (checkpoint.format, checkpoint.quantization)
    assert read.storage == checkpoint.storage
    shape = msgspec.structs.replace(found.architecture, source="")
    expected = msgspec.structs.replace(model.architecture, source="")
    if read.storage is None or not read.storage.mtp:  # what only the prediction layer would tell
        expected = msgspec.structs.replace(expected, mtp_has_own_embedding_and_head=False)
    assert shape == expected
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert read.download_bytes == files
    planned = stored_weights(found.architecture, read)
    assert files / (planned.total / planned.scale) == pytest.approx(1, abs=0.02), "the layout is that of the files"
    assert {each.engine for each in found.parsers} == {"vllm", "sglang"}
    assert "assumed" in read.quality_source
    again = write_profile(found, tmp_path / "home")
    assert Catalog((tmp_path / "home" / "profiles",)).model("a-new-one") == found
    assert list(again.parent.iterdir()) == [again]


def test_what_was_added_is_planned(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalog.model("glm-4.6")
    model, checkpoint = small(known, known.checkpoints[1])
    folder = miniature.generate(model, tmp_path / "GLM-4.6_mine", checkpoint)
    found = profile_of(Folder(folder), catalog)
    assert found.id == "glm-4.6-mine"
    write_profile(found, api.home())
    plan = api.plan("glm-4.6-mine", hardware="8xh100")
    assert plan.chosen is not None
    assert plan.chosen.checkpoint.repo == str(folder)
    weights = plan.chosen.memory.per_device.weights_bytes * len(plan.chosen.parallel.devices)
    assert weights > checkpoint.download_bytes * 0.5
    with pytest.raises(UsageError, match="is known already"):
        refuse_known(str(folder), api.catalog())


def test_gguf_is_a_known_models_or_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    model = catalog.model("glm-tiny")
    folder = miniature.generate(model, tmp_path / "tiny-GGUF", model.checkpoints[1])
    found = profile_of(Folder(folder), catalog)
    (read,) = found.checkpoints
    assert (read.format, read.quantization, read.file_prefix) == ("gguf", "F32", "glm-tiny-F32")
    assert read.download_bytes == (folder / "glm-tiny-F32.gguf").stat().st_size
    shape = msgspec.structs.replace(model.architecture, num_hidden_layers=5)
    other = miniature.generate(
        msgspec.structs.replace(model, architecture=shape), tmp_path / "other", model.checkpoints[1]
    )
    with pytest.raises(DownloadError, match="none of a known model"):
        profile_of(Folder(other), catalog)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.fixture
def folder(catalog: Catalog, tmp_path: Path) -> Path:
    return miniature.generate(catalog.model("glm-tiny"), tmp_path / "repo")


def configured(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "'llama', and glm4_moe and glm4v_moe are supported"),
        ({"model_type": None}, "are supported"),
        ({"auto_map": {"AutoModel": "modeling.X"}}, "asks for code of its own"),
        ({"text_config": {"model_file": "x.py"}}, "asks for code of its own"),
        ({"num_hidden_layers": "4"}, "does not describe such a model"),
        ({"num_hidden_layers": 10**30}, "config.json"),
        ({"num_hidden_layers": -1}, "config.json describes no model"),
        ({"hidden_size": 0}, "config.json describes no model"),
        ({"num_hidden_layers": 8}, "do not hold the model"),
        ({"vocab_size": 100_000}, "do not hold the model"),
        ({"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}, "do not hold the model"),
        ({"quantization_config": []}, "is no object"),
        ({"vision_config": 5}, "vision_config is no object"),
        ({"rope_theta": None}, "rope_theta"),
    ],
)
def test_what_is_no_such_model_is_refused_in_a_sentence(
    catalog: Catalog, folder: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DownloadError, match=said):
        profile_of(Folder(configured(folder, **changes)), catalog)


@pytest.mark.parametrize("content", ["[" * 200_000, "{", "null", '{"a": ' * 5000, "\x00", "1" * 5000])
def test_a_configuration_that_is_none_is_told(catalog: Catalog, folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(DownloadError, match=r"config\.json"):
        profile_of(Folder(folder), catalog)


def test_pickles_alone_and_nothing_at_all_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DownloadError, match="has no weights"):
        profile_of(Folder(tmp_path), catalog)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DownloadError, match="can run code"):
        profile_of(Folder(tmp_path), catalog)


def test_a_shard_that_the_index_names_and_that_is_not_there_is_told(catalog: Catalog, folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(DownloadError, match="not whole by its index"):
        profile_of(Folder(folder), catalog)


def headers() -> Iterator[tuple[bytes, str]]:
    """Hostile beginnings of a file of 10,000 bytes of tensors, and what is said."""

    def with_length(length: int, rest: bytes = b"") -> bytes:
        return struct.pack("<Q", length) + rest

    def of(value: object, text: str | None = None) -> bytes:
        content = (json.dumps(value) if text is None else text).encode()
        return with_length(len(content), content)

    def entry(begins: int, ends: int, shape: object = None, dtype: str = "U8") -> dict[str, object]:
        return {"dtype": dtype, "shape": [ends - begins] if shape is None else shape, "data_offsets": [begins, ends]}

    yield with_length(2**63), "does not fit"
    yield with_length(2**64 - 1), "does not fit"
    yield with_length(0), "no safetensors header"
    yield b"\x01", "no safetensors header"
    yield of([]), "no safetensors header"
    yield of({"a": entry(0, 6000), "b": entry(5000, 10_000)}), "does not begin where"
    yield of({"a": entry(0, 5000), "b": entry(6000, 10_000)}), "does not begin where"
    yield of({"a": entry(0, 20_000)}), "bytes of tensors"
    yield of({"a": entry(0, 10_000, [-1])}), "no safetensors header"
    yield of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 5]}}), "no safetensors header"
    yield of({"a": entry(0, 10_000, [2**62])}), "no safetensors header"
    yield of({"a": entry(0, 10_000, [2**40, 2**40])}), "not as long as its shape"
    yield of({"a": entry(0, 10_000, [10_000] * 9)}), "no safetensors header"
    yield of({"a": entry(0, 10_000, dtype="Q9")}), "kind of number"
    yield of({"a": {"dtype": "U8", "shape": [1.5], "data_offsets": [0, 1]}}), "no safetensors header"
    yield of(None, '{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 1]}}'), "NaN is no number"
    yield of(None, "[" * 150_000), "no safetensors header"
    yield of(None, '{"a":' * 50_000), "no safetensors header"
    yield of({"a": "x"}), "no safetensors header"
    yield of({}), "bytes of tensors"


HEADERS = tuple(headers())


@pytest.mark.parametrize(("header", "said"), HEADERS, ids=range(len(HEADERS)))
def test_a_hostile_header_ends_in_a_clear_error(catalog: Catalog, folder: Path, header: bytes, said: str) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(header + bytes(10_000))
    with pytest.raises(DownloadError, match=said) as caught:
        profile_of(Folder(folder), catalog)
    assert len(caught.value.message) < 600


def test_a_header_longer_than_any_is_not_read(catalog: Catalog, folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30))
        file.truncate(2 << 30)  # a hole
    with pytest.raises(DownloadError, match="longer than any"):
        profile_of(Folder(folder), catalog)


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "a",
        "a/b/c",
        "../../nowhere",
        "a/..",
        "-x/y",
        "a/b c",
        "a/b\n",
        "a\0/b",
        "ä/b",
        "a/",
        "/x/nowhere",
        "https://x/y",
    ],
)
def test_what_is_no_repository_is_a_usage_error(place: str) -> None:
    with pytest.raises(UsageError):
        source_of(place)


def test_an_id_is_made_of_the_repositorys_name_and_is_nobody_elses(catalog: Catalog) -> None:
    assert free_id("someone/GLM-4.6_AWQ-4bit", catalog) == "glm-4.6-awq-4bit"
    assert free_id("someone/GLM-4.6", catalog) == "glm-4.6-someone"
    assert free_id("x/--..--A", catalog) == "a"


@pytest.mark.parametrize("name", ["", "../x", "A", "glm-4.6", "-x", "x/y", "x" * 100, "a..b"])
def test_a_name_that_cannot_be_an_id_is_refused(catalog: Catalog, folder: Path, name: str) -> None:
    with pytest.raises(AutolaunchError):
        profile_of(Folder(folder), catalog, name=name)


def test_what_is_known_says_so(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match=r"is known already, as a checkpoint of glm-4\.6"):
        refuse_known("ZAI-org/glm-4.6-fp8", catalog)
    refuse_known("someone/GLM-4.6-AWQ", catalog)


def test_texts_of_strangers_stay_texts_in_the_profile(catalog: Catalog, folder: Path) -> None:
    found = profile_of(Folder(folder), catalog, name="a-new-one")
    hostile = msgspec.structs.replace(found, title='x"\n[architecture]\nschema = 2\x7f\\')
    import tomli

    assert tomli.loads(toml_of(hostile))["title"] == 'x" [architecture] schema = 2 \\'
