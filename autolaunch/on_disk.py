"""The checkpoints that lie on this machine: in a hub's cache, or made by autolaunch itself; whole or in part.

Names and sizes alone are looked at. A repository in Hugging Face's cache is a folder of *blobs* (the files, named by
their hashes) and of *snapshots* (a folder a commit, of links to blobs); two commits may share a blob. In ModelScope's
the snapshots hold the files themselves. A file is called ``….incomplete`` while it comes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec.structs import replace

from autolaunch.hub_cache import weights_here
from autolaunch.hubs.kept import load
from autolaunch.hubs.places import cache_of
from autolaunch.hubs.places import repository as folder_of
from selector.facts import CheckpointFacts, Hub, ModelFacts, checkpoint_id
from selector.values import Value

Place = Literal["hub cache", "made here", "own folder"]
UNFINISHED = ".incomplete"


class OnDisk(Value, frozen=True, kw_only=True):
    """The files of one checkpoint in one place, of one commit where the place keeps several.

    Attributes:
        hub: whose cache it is; ``None`` of what was made here, and of a folder of the user's that a profile is of.
        revision: the commit; ``None`` where only unfinished files are there, and of what is in no cache.
        whole: all of its weights are there.
        bytes_on_disk: what its files take, unfinished ones too. Two commits that share a file both count it.
        folder: the snapshot, or the repository's folder where there is none.
    """

    model: str
    repo: str
    quantization: str
    file_prefix: str | None = None
    place: Place
    hub: Hub | None = None
    revision: str | None = None
    whole: bool
    bytes_on_disk: int
    folder: Path


class Entry(NamedTuple):
    """A file of a snapshot. ``name`` is its path in it; ``blob`` the repository's own file that it leads to."""

    name: str
    path: Path
    blob: Path | None
    size_bytes: int


class Snapshot(NamedTuple):
    commit: str
    folder: Path
    entries: tuple[Entry, ...]


class Repository(NamedTuple):
    """A repository's folder in the hub's cache. ``unfinished`` are files that have not come whole, with their bytes."""

    folder: Path
    snapshots: tuple[Snapshot, ...]
    unfinished: tuple[tuple[Path, int], ...]


def named_at(checkpoint: CheckpointFacts) -> Iterator[tuple[Hub, str]]:
    """The hubs that have a checkpoint, and what they call its repository."""
    yield "huggingface", checkpoint.repo
    if checkpoint.modelscope is not None:
        yield "modelscope", checkpoint.modelscope


def repository(folder: Path) -> Repository | None:
    """What is there of a repository (:func:`autolaunch.hubs.places.repository`); ``None`` where there is nothing."""
    if not folder.is_dir():
        return None
    blobs = folder / "blobs"
    found = {
        place: tuple(_entries(place, blobs))
        for place in _listed(folder / "snapshots")
        if place.is_dir() and not place.is_symlink()
    }
    coming = [path for path in _listed(blobs) if path.name.endswith(UNFINISHED)]
    coming += [each.path for entries in found.values() for each in entries if each.name.endswith(UNFINISHED)]
    unfinished = tuple(
        (path, min(status.st_size, status.st_blocks * 512)) for path in coming if (status := _regular(path)) is not None
    )
    snapshots = tuple(
        Snapshot(place.name, place, tuple(each for each in entries if not each.name.endswith(UNFINISHED)))
        for place, entries in found.items()
    )
    return Repository(folder, snapshots, unfinished)


def _entries(place: Path, blobs: Path) -> Iterator[Entry]:
    for at, below, names in os.walk(place):
        # A link to a folder is one more link: what it leads to is not looked into.
        for name in sorted((*names, *(each for each in below if Path(at, each).is_symlink()))):
            path = Path(at, name)
            try:
                leads_to = os.path.normpath(Path(at) / path.readlink()) if path.is_symlink() else None
            except OSError:
                continue
            blob = None if leads_to is None or Path(leads_to).parent != blobs else Path(leads_to)
            found = _regular(blob if blob is not None else path)
            yield Entry(str(path.relative_to(place)), path, blob, 0 if found is None else found.st_size)


