"""The entry point: signals first, then the commands, and every error as one sentence with its exit code.

Exit codes: 0 ok, 1 a fault of ours, 2 usage, 3 no feasible plan, 4 probe failed, 5 engine failed,
6 download failed, 78 bad configuration, 124 waited too long, 130 Ctrl-C (129, 143: other signals),
141 nobody reads the output.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from autolaunch.cli import signals

PIPE_CLOSED = 141


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    arguments = sys.argv[1:]
    # Collecting after every few hundred allocations is a twelfth of a plan's time, and finds nothing.
    gc.set_threshold(100_000)
    _repair_streams()
    try:
        signals.install()
        sys.excepthook = _fault_of_ours
        code = _flushed(_run(arguments))
    except signals.Stopped as stopped:
        code = _flushed(_interrupted(arguments, stopped))
        signals.ignore()
    except BrokenPipeError:
        code = _flushed(PIPE_CLOSED)
    signals.restore()
    # All is stopped, written and flushed. Python's own way out takes apart what was read, a tenth of a plan's time.
    os._exit(code)


def _run(arguments: list[str]) -> int:
    # A signal that interrupts an import may come out of it as any error.
    with signals.deferred():
        from autolaunch.cli.app import run

    return run(arguments)


def wants_json(arguments: list[str]) -> bool:
    """Whether ``--json`` is among our options, known even when they cannot be parsed."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours


def wants_lines(arguments: list[str]) -> bool:
    """Whether what is printed is a document a line: ``--json`` of what is followed."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours and not {"--follow", "-f"}.isdisjoint(ours)


def wants_traceback(arguments: list[str]) -> bool:
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--verbose" in ours or bool(os.environ.get("AUTOLAUNCH_DEBUG"))


def _interrupted(arguments: list[str], stopped: signals.Stopped) -> int:
    from autolaunch.cli.errors import show_error
    from autolaunch.cli.terminal import Unwritable

    # Everything is stopped by now; nothing is left that a further signal could spoil.
    with signals.deferred():
        message = "stopped" if stopped.exit_code == 130 else f"stopped by signal {stopped.signal_number}"
        with suppress(BrokenPipeError, Unwritable):  # after SIGHUP the terminal is gone, and there is nobody to tell
            lines = wants_lines(arguments)
            show_error("interrupted", message, None, stopped.exit_code, as_json=wants_json(arguments), in_lines=lines)
    return stopped.exit_code


def _flushed(code: int) -> int:
    """``code``, or that nobody reads: then Python must not say so when it closes the streams."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or PIPE_CLOSED if descriptor == 2 else PIPE_CLOSED
            _discard(descriptor)
        except OSError:
            code = code or 1
            _discard(descriptor)
    return code


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Unfailing(io.FileIO):
    """Messages that a full disk or a terminal that is gone does not take are lost: there is nobody to tell."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)


def _repair_streams() -> None:
    """Streams that the caller closed lead nowhere, and their numbers go to no file of ours; stderr never fails."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as we do
    encoding, errors = (sys.stderr.encoding, sys.stderr.errors) if sys.stderr is not None else ("utf-8", None)
    sys.stderr = io.TextIOWrapper(
        _Unfailing(2, "w", closefd=False),
        encoding=encoding,
        errors=errors or "backslashreplace",
        write_through=True,
    )


def _fault_of_ours(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody expected, for ``sys.excepthook``: Python then exits 1."""
    if isinstance(error, KeyboardInterrupt):
        return  # a signal in the last microseconds: nothing runs any more, and nothing is to be said
    from autolaunch.cli.errors import show_error

    arguments = sys.argv[1:]
    if wants_traceback(arguments):
        sys.__excepthook__(kind, error, trace)
    told = f"{kind.__name__}: {error}" if str(error) else kind.__name__
    show_error(
        "internal",
        f"this is a fault of autolaunch, not of yours: {told}",
        None
        if wants_traceback(arguments)
        else "run it again with --verbose to see where, and report it with that output",
        1,
        as_json=wants_json(arguments),
    )
