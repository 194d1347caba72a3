"""What making and removing environments does to folders: locks, room, modes, removal."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selector.errors import EngineInstallError, NoRoomOnDisk

if TYPE_CHECKING:
    from threading import Event

_POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, waiting: Callable[[], None], cancelled: Event | None) -> Iterator[int]:
    """Holds the lock file; yields its descriptor. ``waiting`` is called once where somebody else holds it.

    uv inherits the descriptor, so that the lock outlives us with a uv that outlives us: nobody builds
    into the same folder beside it.

    Raises:
        EngineInstallError: it cannot be locked, or ``cancelled`` was set.
        NoRoomOnDisk: the disk takes no file more.
    """
    descriptor = _lock(path, waiting, cancelled)
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone, and makes a new one
        os.close(descriptor)


def _lock(path: Path, waiting: Callable[[], None], cancelled: Event | None) -> int:
    import fcntl

    told = False
    while True:
        with writing(path.parent):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            if not told:
                waiting()
                told = True
            if cancelled is not None and cancelled.is_set():
                os.close(descriptor)
                raise EngineInstallError("the installation was cancelled") from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            os.close(descriptor)
            raise EngineInstallError(
                f"{path} cannot be locked: {error.strerror}", hint="set AUTOLAUNCH_HOME to a folder on a local disk"
            ) from error
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether what was locked is still what others would lock: its holder before us removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system says against writing to ``folder`` becomes an error that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomOnDisk(
                f"the disk of {folder} is full", hint="free some room, or set AUTOLAUNCH_HOME to a folder elsewhere"
            ) from error
        raise EngineInstallError(
            f"{folder} cannot be written: {error.strerror}", hint="set AUTOLAUNCH_HOME to a folder of yours"
        ) from error


def remove_tree(directory: Path, first: str) -> None:
    """Removes a folder, beginning with the file ``first``: what is half removed must not look finished."""
    if directory.is_symlink():  # somebody's own arrangement: what it points to is not ours to empty
        directory.unlink()
        return
    (directory / first).unlink(missing_ok=True)
    from shutil import rmtree

    rmtree(directory, ignore_errors=True)


def open_to_all(directory: Path) -> None:
    """Everybody may read what is in ``directory``, and its owner alone may write.

    uv links files from its cache, whose modes follow the umask of whoever filled it.
    """
    for folder, _, names in os.walk(directory):
        _add_mode(Path(folder), 0o755)
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                _add_mode(path, 0o755 if status.st_mode & 0o111 else 0o644)


def _add_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def used_bytes(directory: Path) -> tuple[int, int]:
    """What the files below a folder take on the disk, and how much of that nothing else holds (uv's cache may)."""
    seen: dict[tuple[int, int], tuple[int, int, int]] = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - a hundred thousand of them
            except OSError:
                continue
            known = seen.get((status.st_dev, status.st_ino), (0, 0, 0))
            seen[status.st_dev, status.st_ino] = (status.st_blocks * 512, status.st_nlink, known[2] + 1)
    return sum(size for size, _, _ in seen.values()), sum(size for size, links, here in seen.values() if links <= here)