def _regular(path: Path) -> os.stat_result | None:
    """Of the file itself; ``None`` where there is none, or something else, such as a link."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def bytes_of(entries: Iterable[Entry]) -> int:
    """What they take together, a blob counted once."""
    return sum({entry.blob or entry.path: entry.size_bytes for entry in entries}.values())


def belongs(entry: Entry, file_prefix: str | None) -> bool:
    """Whether a file is of the checkpoint with this prefix (``None``: of the only one)."""
    return file_prefix is None or entry.name.startswith(file_prefix)


def made_folder(home: Path, repo: str) -> Path:
    """Where a generated checkpoint lies."""
    return home / "models" / repo.rpartition("/")[2]


def on_disk(model: ModelFacts, *, environ: Mapping[str, str], home: Path) -> tuple[OnDisk, ...]:
    """What of a model's checkpoints lies on this machine, in the order of the profile.

    Args:
        environ: says where the hubs' caches are.
        home: autolaunch's own folder.
    """
    found: list[OnDisk] = []
    repositories: dict[tuple[Hub, str], Repository | None] = {}
    for checkpoint in model.checkpoints:
        if model.generated:
            found += _made(model, checkpoint, home)
            continue
        if checkpoint.repo.startswith("/"):
            found += _own(model, checkpoint)
            continue
        for hub, repo in named_at(checkpoint):
            cache = cache_of(hub, environ)
            if (hub, repo) not in repositories:
                repositories[hub, repo] = repository(folder_of(hub, cache, repo))
            here = repositories[hub, repo]
            if here is not None:
                found += _cached(model, checkpoint, here, cache, hub, home)
    return tuple(found)


def _own(model: ModelFacts, checkpoint: CheckpointFacts) -> Iterator[OnDisk]:
    """A folder of the user's that a profile is of (``autolaunch models add FOLDER``)."""
    folder = Path(checkpoint.repo)
    prefix = folder / (checkpoint.file_prefix or "")
    sizes = [
        each.st_size
        for path in (folder.rglob("*") if folder.is_dir() else ())
        if str(path).startswith(str(prefix)) and (each := _regular(path)) is not None
    ]
    if sizes:
        yield OnDisk(
            model=model.id,
            repo=checkpoint.repo,
            quantization=checkpoint.quantization,
            file_prefix=checkpoint.file_prefix,
            place="own folder",
            whole=sum(sizes) >= checkpoint.download_bytes,
            bytes_on_disk=sum(sizes),
            folder=folder,
        )


def _made(model: ModelFacts, checkpoint: CheckpointFacts, home: Path) -> Iterator[OnDisk]:
    from engines.miniature import MANIFEST

    folder = made_folder(home, checkpoint.repo)
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        return
    sizes = [each.st_size for path in folder.iterdir() if (each := _regular(path)) is not None]
    yield OnDisk(
        model=model.id,
        repo=checkpoint.repo,
        quantization=checkpoint.quantization,
        file_prefix=checkpoint.file_prefix,
        place="made here",
        whole=True,
        bytes_on_disk=sum(sizes),
        folder=folder,
    )


def _cached(
    model: ModelFacts, checkpoint: CheckpointFacts, here: Repository, cache: Path, hub: Hub, home: Path
) -> Iterator[OnDisk]:
    prefix = checkpoint.file_prefix
    # Files under way have their hashes for names: of several quantizations nobody can tell whose they are.
    alone = prefix is None
    coming_bytes = sum(size for _, size in here.unfinished) if alone else 0
    base = OnDisk(
        model=model.id,
        repo=checkpoint.repo,
        quantization=checkpoint.quantization,
        file_prefix=prefix,
        place="hub cache",
        hub=hub,
        whole=False,
        bytes_on_disk=coming_bytes,
        folder=here.folder,
    )
    rows = []
    for snapshot in here.snapshots:
        entries = [entry for entry in snapshot.entries if belongs(entry, prefix)]
        if not entries:
            continue
        whole = _is_whole(model, checkpoint, snapshot.commit, cache, hub, home)
        size = bytes_of(entries)
        rows.append(replace(base, revision=snapshot.commit, folder=snapshot.folder, whole=whole, bytes_on_disk=size))
    if rows and coming_bytes:  # of the one that is not whole, or else of the last one
        at = next((place for place, row in enumerate(rows) if not row.whole), len(rows) - 1)
        rows[at] = replace(rows[at], bytes_on_disk=rows[at].bytes_on_disk + coming_bytes)
    elif coming_bytes:
        rows.append(base)
    yield from rows


def _is_whole(model: ModelFacts, checkpoint: CheckpointFacts, commit: str, cache: Path, hub: Hub, home: Path) -> bool:
    if hub == "huggingface":
        return checkpoint_id(checkpoint.repo, checkpoint.file_prefix) in weights_here(model, cache, commit, home=home)
    kept = load(home, hub, checkpoint.modelscope or "", commit, checkpoint.file_prefix)
    return kept is not None and kept.whole


def total_bytes(rows: Iterable[OnDisk]) -> int:
    """What all of them take together, every file once."""
    alone = sum(row.bytes_on_disk for row in rows if row.place != "hub cache")
    sizes: dict[Path, int] = {}
    repositories: dict[Path, Repository | None] = {}
    for row in rows:
        if row.place != "hub cache":
            continue
        folder = row.folder if row.revision is None else row.folder.parents[1]
        if folder not in repositories:
            repositories[folder] = repository(folder)
        here = repositories[folder]
        if here is None:
            continue
        sizes |= dict(here.unfinished) if row.file_prefix is None else {}
        for snapshot in here.snapshots:
            if snapshot.commit == row.revision:
                sizes |= {
                    entry.blob or entry.path: entry.size_bytes
                    for entry in snapshot.entries
                    if belongs(entry, row.file_prefix)
                }
    return alone + sum(sizes.values())
