"""Puts the files of a service in their places, below ``/`` or below the root of an image, and takes them away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from autolaunch.daemon import small_file
from autolaunch.service.setup import MARK, File, names_a_model
from selector.errors import UsageError

#: ``foreign``: there, and not written by us. ``kept``: the user's own, which only has to be there.
State = Literal["absent", "same", "differs", "foreign", "kept"]
#: What is looked through for our mark.
_HEAD_BYTES = 1024


def place(path: Path, root: Path) -> Path:
    """Where ``path`` lies below ``root``.

    Raises:
        UsageError: links lead out of ``root``.
    """
    found = root / path.relative_to("/")
    top = root.resolve()
    if not found.parent.resolve().is_relative_to(top):
        raise UsageError(f"{found} lies outside of {root}: a link in it leads out")
    return found


def state(file: File, root: Path = Path("/")) -> State:
    """What is at the place of ``file``."""
    path = place(file.path, root)
    if not os.path.lexists(path):
        return "absent"
    if file.once:
        return "kept"
    if _content(path) == file.text.encode():
        return "same"
    written, _ = ours((file.path,), root)
    return "differs" if written else "foreign"


def without_a_model(files: tuple[File, ...], root: Path = Path("/")) -> Path | None:
    """The configuration among ``files``, where the one that is there, or would be, has no deployment yet."""
    for file in files:
        if file.once:
            found = place(file.path, root)
            there = _content(found) if os.path.lexists(found) else file.text.encode()
            if there is not None and not names_a_model(there.decode(errors="replace")):
                return found
    return None


def write(files: tuple[File, ...], root: Path = Path("/")) -> tuple[Path, ...]:
    """Writes what is absent or differs, each file at once or not at all, and gives the places that changed.

    Raises:
        UsageError: something there was not written by us; nothing was changed then.
        OSError: as the system says it.
    """
    states = {file: state(file, root) for file in files}
    for file, found in states.items():
        if found == "foreign":
            raise UsageError(
                f"{place(file.path, root)} is there, and was not written by `autolaunch service install`",
                hint="move it away; what you want otherwise than the file here goes into a drop-in beside it",
            )
    changed = [file for file, found in states.items() if found in {"absent", "differs"}]
    for file in changed:
        _write(place(file.path, root), file.text)
    return tuple(place(file.path, root) for file in changed)


def ours(paths: tuple[Path, ...], root: Path = Path("/")) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Of what is at ``paths``: what we wrote, and what somebody else did."""
    written: list[Path] = []
    others: list[Path] = []
    for path in paths:
        found = place(path, root)
        if os.path.lexists(found):
            content = _content(found)
            is_ours = content is not None and MARK.encode() in content[:_HEAD_BYTES]
            (written if is_ours else others).append(found)
    return tuple(written), tuple(others)


def remove(places: tuple[Path, ...]) -> None:
    """Removes files of ours, and the folders of drop-ins that are empty then."""
    for found in places:
        found.unlink(missing_ok=True)
        folder = found.parent
        if folder.name.endswith(".service.d") and not any(folder.iterdir()):
            folder.rmdir()


def _content(path: Path) -> bytes | None:
    """``None``: no file of ours (a link, as ``systemctl mask`` makes one; a folder)."""
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    small_file.replace(path, text.encode(), lambda descriptor: os.fchmod(descriptor, 0o644))
