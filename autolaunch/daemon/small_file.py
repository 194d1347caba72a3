"""Small files that people write too: read whole, with a bound, and never waited for; replaced whole, or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
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


def replace(path: Path, content: bytes, own: Callable[[int], None]) -> None:
    """Puts ``content`` in the place of what is at ``path``, at once and for good.

    ``own`` is called with the new file's descriptor, to say whose it is and who may read it (0600 until then).

    Raises:
        OSError: it could not be; what was there is there still.
    """
    import tempfile  # most who read a file never write one

    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    made = Path(temporary)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            own(descriptor)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        made.replace(path)
    except BaseException:
        made.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
