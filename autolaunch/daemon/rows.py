"""Measurements as rows: what the store keeps, and what one host exports for another as JSON, a row a line.

Everything that is read, from the file or from elsewhere, is bounded: no figure, no text and no file is taken for what
it says without its type, its range and its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from autolaunch.daemon.where import Where
from selector.errors import ConfigurationError
from selector.measured import Configuration, Measured
from selector.values import Value, readable

#: A row has some six hundred characters; texts in it are names of devices and repositories.
LINE_BYTES = 8192
#: As many as a store keeps.
LINES = 1000
#: How far ahead a clock may have been. A row of a later time would stay the newest for good.
AHEAD_SECONDS = 86_400.0


class Row(Value, frozen=True, kw_only=True):
    """What a configuration showed at a place."""

    schema: Literal[1] = 1
    where: Where
    configuration: Configuration
    measured: Measured


def line_of(row: Row) -> str:
    """The row as one line of JSON, without its end."""
    return msgspec.json.encode(row).decode()


def rows_of(
    lines: Iterable[str | bytes], name: str = "the file", *, latest_seconds: float | None = None
) -> Iterator[Row]:
    """The rows of a file that :func:`line_of` wrote; empty lines are passed over.

    ``latest_seconds``: no row is of a later time, in seconds since the epoch: it would stay the newest for good.

    Raises:
        ConfigurationError: a line is no row; ``name`` and its number are told, and what is wrong with it.
    """
    count = 0
    for number, line in enumerate(lines, start=1):
        if len(line) > LINE_BYTES:
            raise ConfigurationError(f"{name}, line {number}: a row has at most {LINE_BYTES} bytes")
        if not line.strip():
            continue
        count += 1
        if count > LINES:
            raise ConfigurationError(f"{name} has more than {LINES} rows")
        try:
            row = msgspec.json.decode(line, type=readable(Row))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ConfigurationError(
                f"{name}, line {number}: no measurement: {error}",
                hint="autolaunch bench --export writes such rows",
            ) from error
        if latest_seconds is not None and row.measured.at > latest_seconds:
            raise ConfigurationError(f"{name}, line {number}: it was measured in the future", hint="is a clock wrong?")
        yield row


def kept_row(place: object, configuration: object, source: object, figures: object) -> Row | None:
    """A row of the store, if it is one that this release can read."""
    try:
        found = Row(
            where=msgspec.json.decode(_text(place), type=readable(Where)),
            configuration=msgspec.json.decode(_text(configuration), type=readable(Configuration)),
            measured=msgspec.json.decode(_text(figures), type=readable(Measured)),
        )
    except (msgspec.DecodeError, UnicodeError):
        return None
    return found if found.measured.source == source else None


def merged(one: Measured, other: Measured | None) -> Measured:
    """Two measurements of one configuration: what the newer one does not tell, the older one does."""
    if other is None:
        return one
    newer, older = (one, other) if one.at >= other.at else (other, one)
    known = msgspec.structs.asdict(older)
    told = {name: value for name, value in msgspec.structs.asdict(newer).items() if value is not None}
    return Measured(**{**known, **told})


def _text(value: object) -> str:
    """What SQLite gave; a number or bytes in the place of a text is none that we wrote."""
    if not isinstance(value, str) or len(value) > LINE_BYTES:
        raise msgspec.ValidationError("no text of a row")
    return value
