"""One daemon a folder of state: a lock that the kernel releases when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from selector.errors import ConfigurationError, DaemonRunning

#: More than a holder ever writes.
_TOLD_BYTES = 200


class Holder(NamedTuple):
    """Who holds the lock, by its own account: another may have written the file. ``since`` is in UTC."""

    pid: int
    since: str


class DaemonLock:
    """The lock of ``folder``, held from construction on. The file stays where it is: only the lock counts.

    Raises:
        DaemonRunning: another holds it.
        ConfigurationError: there can be no lock in this folder.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / "daemon.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise _no_lock(self.path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = _told(self._descriptor)
            os.close(self._descriptor)
            raise _running(self.path, told) from error
        except OSError as error:
            os.close(self._descriptor)
            raise _no_lock(self.path, error) from error
        self._tell(clock())

    def _tell(self, now: float) -> None:
        since = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} {since}\n".encode(), 0)
        except OSError:  # a full disk: the lock holds, and only its holder's name is not told
            return

    def release(self) -> None:
        """Gives it back; again is nothing."""
        if self._descriptor >= 0:
            # Closed alone, it would be held until a process that is just being started has closed its copy.
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def holder(folder: Path) -> Holder | None:
    """Who holds the lock of ``folder``; ``None`` where nobody does, or does not say so. Takes nothing."""
    try:
        descriptor = os.open(folder / "daemon.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared: two that look at once do not take each other for a daemon.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(descriptor)
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(descriptor)


def _told(descriptor: int) -> Holder | None:
    try:
        text = os.pread(descriptor, _TOLD_BYTES, 0).decode("ascii", errors="replace")
    except OSError:
        return None
    match = re.match(r"([1-9][0-9]{0,9}) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n", text)
    return None if match is None else Holder(int(match[1]), match[2])


def _running(path: Path, told: Holder | None) -> DaemonRunning:
    who = "another process" if told is None else f"process {told.pid}, since {told.since}"
    return DaemonRunning(f"a daemon runs already: {who}", hint=f"it holds {path}")


def _no_lock(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be locked: {error.strerror}", hint="AUTOLAUNCH_HOME names a folder that this user can write"
    )
