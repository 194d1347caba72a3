"""Ctrl-C, SIGTERM and SIGHUP as one exception, so that what was started is always stopped.

The first signal raises :class:`Stopped` in the main thread; whoever holds a process ends it on the way out.
Further signals are ignored while that is going on: a second Ctrl-C must not leave an engine behind.
Imported before anything heavy, so that a Ctrl-C in the first milliseconds is as quiet as a later one.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """Somebody asked us to stop. A ``KeyboardInterrupt``, since that is what clean-up code knows.

    Attributes:
        signal_number: which way it was asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What a shell shows for a process ended by that signal: 130, 143 or 129."""
        return 128 + self.signal_number


class _State:
    """Whether signals wait (``deferring`` counts nested blocks), and the first that does."""

    deferring = 0
    waiting: int | None = None


def install() -> None:
    """Handle the signals that ask us to stop; one that the caller ignores (nohup) stays ignored."""
    for name in _HANDLED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def restore() -> None:
    """Let signals end the process at once again: the work is done."""
    _replace(signal.SIG_DFL)


def ignore() -> None:
    """Take no further signal: everything is stopped, and the exit code is to say why."""
    _replace(signal.SIG_IGN)


def _replace(action: signal.Handlers) -> None:
    for name in _HANDLED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _handle:
            signal.signal(number, action)


@contextmanager
def deferred() -> Iterator[None]:
    """A block that a signal does not interrupt: it is raised at the end. For stopping what runs."""
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    if not _State.deferring and _State.waiting is not None:
        number, _State.waiting = _State.waiting, None
        raise Stopped(number)


def _handle(number: int, _frame: FrameType | None) -> None:
    if _stopping():
        return
    if _State.deferring:
        _State.waiting = _State.waiting or number
        return
    raise Stopped(number)


def _stopping() -> bool:
    """Whether the interrupted code is already cleaning up after a signal.

    Asked of the exception being handled rather than kept in a flag: an exception raised where Python throws
    exceptions away (a finalizer) would leave the flag set and us deaf.
    """
    current = sys.exc_info()[1]
    while current is not None:
        if isinstance(current, KeyboardInterrupt):
            return True
        current = current.__context__
    return False
