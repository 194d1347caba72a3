"""The lines that a deployment's engines print, from the log files that they are kept in.

A file is bounded (:mod:`autolaunch.daemon.output`): when it is full it becomes ``NAME.1`` and is begun anew, and an
engine that is started again has another. Who follows is led from one to the next. Reading blocks, and is for threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from autolaunch.daemon.output import LINE_CHARACTERS

#: What is read at once.
BLOCK_BYTES = 64 * 1024


class Source(NamedTuple):
    """Whose lines are wanted: where they are, and what must not be shown of them."""

    path: Path
    keys: tuple[str | None, ...] = ()


class Lines:
    """Reads one log file after the other, whole lines only."""

    def __init__(self, shown: Callable[..., str]) -> None:
        """``shown(text, *keys)`` takes out of a line what must not be shown."""
        self._shown = shown
        self._source: Source | None = None
        self._file: BinaryIO | None = None
        self._rest = b""

    def tail(self, source: Source, count: int) -> list[str]:
        """The last ``count`` lines; what :meth:`more` gives comes after them."""
        self._begin(source)
        if self._file is None:
            return []
        data, whole = self._from_the_end(self._file, count)
        lines = self._split(data)
        if len(lines) < count and whole:
            try:
                with source.path.with_name(source.path.name + ".1").open("rb") as before:
                    older, _ = self._from_the_end(before, count - len(lines))
            except OSError:
                older = b""
            lines = [*_lines(older), *lines]
        return self._clean(lines[max(0, len(lines) - count) :] if count else [])

    def more(self, source: Source) -> list[str]:
        """What was printed since; an empty list when there is nothing yet."""
        if self._source is None or self._source.path != source.path:
            # The last lines of the one before first: it has ended.
            last = self._block()
            if last:
                return last
            ended = self._clean([self._rest.decode(errors="replace")]) if self._rest else []
            self._begin(source)
            return ended or self._block()
        found = self._block()
        if not found and self._was_set_aside():
            self._begin(source)
            return self._block()
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, source: Source) -> None:
        self.close()
        self._source, self._rest = source, b""
        try:
            self._file = source.path.open("rb")
        except OSError:  # it could not be written either
            self._file = None

    def _block(self) -> list[str]:
        if self._file is None:
            return []
        lines: list[str] = []
        while not lines and (data := self._file.read(BLOCK_BYTES)):
            lines = self._split(data)
        return self._clean(lines)

    def _split(self, data: bytes) -> list[str]:
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: 4 * LINE_CHARACTERS]
        return [line.decode(errors="replace") for line in whole]

    def _clean(self, lines: list[str]) -> list[str]:
        keys = () if self._source is None else self._source.keys
        return [self._shown(line, *keys) for line in lines]

    def _was_set_aside(self) -> bool:
        if self._file is None or self._source is None:
            return self._source is not None and self._source.path.exists()
        try:
            now, then = self._source.path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) or now.st_size < self._file.tell()

    @staticmethod
    def _from_the_end(file: BinaryIO, count: int) -> tuple[bytes, bool]:
        """The end of a file with ``count`` lines and a part of one more, and whether that is all of it."""
        end = at = file.seek(0, os.SEEK_END)
        blocks: list[bytes] = []
        lines = 0
        while at > 0 and lines <= count:
            size = min(BLOCK_BYTES, at)
            at -= size
            file.seek(at)
            blocks.append(file.read(size))
            lines += blocks[-1].count(b"\n")
        file.seek(end)
        return b"".join(reversed(blocks)), at == 0


def _lines(data: bytes) -> list[str]:
    return data.decode(errors="replace").removesuffix("\n").split("\n") if data else []
