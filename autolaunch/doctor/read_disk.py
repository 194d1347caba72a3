"""How fast weights come from their disk: a short read of a large file that lies there, past the page cache."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autolaunch.doctor.facts import DiskRead

#: A file that is smaller tells of the disk's latency alone; of a folder so many entries are looked at.
LEAST_BYTES = 64 << 20
MOST_ENTRIES = 20_000
_CHUNK_BYTES = 8 << 20
_WEIGHTS = (".safetensors", ".gguf")
_F_NOCACHE = 48  # fcntl(2) of macOS


def largest_weights(folder: Path) -> Path | None:
    """The largest file of weights below ``folder``, by a bounded look; links are followed for files alone."""
    best: tuple[int, str] | None = None
    places, seen = [str(folder)], 0
    while places and seen < MOST_ENTRIES:
        with contextlib.suppress(OSError), os.scandir(places.pop()) as entries:
            for entry in entries:
                seen += 1
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        places.append(entry.path)
                    elif entry.name.endswith(_WEIGHTS) and entry.is_file():
                        size = entry.stat().st_size
                        best = max(best or (0, ""), (size, entry.path))
    return None if best is None or best[0] < LEAST_BYTES else Path(best[1])


def read_disk(
    path: Path, *, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> DiskRead | None:
    """Reads ``path`` for so many bytes or seconds; ``None`` where it cannot be read. The page cache is left alone."""
    try:
        descriptor, is_direct = _opened(path)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, _CHUNK_BYTES) as buffer:  # pages are aligned, as a direct read wants them
            began, total = clock(), 0
            while total < most_bytes and clock() - began < seconds:
                found = _next(descriptor, buffer, total)
                if found == 0:
                    break
                total += found
                if not is_direct and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, 0, total, os.POSIX_FADV_DONTNEED)
            took = clock() - began
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if total == 0 or took <= 0:
        return None
    return DiskRead(path=str(path), bytes_per_second=total / took, read_bytes=total)


def _next(descriptor: int, buffer: mmap.mmap, offset: int) -> int:
    return os.preadv(descriptor, [buffer], offset)


def _opened(path: Path) -> tuple[int, bool]:
    """The file, read past the page cache where the file system can; whether it can."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with contextlib.suppress(OSError):  # tmpfs and some network file systems have no such reads
            descriptor = os.open(path, flags | direct)
            try:
                os.preadv(descriptor, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor, True
    descriptor = os.open(path, flags)
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        return descriptor, True
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read from the disk, not from memory
    return descriptor, False
