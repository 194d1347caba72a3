"""Which deployment has which devices, between all processes of one home: a locked file a device.

The kernel holds the lock (``flock``) and drops it with the process, however that ends: no lease outlives its holder,
and none has to be cleared away. What stands in the file only says who it is. The files stay: one that is removed while
another process waits to open it would be locked twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from selector.errors import DevicesTaken, EngineStartError
from selector.values import Value, readable

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9-]")
#: The holder's line is short; more is not ours.
_LINE_BYTES = 512


class Holder(Value, frozen=True, kw_only=True):
    """Who has a device: a deployment of a process."""

    pid: int
    name: str


class Lease:
    """Devices that are a deployment's until :meth:`release`, or until the process ends."""

    def __init__(self, uuids: tuple[str, ...], locks: contextlib.ExitStack) -> None:
        self.uuids = uuids
        self._locks = locks

    def release(self) -> None:
        """Gives the devices back; again it does nothing."""
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """The leases of one home; ``folder`` holds their files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, name: str, uuids: Iterable[str]) -> Lease:
        """All of the devices for deployment ``name``, or none. Without devices the lease is empty. Never waits.

        Raises:
            DevicesTaken: another has one of them, or this process for another deployment; it is named.
            EngineStartError: the files cannot be made.
        """
        wanted = tuple(sorted(set(uuids)))  # one order for everybody
        with contextlib.ExitStack() as stack:  # what was locked before one that is taken is given back
            for uuid in wanted:
                stack.callback(os.close, self._lock(name, uuid))
            return Lease(wanted, stack.pop_all())

    def _lock(self, name: str, uuid: str) -> int:
        path = self._folder / f"{_NOT_IN_NAMES.sub('_', uuid)[:128]}.lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EngineStartError(f"{path} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who it is only serves a message: a full disk must not keep an engine from its device.
            with contextlib.suppress(OSError):
                os.ftruncate(lock, 0)
                os.pwrite(lock, msgspec.json.encode(Holder(pid=os.getpid(), name=name))[:_LINE_BYTES], 0)
        except OSError as error:
            holder = _holder(lock)
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise EngineStartError(f"{path} cannot be locked: {error.strerror}") from error
            by = "another process" if holder is None else f"{holder.name} (process {holder.pid})"
            raise DevicesTaken(
                f"device {uuid} is in use by {by}", hint="stop that one, or choose other devices with --gpus"
            ) from error
        except BaseException:
            os.close(lock)
            raise
        return lock


def _holder(lock: int) -> Holder | None:
    """What the file says; ``None`` for nothing, or nothing of ours (the holder may be about to write it)."""
    try:
        return msgspec.json.decode(os.pread(lock, _LINE_BYTES, 0), type=readable(Holder))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
