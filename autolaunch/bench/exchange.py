"""What was measured, taken from one host to another: rows of JSON, a line each, read with bounds."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from autolaunch.daemon import small_file
from selector.errors import ConfigurationError
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.daemon.rows import Row
    from selector.hardware import HardwareReport


class Exported(Value, frozen=True, kw_only=True):
    """``rows`` were written; ``path`` is ``None`` for standard output."""

    schema: Literal[1] = 1
    rows: int
    path: str | None = None


class Imported(Value, frozen=True, kw_only=True):
    """So many rows were taken; ``like_this`` of them are of hardware like this host's, and correct its plans."""

    schema: Literal[1] = 1
    rows: int
    like_this: int


def exported_lines() -> tuple[str, ...]:
    """Everything that was measured on this host, a line a row.

    Raises:
        ConfigurationError: the file in which it is kept cannot be read.
    """
    from autolaunch import api
    from autolaunch.daemon.rows import line_of
    from autolaunch.daemon.store import Store

    store = Store(api.learned_path())
    lines = tuple(line_of(row) for row in store.export_rows())
    trouble = store.trouble()
    if trouble is not None and not lines:
        raise ConfigurationError(trouble)
    return lines


def write_rows(path: Path, lines: tuple[str, ...]) -> None:
    """The file, whole or not at all.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        content = "".join(f"{line}\n" for line in lines).encode()
        small_file.replace(path, content, lambda descriptor: os.fchmod(descriptor, 0o644))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error


def import_rows(path: Path, report: HardwareReport) -> Imported:
    """Takes the rows of a file that another host exported; all of them, or none.

    Raises:
        ConfigurationError: it cannot be read, a line is no measurement (its number is told), or it cannot be kept.
    """
    from autolaunch import api
    from autolaunch.daemon.rows import AHEAD_SECONDS, rows_of
    from autolaunch.daemon.store import Store

    with _opened(path) as file:
        rows = tuple(rows_of(_lines(file), str(path), latest_seconds=time.time() + AHEAD_SECONDS))
    if not rows:
        raise ConfigurationError(f"{path} holds no measurement", hint="autolaunch bench --export FILE writes them")
    store = Store(api.learned_path())
    trouble = store.import_rows(rows)
    if trouble is not None:
        raise ConfigurationError(trouble)
    return Imported(rows=len(rows), like_this=sum(is_like(row, report) for row in rows))


def is_like(row: Row, report: HardwareReport) -> bool:
    """Whether a row's hardware is part of this machine: as many devices of the kind at least, or the same host.

    (:func:`autolaunch.daemon.where.where_of` writes it so. The driver may be another: then the row does not apply yet.)
    """
    kinds = Counter(f"{each.name} {each.memory_total_bytes or 'unknown'}" for each in report.accelerators)
    host = report.host
    alone = f"{host.cpu.brand or host.machine or 'CPU'} {host.memory_total_bytes or 'unknown'}"
    for part in row.where.hardware.split(" + "):
        count, _, kind = part.partition(" x ")
        if part != alone and not (count.isascii() and count.isdigit() and 0 < int(count[:6]) <= kinds[kind]):
            return False
    return True


def _opened(path: Path) -> IO[bytes]:
    try:
        # Without waiting: a pipe in the file's place has no end of its own.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigurationError(f"{path} is no regular file")
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a bounded length: what is longer is handed on cut, and refused for its length."""
    from autolaunch.daemon.rows import LINE_BYTES

    while line := file.readline(LINE_BYTES + 1):
        yield line
