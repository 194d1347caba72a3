"""The engine logs of ``tests/data/logs``: recorded from real runs, or written from an engine's source where it says so.

A file is a header between two lines of ``+++`` and then what the engine printed, byte for byte.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from autolaunch.daemon.output import Output
from selector.values import Value

DATA = Path(__file__).parents[1] / "data" / "logs"


class Header(Value, frozen=True, kw_only=True):
    """Where a log comes from: ``how`` it was recorded, or the ``source`` that it was written from."""

    engine: str
    version: str
    made: Literal["recorded", "written"]
    how: str | None = None
    source: str | None = None
    exit_code: int | None = None


class Log(NamedTuple):
    """A log; ``lines`` are as the process's reader hands them on."""

    header: Header
    raw: bytes
    lines: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Every log's name."""
    return tuple(sorted(path.stem for path in DATA.glob("*.log")))


@cache
def read(name: str) -> Log:
    """The log called ``name``."""
    empty, header, raw = (DATA / f"{name}.log").read_bytes().split(b"+++\n", 2)
    assert empty == b""
    return Log(msgspec.toml.decode(header, type=Header), raw, lines_of(raw))


def lines_of(raw: bytes) -> tuple[str, ...]:
    """What the engine's reader makes of ``raw``, cut into pieces at odd places."""
    found: list[str] = []
    output = Output(None, found.append)
    for piece in re.findall(rb".{1,1777}", raw, re.DOTALL):
        output.feed(piece)
    output.close()
    return tuple(found)
