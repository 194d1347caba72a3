"""The folders of runs and their logs: each run's own, until nobody holds it any more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from selector.errors import EngineStartError

KEPT_LOGS = 20
#: In a run's folder, locked as long as the run lives: process ids mean nothing beyond a container or a host.
LOCK = ".lock"
#: A folder without a lock may be one that is being made.
UNLOCKED_SECONDS = 3600.0


def run_folder(root: Path, served_name: str, folder: Path) -> tuple[Path, int]:
    """A folder of this run, in which the checkpoint goes by its served name, and the descriptor that locks it."""
    directory = root / f"{os.getpid()}-{time.time_ns():x}"
    link = directory / served_name
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(root)
        directory.mkdir(mode=0o700)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can sweep there either
                fcntl.flock(lock, fcntl.LOCK_EX)
            (directory / ".cache" / "hub").mkdir(parents=True, mode=0o700)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(folder, target_is_directory=True)
        except BaseException:
            os.close(lock)
            shutil.rmtree(directory, ignore_errors=True)
            raise
    except OSError as error:
        raise EngineStartError(f"{directory} cannot be made: {error.strerror}") from error
    return directory, lock


def living(root: Path) -> Iterator[tuple[Path, Path]]:
    """The folders of runs that live, each with the real folder of the checkpoint that it serves."""
    for link in (*root.glob("*/*"), *root.glob("*/*/*")):  # a served name has one part or two
        if not link.is_symlink() or link.parent.is_symlink():
            continue
        directory = root / link.relative_to(root).parts[0]
        try:
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held, or a file system without locks: it may live
            yield directory, link.resolve()
        finally:
            os.close(lock)


def _sweep(root: Path) -> None:
    """Removes the folders of runs that hold their lock no more."""
    for directory in root.iterdir():
        with contextlib.suppress(OSError):  # locked, or gone meanwhile
            try:
                lock = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                if time.time() - directory.stat().st_mtime > UNLOCKED_SECONDS:
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def log_place(root: Path, engine: str, run_directory: Path) -> Path:
    """A new log's place; the oldest of many go, but for those of runs that live."""
    living = {directory.name for directory in run_directory.parent.iterdir()}
    logs: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for path in root.glob("*.log*"):
            with contextlib.suppress(OSError):  # another launch removed it
                logs.append((path.stat().st_mtime, path))
    for _, old in sorted(logs)[: max(0, len(logs) - KEPT_LOGS + 1)]:
        if not any(old.name.partition(".log")[0].endswith(f"-{name}") for name in living):
            with contextlib.suppress(OSError):
                old.unlink(missing_ok=True)
    return root / f"{engine}-{run_directory.name}.log"
