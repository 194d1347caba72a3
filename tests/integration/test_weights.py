"""Nothing incomplete, damaged or with code in it reaches an engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from autolaunch.hub_cache import cache_directory
from autolaunch.hubs import obtaining
from autolaunch.weights import checked, local_checkpoint
from engines import miniature
from selector.catalog import Catalog
from selector.errors import DownloadError
from tests.fakes.plans import candidate

TINY = Catalog().model("glm-tiny")
GLM = Catalog().model("glm-4.6")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.generate(TINY, tmp_path_factory.mktemp("models") / "glm-tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def cut(folder: Path) -> None:
    data = first_shard(folder).read_bytes()
    first_shard(folder).write_bytes(data[: len(data) // 2])


def lengthen(folder: Path) -> None:
    with first_shard(folder).open("ab") as file:
        file.write(b"x")


def empty(folder: Path) -> None:
    first_shard(folder).write_bytes(b"")


def no_header(folder: Path) -> None:
    first_shard(folder).write_bytes((3).to_bytes(8, "little") + b"abc")


def huge_header(folder: Path) -> None:
    first_shard(folder).write_bytes((2**62).to_bytes(8, "little") + b"{}")


def change_header(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    data = first_shard(folder).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(sorted((value for key, value in header.items() if key != "__metadata__"), key=lambda t: t["data_offsets"]))
    text = json.dumps(header).encode()
    first_shard(folder).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def begin_before_the_file(folder: Path) -> None:
    def change(tensors: list[dict[str, Any]]) -> None:
        tensors[0]["data_offsets"][0] = -tensors[0]["data_offsets"][1]

    change_header(folder, change)


def lie_upon_another(folder: Path) -> None:
    def change(tensors: list[dict[str, Any]]) -> None:
        tensors[1] |= tensors[0]

    change_header(folder, change)


def claim_another_shape(folder: Path) -> None:
    def change(tensors: list[dict[str, Any]]) -> None:
        tensors[0]["shape"] = [*tensors[0]["shape"], 2]

    change_header(folder, change)


def lose_a_tensor(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["model.layers.1.lost.weight"] = first_shard(folder).name
    index.write_text(json.dumps(value))


def name_no_shards(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def cut_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1000])


def lose_a_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def climb(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def test_a_whole_checkpoint_passes(whole: Path) -> None:
    checked(whole)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "damaged|bytes long"),
        (lengthen, "bytes long, its header says"),
        (empty, "damaged"),
        (no_header, "no safetensors header"),
        (huge_header, "damaged or cut short"),
        (begin_before_the_file, "no safetensors header"),
        (lie_upon_another, "does not begin where"),
        (claim_another_shape, "no safetensors header"),
        (lose_a_shard, "not whole: .*safetensors"),
        (name_no_shards, r"index\.json names no shards"),
        (lose_the_tokenizer, r"has no tokenizer\.json"),
        (cut_the_tokenizer, r"tokenizer\.json is damaged or cut short"),
        (lose_a_tensor, r"00001-of-00002\.safetensors does not hold 'model\.layers\.1\.lost"),
        (climb, "not whole"),
        (lose_config, r"has no config\.json"),
        (break_config, r"config\.json cannot be read"),
    ],
)
def test_what_is_not_whole_is_refused_by_its_name(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    with pytest.raises(DownloadError, match=said):
        checked(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_glm.py", "x.pt", "x.pth", "x.pkl"])
def test_files_that_can_run_code_are_refused_unless_told_otherwise(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(DownloadError, match=f"{name} can run code"):
        checked(folder)
    checked(folder, trust_code=True)


@pytest.mark.parametrize("name", ["code/x.py", "a/b/x.pyc", "lib/x.so", "original/consolidated.PTH"])
def test_files_that_can_run_code_are_refused_in_subfolders_too(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).touch()
    with pytest.raises(DownloadError, match=f"{name} can run code"):
        checked(folder)


@pytest.mark.parametrize(("key", "value"), [("model_file", "x.txt"), ("auto_map", {"AutoModel": "m.Glm"})])
@pytest.mark.parametrize("file", ["config.json", "video_preprocessor_config.json"])
def test_a_file_that_asks_for_code_is_refused(folder: Path, file: str, key: str, value: object) -> None:
    present = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(present | {key: value}))
    with pytest.raises(DownloadError, match=rf"{file} asks for code of its own \({key}\)"):
        checked(folder)


def test_a_list_beside_the_weights_is_nobodys_fault(folder: Path) -> None:
    (folder / "words.json").write_text("[1]")
    checked(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_pipe_among_the_files_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "config.json":
        with pytest.raises(DownloadError, match=f"{name} is no regular file"):
            checked(folder)
    else:
        checked(folder)


def test_a_config_that_asks_for_code_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Glm"}}))
    with pytest.raises(DownloadError, match="auto_map"):
        checked(folder)


def test_a_miniature_is_generated_in_our_home_and_nothing_is_fetched(tmp_path: Path) -> None:
    chosen = candidate("mlx", "glm-tiny")
    made = local_checkpoint(chosen, TINY, home=tmp_path, offline=True)
    assert made.is_relative_to(tmp_path / "models")
    checked(made)
    assert local_checkpoint(chosen, TINY, home=tmp_path) == made


def test_the_miniature_that_was_chosen_is_made_and_each_has_its_own_folder(tmp_path: Path) -> None:
    chosen = candidate("llamacpp", "glm-tiny")
    gguf = msgspec.structs.replace(chosen.checkpoint, repo="autolaunch/glm-tiny-GGUF", format="gguf")
    made = local_checkpoint(msgspec.structs.replace(chosen, checkpoint=gguf), TINY, home=tmp_path)
    assert [path.name for path in made.glob("*.gguf")] == ["glm-tiny-F32.gguf"]
    assert local_checkpoint(chosen, TINY, home=tmp_path) != made
    assert made.is_dir()


def test_the_users_folder_is_served_where_it_is(folder: Path, tmp_path: Path) -> None:
    assert local_checkpoint(candidate("mlx", "glm-4.6"), GLM, home=tmp_path, model_path=folder) == folder


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="nothing is no folder"):
        checked(tmp_path / "nothing")


def test_offline_says_that_it_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match="is not on this machine") as caught:
        local_checkpoint(candidate("vllm", "glm-4.6"), GLM, home=tmp_path, offline=True)
    assert caught.value.hint is not None
    assert "--offline" in caught.value.hint


def test_the_cache_is_where_the_hubs_client_has_it() -> None:
    assert cache_directory({"HF_HUB_CACHE": "/c"}) == Path("/c")
    assert cache_directory({"HUGGINGFACE_HUB_CACHE": "/d"}) == Path("/d")
    assert cache_directory({"HF_HOME": "/h"}) == Path("/h/hub")
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_download_does_not_outlive_its_launcher(tmp_path: Path, number: int) -> None:
    pids = tmp_path / "pids"
    code = """
import os, subprocess, sys
from engines.leash import on_leash
program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(3600)"
argv = (sys.executable, "-c", program, sys.argv[1])
with on_leash(argv, environment=dict(os.environ), stdout=subprocess.DEVNULL) as process:
    process.wait()
"""
    with subprocess.Popen((sys.executable, "-c", code, str(pids)), cwd=Path(__file__).parents[2]) as launcher:
        deadline = time.monotonic() + 20
        while not (pids.exists() and pids.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        program = psutil.Process(int(pids.read_text()))
        leash = program.parent()
        assert leash is not None
        launcher.send_signal(number)
        launcher.wait(10)
    assert not psutil.wait_procs([program, leash], timeout=10)[1]


def test_both_the_fetch_and_its_token_are_on_the_leash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def refuse(argv: Any, **options: Any) -> Any:
        seen.append(argv)
        raise DownloadError("seen")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(obtaining, "on_leash", refuse)
    with pytest.raises(DownloadError, match="seen"):
        local_checkpoint(candidate("vllm", "glm-4.6"), GLM, home=tmp_path, offline=True, hub_pinned=True)
    assert len(seen) == 1
    assert all("HF_TOKEN" not in part for part in seen[0])
