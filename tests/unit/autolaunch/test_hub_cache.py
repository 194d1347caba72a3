"""What the hub's cache holds is known by names alone, and what is half there is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolaunch import api
from autolaunch.hub_cache import weights_here
from selector.catalog import Catalog
from selector.machines import report_from_spec

FP8 = "zai-org/GLM-4.6-FP8"
GGUF = "unsloth/GLM-4.6-GGUF"


def snapshot(cache: Path, repo: str, commit: str = "abc", ref: str = "main") -> Path:
    """A snapshot as the hub's client lays it out: a reference, and links to files that have come whole."""
    place = cache / ("models--" + repo.replace("/", "--"))
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    folder = place / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def shards(folder: Path, stem: str, count: int, ending: str = "safetensors", missing: tuple[int, ...] = ()) -> None:
    for number in range(1, count + 1):
        if number not in missing:
            path = folder / f"{stem}-{number:05}-of-{count:05}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


def test_a_whole_snapshot_is_here(tmp_path: Path, catalog: Catalog) -> None:
    shards(snapshot(tmp_path, FP8), "model", 93)
    assert weights_here(catalog.model("glm-4.6"), tmp_path) == {FP8}


def test_a_shard_that_lacks_or_leads_nowhere_is_a_snapshot_that_is_not_here(tmp_path: Path, catalog: Catalog) -> None:
    folder = snapshot(tmp_path, FP8)
    shards(folder, "model", 93, missing=(93,))
    assert weights_here(catalog.model("glm-4.6"), tmp_path) == frozenset()
    (folder / "model-00093-of-00093.safetensors").symlink_to(tmp_path / "gone")
    assert weights_here(catalog.model("glm-4.6"), tmp_path) == frozenset()


def test_a_folder_of_configuration_alone_is_not_here(tmp_path: Path, catalog: Catalog) -> None:
    (snapshot(tmp_path, FP8) / "config.json").write_text("{}")
    assert weights_here(catalog.model("glm-4.6"), tmp_path) == frozenset()
    assert weights_here(catalog.model("glm-4.6"), tmp_path / "nowhere") == frozenset()


def test_one_quantization_of_a_repository_is_here_and_the_others_are_not(tmp_path: Path, catalog: Catalog) -> None:
    folder = snapshot(tmp_path, GGUF)
    shards(folder, "Q6_K/GLM-4.6-Q6_K", 6, "gguf")
    shards(folder, "Q5_K_M/GLM-4.6-Q5_K_M", 6, "gguf", missing=(2,))
    assert weights_here(catalog.model("glm-4.6"), tmp_path) == {f"{GGUF}:Q6_K/GLM-4.6-Q6_K"}


def test_another_revision_is_another_snapshot(tmp_path: Path, catalog: Catalog) -> None:
    shards(snapshot(tmp_path, FP8, commit="old", ref="v1"), "model", 3)
    model = catalog.model("glm-4.6")
    assert weights_here(model, tmp_path) == frozenset()
    assert weights_here(model, tmp_path, "v1") == weights_here(model, tmp_path, "old") == {FP8}


def test_only_a_plan_for_this_machine_looks_and_says_what_is_here(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(snapshot(tmp_path, "mlx-community/GLM-4.6-5bit"), "model", 50)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    mac = report_from_spec("m3-ultra-512gb", catalog)
    monkeypatch.setattr(api, "probe", lambda: mac)
    here = api.plan("glm-4.6", known=catalog)
    assert here.chosen is not None
    local = {each.checkpoint.quantization: each.checkpoint.local for each in (here.chosen, *here.alternatives)}
    assert [name for name, is_here in local.items() if is_here] == ["5bit"]
    for other in (api.plan("glm-4.6", hardware="m3-ultra-512gb"), api.plan("glm-4.6", hardware=mac, known=catalog)):
        assert other.chosen is not None
        assert {each.checkpoint.local for each in (other.chosen, *other.alternatives)} == {None}
