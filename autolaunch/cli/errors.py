"""Errors as a person and as a script read them."""

from __future__ import annotations

import os
import sys

from autolaunch.cli.terminal import Terminal, clean, write
from selector.values import Value


class Told(Value, frozen=True, kw_only=True):
    code: str
    message: str
    hint: str | None
    exit_code: int


class ErrorDocument(Value, frozen=True, kw_only=True):
    """What ``--json`` prints in place of a result."""

    schema: int = 1
    error: Told


def show_error(
    code: str, message: str, hint: str | None, exit_code: int, *, as_json: bool, in_lines: bool = False
) -> None:
    """``autolaunch: <sentence>`` and its hint on stderr, or one JSON document on stdout (``in_lines``: in one line)."""
    message = clean(message)
    hint = None if hint is None else clean(hint)
    if "JOURNAL_STREAM" in os.environ and not as_json and _told_the_journal(code, message, hint):
        return
    if as_json:
        import msgspec

        document = ErrorDocument(error=Told(code=code, message=message, hint=hint, exit_code=exit_code))
        encoded = msgspec.json.encode(document)
        write(sys.stdout, (encoded if in_lines else msgspec.json.format(encoded, indent=2)).decode())
        return
    import click

    terminal = Terminal.of(sys.stderr)
    write(sys.stderr, f"{click.style('autolaunch:', fg='red', bold=True)} {message}", terminal)
    if hint is not None:
        lines = hint.splitlines() or [""]
        write(
            sys.stderr,
            "\n".join([f"  {click.style('hint:', bold=True)} {lines[0]}", *(f"        {line}" for line in lines[1:])]),
            terminal,
        )


def _told_the_journal(code: str, message: str, hint: str | None) -> bool:
    """Where stderr is the journal's: each line with the priority of what it tells. That it was stopped is no error."""
    from autolaunch.daemon.journal import PRIORITIES, goes_to_journal

    if not goes_to_journal(2, os.environ):
        return False
    lines = [f"autolaunch: {message}", *([] if hint is None else [f"hint: {hint}"])]
    front = f"<{PRIORITIES['info' if code == 'interrupted' else 'error']}>"
    write(sys.stderr, "\n".join(front + line for each in lines for line in each.splitlines()))
    return True
