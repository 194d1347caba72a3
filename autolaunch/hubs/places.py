"""Where the hubs' own clients keep things, so that a checkpoint is fetched once for all tools of a machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from autolaunch.hub_cache import cache_directory
from autolaunch.hubs.listing import MOST_FILES, SHA1, SHA256, HubFile, Listing, sound
from selector.facts import Hub

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w.\-/]{1,200}", re.ASCII)


def cache_of(hub: Hub, environ: Mapping[str, str]) -> Path:
    """The folder in which the hub's client keeps repositories."""
    if hub == "huggingface":
        return cache_directory(environ)
    return Path(environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def repository(hub: Hub, cache: Path, repo: str) -> Path:
    """The folder of a repository in a hub's cache."""
    named = repo.replace("/", "--")
    return cache / f"models--{named}" if hub == "huggingface" else cache / "models" / named


def snapshot(hub: Hub, cache: Path, repo: str, commit: str) -> Path:
    """Where a checkpoint's files are by their names."""
    return repository(hub, cache, repo) / "snapshots" / commit


def commit_of(hub: Hub, cache: Path, repo: str, revision: str | None) -> str | None:
    """The commit that a name stood for when the hub was last asked; ``None`` where that is not known here."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    name = revision or ("main" if hub == "huggingface" else "master")
    if not _NAME.fullmatch(name) or ".." in name:
        return None
    try:
        with (repository(hub, cache, repo) / "refs" / name).open(encoding="ascii") as file:
            found = file.read(64).strip()
    except (OSError, ValueError):
        return None
    return found if COMMIT.fullmatch(found) else None


def remember(hub: Hub, cache: Path, repo: str, revision: str | None, commit: str) -> None:
    """Keeps what a name stands for, as the hub's client does; not where the cache may not be written."""
    name = revision or ("main" if hub == "huggingface" else "master")
    if name == commit or commit_of(hub, cache, repo, name) == commit or not _NAME.fullmatch(name) or ".." in name:
        return
    place = repository(hub, cache, repo) / "refs" / name
    made = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(commit, encoding="ascii")
        made.replace(place)
    except OSError:
        with suppress(OSError):
            made.unlink()


def listed_here(hub: Hub, cache: Path, repo: str, commit: str) -> Listing | None:
    """The files of a snapshot as it lies here. Their hashes are the names that the hub's client gave the contents.

    ``None``: there is no such snapshot.
    """
    folder = snapshot(hub, cache, repo, commit)
    found: list[HubFile] = []
    for place, below, names in os.walk(folder):
        below.sort()
        for name in names:
            path = Path(place) / name
            try:
                size_bytes = path.stat().st_size
                named = Path(os.readlink(path)).name if path.is_symlink() else ""  # noqa: PTH115 - the link as it is
            except OSError:
                continue  # a link that leads nowhere is a file that is not here
            found.append(
                HubFile(
                    path=path.relative_to(folder).as_posix(),
                    size_bytes=size_bytes,
                    sha256=named if SHA256.fullmatch(named) else None,
                    git_sha1=named if SHA1.fullmatch(named) else None,
                )
            )
        if len(found) > MOST_FILES:
            break
    if not found:
        return None
    return Listing(repo=repo, hub=hub, revision=commit, files=sound(found))
