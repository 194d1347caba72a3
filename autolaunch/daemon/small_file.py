"""A small file that a person wrote: read whole, with a bound, and never waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from selector.values import Value


class Unreadable(Exception):
    """The file is none that can be read whole; ``reason`` says why.

    ``missing``: it is not there. ``denied``: this user may not read it.
    """

    def __init__(self, reason: str, *, missing: bool = False, denied: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.missing, self.denied = reason, missing, denied


class Content(Value, frozen=True, kw_only=True):
    """What the file held, and whose it was then: the permissions, the owner's and the group's numbers."""

    content: bytes
    mode: int
    uid: int
    gid: int


def read(path: Path, maximum_bytes: int) -> Content:
    """The content of the regular file at ``path``; links are followed.

    Raises:
        Unreadable: as it says.
    """
    try:
        # Without waiting: a pipe in the file's place has no end of its own.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Unreadable("there is no such file", missing=True) from error
    except PermissionError as error:
        raise Unreadable(error.strerror or str(error), denied=True) from error
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(maximum_bytes + 1)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    finally:
        os.close(descriptor)
    if len(content) > maximum_bytes:
        most = maximum_bytes // 2**10
        raise Unreadable(f"larger than {f'{most} KiB' if most < 2**10 else f'{most // 2**10} MiB'}")
    return Content(content=content, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid)
