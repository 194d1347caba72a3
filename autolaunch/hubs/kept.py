"""What was held against its hashes, and has not changed since: so that a file of many gigabytes is hashed once.

A small file a checkpoint in ``<home>/weights``. A stamp holds as long as the file's length, its time of change and its
inode are those that it had when it was hashed; whatever else it is now is hashed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from autolaunch.daemon import small_file
from autolaunch.hubs.listing import HubFile, Listing
from selector.facts import Hub, ModelFacts, checkpoint_id
from selector.values import Value, readable

MOST_BYTES = 16 * 2**20
_SCHEMA = 1


class Stamp(Value, frozen=True, kw_only=True):
    """A file as it was when its content had the hash that the hub gives."""

    path: str
    size_bytes: int
    mtime_ns: int
    inode: int
    sha256: str


class Kept(Value, frozen=True, kw_only=True):
    """A checkpoint that was fetched or checked. ``file_prefix`` tells one quantization of a repository from others."""

    schema: int = _SCHEMA
    listing: Listing
    file_prefix: str | None = None
    folder: str
    stamps: tuple[Stamp, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all of its files are here as they were when they were hashed; a look at each, nothing is read."""
        stamps = {each.path: each for each in self.stamps}
        folder = Path(self.folder)
        return all(
            (stamp := stamps.get(file.path)) is not None and stamp == stamped(folder, file, stamp.sha256)
            for file in self.listing.files
        )


def stamped(folder: Path, file: HubFile, sha256: str) -> Stamp | None:
    """The stamp of a file as it is now; ``None`` where it is not here in its length."""
    try:
        status = (folder / file.path).stat()
    except OSError:
        return None
    if status.st_size != file.size_bytes:
        return None
    return Stamp(
        path=file.path,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        sha256=sha256,
    )


def place_of(home: Path, hub: Hub, repo: str, commit: str, file_prefix: str | None) -> Path:
    """The file in which it is kept."""
    told = "\0".join((hub, repo, commit, file_prefix or ""))
    return home / "weights" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"


def load(home: Path, hub: Hub, repo: str, commit: str, file_prefix: str | None = None) -> Kept | None:
    """What is kept of a checkpoint; ``None`` where nothing is, or nothing that can be read."""
    found = _read(place_of(home, hub, repo, commit, file_prefix))
    if found is None:
        return None
    one = found.listing
    same = (one.hub, one.repo, one.revision, found.file_prefix) == (hub, repo, commit, file_prefix)
    return found if same else None


def every(home: Path) -> Iterator[Kept]:
    """All checkpoints of which something is kept, whole or not (``Kept.whole``), in no order that means anything."""
    try:
        names = sorted(entry.name for entry in os.scandir(home / "weights") if entry.name.endswith(".json"))
    except OSError:
        return
    for name in names:
        if (found := _read(home / "weights" / name)) is not None:
            yield found


def keep(home: Path, kept: Kept) -> None:
    """Writes it, in the place of what was kept before. Where it cannot be, the files are hashed again another time."""
    one = kept.listing
    place = place_of(home, one.hub, one.repo, one.revision, kept.file_prefix)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        small_file.replace(place, msgspec.json.encode(kept), lambda descriptor: os.fchmod(descriptor, 0o644))


def of_modelscope(home: Path, model: ModelFacts, revision: str | None) -> frozenset[str]:
    """The checkpoints of a model that came from ModelScope and are whole, by :func:`selector.facts.checkpoint_id`."""
    from autolaunch.hubs.places import cache_of, commit_of  # they know the caches of all hubs

    cache = cache_of("modelscope", os.environ)
    found = set()
    for each in model.checkpoints:
        commit = None if each.modelscope is None else commit_of("modelscope", cache, each.modelscope, revision)
        if each.modelscope is not None and commit is not None:
            kept = load(home, "modelscope", each.modelscope, commit, each.file_prefix)
            if kept is not None and kept.whole:
                found.add(checkpoint_id(each.repo, each.file_prefix))
    return frozenset(found)


def forget(home: Path, kept: Kept) -> None:
    """Keeps nothing of it any longer; the files are as they were."""
    one = kept.listing
    place_of(home, one.hub, one.repo, one.revision, kept.file_prefix).unlink(missing_ok=True)


def with_stamps(kept: Kept, more: Iterable[Stamp]) -> Kept:
    """The same with stamps of more files, or newer ones."""
    stamps = {each.path: each for each in kept.stamps} | {each.path: each for each in more}
    listed = {each.path for each in kept.listing.files}
    return msgspec.structs.replace(kept, stamps=tuple(stamps[path] for path in sorted(stamps) if path in listed))


def _read(place: Path) -> Kept | None:
    try:
        content = small_file.read(place, MOST_BYTES).content
        found = msgspec.json.decode(content, type=readable(Kept))
    except (small_file.Unreadable, msgspec.MsgspecError):
        return None
    return found if found.schema == _SCHEMA else None
