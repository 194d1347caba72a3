"""Freeing takes the files of one checkpoint and nothing else, and nothing that somebody has in use."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from autolaunch.freeing import Doomed, doomed_of, free
from autolaunch.in_use import reachable_by_others
from autolaunch.on_disk import OnDisk, on_disk, repository_folder, total_bytes
from engines import miniature
from selector.catalog import Catalog
from selector.errors import ConfigurationError, InUse

FP8 = "zai-org/GLM-4.6-FP8"
GGUF = "unsloth/GLM-4.6-GGUF"
Q5, Q6 = "Q5_K_M/GLM-4.6-Q5_K_M", "Q6_K/GLM-4.6-Q6_K"


class Cache:
    """The hub's cache as its client lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, repo: str, commit: str, name: str, blob: str, size: int = 1000) -> Path:
        place = repository_folder(self.root, repo)
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "blobs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        (place / "blobs" / blob).write_bytes(b"x" * size)
        link = place / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(place / "blobs" / blob, link.parent))
        return link

    def unfinished(self, repo: str, blob: str, size: int) -> Path:
        path = repository_folder(self.root, repo) / "blobs" / f"{blob}.incomplete"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        return path

    def here(self, catalog: Catalog) -> tuple[OnDisk, ...]:
        return on_disk(catalog.model("glm-4.6"), cache=self.root, home=self.root / "home")

    def doomed(self, catalog: Catalog, repo: str, *quantizations: str, revision: str | None = None) -> Doomed | None:
        model = catalog.model("glm-4.6")
        wanted = [
            each
            for each in model.checkpoints
            if each.repo == repo and (not quantizations or each.quantization in quantizations)
        ]
        found = doomed_of(model, wanted, cache=self.root, home=self.root / "home", revision=revision)
        return found[0] if found else None


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    (tmp_path / "hub").mkdir()
    return Cache(tmp_path / "hub")


def whole(cache: Cache, commit: str = "aaa", *, shared: str = "same") -> None:
    cache.file(FP8, commit, "config.json", shared, 10)
    for number in (1, 2):
        cache.file(FP8, commit, f"model-0000{number}-of-00002.safetensors", f"{commit}{number}")


def test_what_is_here_is_told_with_its_size_whole_or_in_part(cache: Cache, catalog: Catalog) -> None:
    assert cache.here(catalog) == ()
    whole(cache)
    cache.file(GGUF, "bbb", f"{Q5}-00001-of-00002.gguf", "q5")
    (fp8, q5) = cache.here(catalog)
    assert (fp8.repo, fp8.whole, fp8.bytes_on_disk, fp8.revision) == (FP8, True, 2010, "aaa")
    assert (q5.quantization, q5.whole, q5.bytes_on_disk) == ("Q5_K_M", False, 1000)


def test_unfinished_files_count_where_nobody_else_can_have_them(cache: Cache, catalog: Catalog) -> None:
    cache.unfinished(FP8, "abc", 4096)
    (row,) = cache.here(catalog)
    assert (row.whole, row.bytes_on_disk, row.revision) == (False, 4096, None)
    doomed = cache.doomed(catalog, FP8)
    assert doomed is not None
    assert free(doomed) == 4096
    assert not repository_folder(cache.root, FP8).exists()


def test_a_repository_goes_whole_with_its_names_and_locks(cache: Cache, catalog: Catalog) -> None:
    whole(cache)
    locks = cache.root / ".locks" / repository_folder(cache.root, FP8).name
    locks.mkdir(parents=True)
    (locks / "aaa1.lock").touch()
    doomed = cache.doomed(catalog, FP8)
    assert doomed is not None
    assert free(doomed) == 2010
    assert not repository_folder(cache.root, FP8).exists()
    assert not locks.exists()
    assert cache.doomed(catalog, FP8) is None


def test_a_file_that_another_commit_has_too_stays(cache: Cache, catalog: Catalog) -> None:
    whole(cache, "aaa")
    whole(cache, "bbb")
    rows = cache.here(catalog)
    assert sum(row.bytes_on_disk for row in rows) == 4020
    assert total_bytes(rows, cache.root) == 4010, "the file that both have is there once"
    doomed = cache.doomed(catalog, FP8, revision="aaa")
    assert doomed is not None
    assert doomed.shared_bytes == 10
    assert free(doomed) == 2000
    (left,) = cache.here(catalog)
    assert (left.revision, left.whole, left.bytes_on_disk) == ("bbb", True, 2010)
    assert (repository_folder(cache.root, FP8) / "refs" / "main").read_text() == "bbb"


def test_the_names_of_a_commit_go_with_it(cache: Cache, catalog: Catalog) -> None:
    whole(cache, "bbb")
    whole(cache, "aaa")
    doomed = cache.doomed(catalog, FP8, revision="aaa")
    assert doomed is not None
    free(doomed)
    assert not (repository_folder(cache.root, FP8) / "refs" / "main").exists()
    assert not (repository_folder(cache.root, FP8) / "snapshots" / "aaa").exists()


