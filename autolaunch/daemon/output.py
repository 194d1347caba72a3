"""What an engine prints: read without end, kept within bounds, fit to be shown."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

#: Bounds on what is kept of the output: lines in memory, characters of a line, bytes of the log file.
RING_LINES, LINE_CHARACTERS, LOG_BYTES = 400, 2_000, 16 * 2**20

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?<=>]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BREAKS = re.compile(rb"[\r\n]+")


def printable(text: str) -> str:
    """``text`` without terminal escapes and control characters; tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class Output:
    """The engine's lines: the last few in memory, more of them in a log file, both bounded.

    A line longer than ``LINE_CHARACTERS`` keeps its beginning. When the file is full it is set aside as
    ``NAME.1`` and begun anew. A disk that fills up ends the file, not the reading. ``on_line`` is given every line
    that is not empty; while it works the engine's pipe fills, so it must be quick, and it must not raise.
    """

    def __init__(self, log_path: Path | None, on_line: Callable[[str], None] = lambda _: None) -> None:
        self.log_path = log_path
        self._on_line = on_line
        self.total_bytes = 0
        self._lines: deque[str] = deque(maxlen=RING_LINES)
        self._partial = b""
        self._lock = threading.Lock()
        self._written_bytes = 0
        self._file = self._open()

    def feed(self, chunk: bytes) -> None:
        """Takes in what was read."""
        *whole, rest = _BREAKS.split(chunk)
        lines = []
        for line in whole:
            lines.append(self._clean(self._partial + line[:LINE_CHARACTERS]))
            self._partial = b""
        room = max(0, 4 * LINE_CHARACTERS - len(self._partial))
        self._partial += rest[:room]
        with self._lock:
            self.total_bytes += len(chunk)
            self._lines.extend(line for line in lines if line)
        self._write("".join(line + "\n" for line in lines if line))
        for line in lines:
            if line:
                self._on_line(line)

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines, oldest first, fit to be shown."""
        with self._lock:
            lines = list(self._lines)[-count:]
        last = self._clean(self._partial)
        return (*lines, last)[-count:] if last else tuple(lines)

    def close(self) -> None:
        """Ends the log file with what was left of the last line."""
        if self._partial:
            self.feed(b"\n")
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def _clean(line: bytes) -> str:
        return printable(line.decode(errors="replace"))[:LINE_CHARACTERS].rstrip()

    def _open(self) -> BinaryIO | None:
        if self.log_path is None:
            return None
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Prompts may be in it: it is for its user alone.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            return os.fdopen(os.open(self.log_path, flags, 0o600), "wb")
        except OSError:
            return None  # serving goes on without a log file

    def _write(self, text: str) -> None:
        if self._file is None or self.log_path is None or not text:
            return
        data = text.encode()
        try:
            if self._written_bytes + len(data) > LOG_BYTES:
                self._file.close()
                self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
                self._file = self._open()
                self._written_bytes = 0
                if self._file is None:
                    return
            self._file.write(data)
            self._file.flush()
            self._written_bytes += len(data)
        except OSError:
            self._file = None
