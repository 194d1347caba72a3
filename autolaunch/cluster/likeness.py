"""Whether a machine holds what another one does: an engine's environment and a checkpoint, at the same places.

Asked on a node by ``autolaunch node-check``, which reads an :class:`Asked` and writes a :class:`Told`. Nothing is made
or changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from autolaunch.hubs import kept
from engines.environments.store import Environments, read_manifest
from selector.contract import Checkpoint
from selector.errors import DownloadError, UsageError
from selector.facts import Hub
from selector.probe.text import printable
from selector.values import Value

#: Of a file larger than twice this, so much of its beginning and of its end is compared, beside its length.
ENDS_BYTES = 1 << 20
#: More files than any checkpoint has.
MOST_FILES = 20_000
#: Bookkeeping beside the files of a checkpoint, which no engine reads.
_NOT_COMPARED = frozenset({".git", ".cache"})
_NAMED = 3


class Sample(Value, frozen=True, kw_only=True):
    """A file of a checkpoint: its length, and a hash of its first and last MiB (of a small one: of all of it)."""

    path: str
    size_bytes: int
    ends_sha256: str


class Source(Value, frozen=True, kw_only=True):
    """A checkpoint of a hub at one commit, as what was verified is kept (:mod:`autolaunch.hubs.kept`)."""

    hub: Hub
    repo: str
    commit: str
    file_prefix: str | None = None


class Asked(Value, frozen=True, kw_only=True):
    """What another machine has.

    ``lock_sha256`` is its environment's, ``None`` of one that autolaunch did not make: that has to be there at all.
    ``mark`` is a file that it has just written near the weights, with ``mark_text`` in it.
    """

    schema: int = 1
    environment: str
    lock_sha256: str | None
    folder: str
    files: tuple[Sample, ...]
    source: Source | None = None
    mark: str | None = None
    mark_text: str = ""


EnvironmentState = Literal["same", "absent", "other", "unusable"]
WeightsState = Literal["same", "absent", "different"]


class Told(Value, frozen=True, kw_only=True):
    """What this one has of it.

    Attributes:
        environment: ``other``: one of other packages lies there; ``unusable``: one that does not count, ``why`` tells.
        weights: ``same``: every file in its length and with its ends; ``absent``: there is no such folder.
        differing: so many files are not there or not the same; the first of them by name are ``examples``.
        shared: the mark was seen: both look at the same disk.
        kept: the files are as they were when all of them had the hub's hashes, on this machine.
    """

    schema: int = 1
    environment: EnvironmentState
    why: str | None = None
    weights: WeightsState
    differing: int = 0
    examples: tuple[str, ...] = ()
    shared: bool = False
    kept: bool = False


def look(asked: Asked, home: Path) -> Told:
    """What of ``asked`` is on this machine. ``home`` is autolaunch's here.

    Raises:
        UsageError: a path in it is none.
    """
    environment, folder = Path(asked.environment), Path(asked.folder)
    if not (environment.is_absolute() and folder.is_absolute()) or len(asked.files) > MOST_FILES:
        raise UsageError("what is asked about is no folder")
    if any(PurePosixPath(each.path).is_absolute() or ".." in PurePosixPath(each.path).parts for each in asked.files):
        raise UsageError("a file that is asked about lies elsewhere")
    state, why = _environment(environment, asked.lock_sha256, home)
    differing = [each.path for each in asked.files if sample(folder, each.path) != each]
    return Told(
        environment=state,
        why=why,
        weights=("different" if folder.is_dir() else "absent") if differing else "same",
        differing=len(differing),
        examples=tuple(printable(each, 80) or "?" for each in differing[:_NAMED]),
        shared=_seen(asked),
        kept=not differing and _kept(asked, home),
    )


def sample(folder: Path, path: str) -> Sample | None:
    """A file as it is compared; ``None`` where there is none that can be read."""
    try:
        with open(folder / path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            content = hashlib.sha256(file.read(ENDS_BYTES))
            file.seek(max(ENDS_BYTES, status.st_size - ENDS_BYTES))
            content.update(file.read(ENDS_BYTES))
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return Sample(path=path, size_bytes=status.st_size, ends_sha256=content.hexdigest())


def samples(folder: Path, paths: Iterable[str]) -> tuple[Sample, ...]:
    """Those of a folder that is to be held elsewhere too.

    Raises:
        DownloadError: one cannot be read here, or there are too many.
    """
    found = []
    for path in paths:
        one = sample(folder, path)
        if one is None:
            raise DownloadError(f"{folder / path} cannot be read")
        found.append(one)
        if len(found) > MOST_FILES:
            raise DownloadError(f"{folder} holds more files than any checkpoint has")
    return tuple(found)


def files_of(folder: Path, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a folder holds of a checkpoint, by name. Of several GGUF files those of its prefix, and what is no GGUF."""
    prefix = PurePosixPath(checkpoint.file_prefix or "").name
    found = []
    for place, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(set(below) - _NOT_COMPARED)
        found += [
            (Path(place) / name).relative_to(folder).as_posix()
            for name in names
            if not name.endswith(".gguf") or name.startswith(prefix)
        ]
        if len(found) > MOST_FILES:  # also where a link leads round in a circle
            break
    return tuple(sorted(found))


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe of that name is not waited for


def _environment(directory: Path, lock_sha256: str | None, home: Path) -> tuple[EnvironmentState, str | None]:
    if lock_sha256 is None:
        return ("same" if os.access(directory / "bin" / "python", os.X_OK) else "absent"), None
    manifest = read_manifest(directory)
    if manifest is None:
        return "absent", None
    why = Environments.of(home).why_not(directory, manifest)
    if why is not None:
        return "unusable", printable(why, 300)
    return ("same" if manifest.lock_sha256 == lock_sha256 else "other"), None


def _seen(asked: Asked) -> bool:
    if asked.mark is None or not asked.mark_text:
        return False
    try:
        with open(asked.mark, "rb", opener=_at_once) as file:
            return file.read(len(asked.mark_text) + 1) == asked.mark_text.encode()
    except (OSError, ValueError):
        return False


def _kept(asked: Asked, home: Path) -> bool:
    if asked.source is None:
        return False
    one = asked.source
    found = kept.load(home, one.hub, one.repo, one.commit, one.file_prefix)
    return found is not None and Path(found.folder) == Path(asked.folder) and found.whole
