"""The base of every value that crosses a file or a module: frozen, keyword-only, strict."""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value. Read from a file it refuses unknown keys and names their path."""


_readable: set[object] = set()
_one_at_a_time = threading.RLock()


def readable(kind: type[T]) -> type[T]:
    """``kind``, ready to be read in any thread: ``msgspec.json.decode(content, type=readable(Kind))``.

    msgspec works out how a type is read when it is first asked to, and lets other threads see what is half made: two
    that read a type for the first time at once end the process (SIGSEGV; msgspec 0.22).
    """
    if kind not in _readable:
        with _one_at_a_time:
            msgspec.json.Decoder(kind)
            _readable.add(kind)
    return kind
