"""A file while it arrives: written, hashed as it comes, continued where another try left off."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from autolaunch.hubs.listing import HubFile
from autolaunch.hubs.refused import Broken

BLOCK_BYTES = 4 * 2**20
#: A kill costs so much of each file at most, and what was on its way.
TAKEN_BYTES = 2**20


#: The disk is told so often to begin with what has come, so that little is left to wait for at the end.
BEGUN_BYTES = 16 * 2**20
_SYNC_FILE_RANGE_WRITE = 2


class Stopped(Exception):
    """The rest failed, so this is left as far as it has come."""


class Hashing:
    """Both names that hubs give a content: its SHA-256, and git's. The second only where it is asked for."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = None
        if file.git_sha1 is not None and file.sha256 is None:
            self._git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        """More of the content."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def right(self) -> bool:
        """Whether the content is what the hub says it is, as far as the hub says."""
        if self._git is not None:
            return self._git.hexdigest() == self._file.git_sha1
        return self._file.sha256 is None or self.sha256 == self._file.sha256


def hashed(
    path: Path, file: HubFile, stop: threading.Event, on_bytes: Callable[[int], None], *, within: Hashing | None = None
) -> Hashing:
    """Reads a file that is here, or what has come of it (``within``: into this hash).

    Raises:
        Stopped, OSError: as they say.
    """
    hashing = Hashing(file) if within is None else within
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as content:
        while count := content.readinto(block):
            if stop.is_set():
                raise Stopped
            hashing.update(view[:count])
            on_bytes(count)
    return hashing


class Arriving:
    """The part of a file that has come, at ``path``. Open for one writer at a time: who opens it holds its lock."""

    def __init__(self, path: Path, file: HubFile, stop: threading.Event, on_bytes: Callable[[int, int], None]) -> None:
        """``on_bytes`` hears how many more are here, and how many of them have come just now."""
        self._path, self._file, self._stop, self._on_bytes = path, file, stop, on_bytes
        self.hashing = Hashing(file)
        self.came_bytes = 0
        self._descriptor = -1
        self._begun_bytes = 0

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes > self._file.size_bytes:
            self.begin_anew()
        elif size_bytes:
            hashed(self._path, self._file, self._stop, lambda _: None, within=self.hashing)
            self.came_bytes = self._begun_bytes = size_bytes
            self._on_bytes(size_bytes, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def whole(self) -> bool:
        return self.came_bytes == self._file.size_bytes

    @property
    def asked(self) -> dict[str, str]:
        """The headers that ask for the rest, as it is: what would be packed on the way could not be continued."""
        whole = {"Accept-Encoding": "identity"}
        return whole | ({"Range": f"bytes={self.came_bytes}-"} if self.came_bytes else {})

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """What the server said to that, before its content is taken: where it begins anew, so does what is here.

        Other refusals are the caller's to tell apart, and cost nothing of what has come.

        Raises:
            Broken: it will not continue what has come, or sends another part than was asked for.
        """
        if status == 416:  # what has come is no beginning of what is there
            self.begin_anew()
            raise Broken("the server does not continue what has come")
        begins = f"bytes {self.came_bytes}-"
        continued = status == 206 and headers.get("Content-Range", begins).startswith(begins)
        if self.came_bytes and status < 400 and not continued:
            self.begin_anew()
            if status == 206:
                raise Broken("the server sent another part than was asked for")

    def take(self, pieces: Iterable[bytes]) -> None:
        """All that comes, written and hashed in blocks: a connection gives it in pieces of some kilobytes.

        Raises:
            As ``write``, and what ``pieces`` raises; what came before is written then.
        """
        waiting: list[bytes] = []
        waiting_bytes = 0
        try:
            for piece in pieces:
                waiting.append(piece)
                waiting_bytes += len(piece)
                if waiting_bytes >= TAKEN_BYTES:
                    block, waiting, waiting_bytes = b"".join(waiting), [], 0
                    self.write(block)
        finally:
            if waiting:
                self.write(b"".join(waiting))

    def write(self, data: bytes) -> None:
        """What came next.

        Raises:
            Stopped: the rest failed.
            ValueError: it is more than the file is long.
            OSError: it could not be written.
        """
        if self._stop.is_set():
            raise Stopped
        if self.came_bytes + len(data) > self._file.size_bytes:
            raise ValueError("more came than the file is long")
        left = memoryview(data)
        while left:
            written = os.pwrite(self._descriptor, left, self.came_bytes)
            self.hashing.update(left[:written])
            self.came_bytes += written
            self._on_bytes(written, written)
            left = left[written:]
        if self.came_bytes - self._begun_bytes >= BEGUN_BYTES:
            _begin_writing(self._descriptor, self._begun_bytes, self.came_bytes - self._begun_bytes)
            self._begun_bytes = self.came_bytes

    def begin_anew(self) -> None:
        """Drops what has come."""
        os.ftruncate(self._descriptor, 0)
        self._on_bytes(-self.came_bytes, 0)
        self.came_bytes, self._begun_bytes, self.hashing = 0, 0, Hashing(self._file)


def _begin_writing(descriptor: int, offset: int, count: int) -> None:
    """Has the system begin to write so much to the disk, without waiting: Linux. Elsewhere it begins by itself.

    Whether it did is of no concern here: that a file is on the disk is what ``fsync`` says in the end.
    """
    if sys.platform != "linux":
        return
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None:
        call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(count), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
