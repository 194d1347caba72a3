"""A fault of one key of the configuration, on its way to whoever knows the file's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selector.errors import LockError, UsageError


class WrongKey(Exception):
    """A fault with the path of its key, as ``deployments[0].port``; empty, where it is the file's."""

    def __init__(self, key: str, reason: str, hint: str | None = None) -> None:
        super().__init__(key, reason)
        self.key, self.reason, self.hint = key, reason, hint


@contextmanager
def at(key: str) -> Iterator[None]:
    """Tells what is refused below as a fault of ``key``."""
    try:
        yield
    except (UsageError, LockError) as error:
        raise WrongKey(key, error.message, error.hint) from error