def test_one_quantization_goes_and_the_others_stay(cache: Cache, catalog: Catalog) -> None:
    cache.file(GGUF, "bbb", f"{Q5}-00001-of-00001.gguf", "q5")
    other = cache.file(GGUF, "bbb", f"{Q6}-00001-of-00001.gguf", "q6")
    unknown = cache.file(GGUF, "bbb", "Q8_0/GLM-4.6-Q8_0.gguf", "q8")
    coming = cache.unfinished(GGUF, "q6-2", 50)
    doomed = cache.doomed(catalog, GGUF, "Q5_K_M")
    assert doomed is not None
    assert doomed.unfinished_bytes == 50
    assert free(doomed) == 1000
    assert other.exists()
    assert unknown.exists()
    assert coming.exists()
    assert not (repository_folder(cache.root, GGUF) / "snapshots" / "bbb" / "Q5_K_M").exists()
    assert not (repository_folder(cache.root, GGUF) / "blobs" / "q5").exists()


def test_a_quantization_that_no_profile_knows_stays_when_all_that_are_known_go(cache: Cache, catalog: Catalog) -> None:
    cache.file(GGUF, "bbb", f"{Q5}-00001-of-00001.gguf", "q5")
    unknown = cache.file(GGUF, "bbb", "Q8_0/GLM-4.6-Q8_0.gguf", "q8")
    cache.unfinished(GGUF, "abc", 50)
    doomed = cache.doomed(catalog, GGUF)
    assert doomed is not None
    assert free(doomed) == 1050
    assert unknown.exists()


def test_what_a_link_leads_to_elsewhere_is_not_touched(cache: Cache, catalog: Catalog, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 5000)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"x")
    whole(cache)
    snapshot = repository_folder(cache.root, FP8) / "snapshots" / "aaa"
    (snapshot / "model.safetensors.index.json").symlink_to(precious)
    (snapshot / "sub").symlink_to(folder)
    (snapshot / "hop").symlink_to(repository_folder(cache.root, FP8) / "blobs" / "hop")
    (repository_folder(cache.root, FP8) / "blobs" / "hop").symlink_to(precious)
    doomed = cache.doomed(catalog, FP8)
    assert doomed is not None
    assert free(doomed) == 2010
    assert precious.stat().st_size == 5000
    assert (folder / "model-00001-of-00001.safetensors").exists()


@pytest.mark.parametrize("part", ["", "blobs", "snapshots", "refs"])
def test_a_folder_that_is_a_link_to_elsewhere_is_refused(
    cache: Cache, catalog: Catalog, tmp_path: Path, part: str
) -> None:
    whole(cache)
    place = repository_folder(cache.root, FP8) / part
    moved = tmp_path / "moved"
    place.rename(moved)
    place.symlink_to(moved)
    with pytest.raises(ConfigurationError, match="is a link to"):
        cache.doomed(catalog, FP8)
    assert any(moved.iterdir())


def test_what_is_being_fetched_is_not_freed(cache: Cache, catalog: Catalog) -> None:
    cache.unfinished(FP8, "abc", 10)
    locks = cache.root / ".locks" / repository_folder(cache.root, FP8).name
    locks.mkdir(parents=True)
    doomed = cache.doomed(catalog, FP8)
    assert doomed is not None
    with (locks / "abc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InUse, match="being fetched"):
            free(doomed)
    assert free(doomed) == 10


def test_a_miniature_is_told_and_freed(tmp_path: Path, catalog: Catalog) -> None:
    model = catalog.model("glm-tiny")
    miniature.generate(model, tmp_path / "models" / "glm-tiny")
    (row,) = on_disk(model, cache=tmp_path / "none", home=tmp_path)
    assert (row.place, row.whole, row.hub) == ("made here", True, None)
    (doomed,) = doomed_of(model, model.checkpoints, cache=tmp_path / "none", home=tmp_path)
    assert free(doomed) == row.bytes_on_disk == miniature.size_bytes(model)
    assert not (tmp_path / "models" / "glm-tiny").exists()
    assert on_disk(model, cache=tmp_path / "none", home=tmp_path) == ()


def test_a_folder_of_that_name_that_was_not_made_here_is_left_alone(tmp_path: Path, catalog: Catalog) -> None:
    folder = tmp_path / "models" / "glm-tiny"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"mine")
    assert (
        doomed_of(catalog.model("glm-tiny"), catalog.model("glm-tiny").checkpoints, cache=tmp_path, home=tmp_path) == ()
    )


def test_a_private_folder_is_out_of_others_reach(tmp_path: Path) -> None:
    place = tmp_path / "private" / "hub"
    place.mkdir(parents=True)
    (tmp_path / "private").chmod(0o700)
    assert not reachable_by_others(place)
    assert reachable_by_others(Path("/usr/bin"))
