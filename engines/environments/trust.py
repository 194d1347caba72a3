"""Whom an environment's files are believed: root and oneself. What another user could write is not run.

Programs of an environment run as whoever launches. One that lies where a second unprivileged user may write is as good
as that user's own.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path


def complaint(paths: Iterable[Path], *, above: bool = False, uid: int | None = None) -> str | None:
    """Why one of ``paths`` is not to be trusted by ``uid`` (ourselves); ``None`` where all of them are.

    ``above``: they are folders on the way, where others may add (as in /tmp) what nobody looks at.
    """
    who = os.geteuid() if uid is None else uid
    return next((why for path in paths if (why := _complaint(path, who, above)) is not None), None)


def _complaint(path: Path, uid: int, above: bool) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    if status.st_uid not in (0, uid):
        return f"{path} belongs to another user ({_name(status.st_uid)})"
    if above and status.st_mode & stat.S_ISVTX:
        return None
    if status.st_mode & stat.S_IWOTH:
        return f"{path} can be written by everybody"
    if status.st_mode & stat.S_IWGRP and not _of_one(status.st_gid, uid):
        return f"{path} can be written by its whole group"
    return None


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _of_one(gid: int, uid: int) -> bool:
    """Whether a group is root's or has this user alone, as the group that many systems make with a user."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}


def environment_paths(directory: Path, python: str) -> tuple[Path, ...]:
    """What decides who can change an environment: its folders, each package and program in them, its interpreter."""
    real = directory.resolve()
    interpreter = (real / "bin" / "python").resolve()
    packages = site_packages(real, python)
    folders = (real, real / "bin", *(path for path in (real / "lib", packages) if path.exists()))
    paths = (*folders, *_within(real / "bin"), *_within(packages))
    # The interpreter that runs us is trusted already.
    return paths if interpreter == Path(sys.executable).resolve() else (*paths, interpreter)


def _within(folder: Path) -> tuple[Path, ...]:
    """What lies in a folder, links aside: what they lead to has its own place."""
    try:
        return tuple(Path(each.path) for each in os.scandir(folder) if not each.is_symlink())
    except OSError:
        return ()


def site_packages(directory: Path, python: str) -> Path:
    return directory / "lib" / f"python{python}" / "site-packages"


def readable_by_all(python: Path) -> bool:
    """Whether every user of the host may run an interpreter: its file, its library, and the way to both."""
    real = python.resolve()
    library = real.parent.parent / "lib" / real.name / "os.py"
    return _open(real, 0o005) and _open(library, 0o004)


def _open(path: Path, mode: int) -> bool:
    try:
        return path.stat().st_mode & mode == mode and all(
            parent.stat().st_mode & stat.S_IXOTH for parent in path.parents
        )
    except OSError:
        return False
