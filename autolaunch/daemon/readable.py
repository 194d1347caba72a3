"""Whether there is something to read, of any descriptor: ``select`` refuses those above 1023, and a server has such."""

from __future__ import annotations

import errno
import math
import os
import select
from typing import Protocol


class HasDescriptor(Protocol):
    """A socket, for one."""

    def fileno(self) -> int: ...


def readable(one: int | HasDescriptor, seconds: float = 0.0) -> bool:
    """Whether reading of ``one`` would not wait, also since its other end is closed; waits so long for that.

    Raises:
        OSError: it is closed here.
        ValueError: so is it, and has told so: its descriptor is negative.
    """
    poll = select.poll()
    poll.register(one, select.POLLIN)
    found = poll.poll(math.ceil(seconds * 1000))
    if found and found[0][1] & select.POLLNVAL:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return bool(found)
