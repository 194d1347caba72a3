"""What was tried here and how it went, and what was measured: by hardware, driver, engine and checkpoint.

A SQLite file (:mod:`autolaunch.daemon.learned_file`) with a table of what failed and served and one of figures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, get_args

import msgspec

from autolaunch.daemon.deployment import Fault, Reason
from autolaunch.daemon.learned_file import LearnedFile, version
from autolaunch.daemon.rows import AHEAD_SECONDS, LINE_BYTES, Row, kept_row, merged
from autolaunch.daemon.where import Where, where_of
from autolaunch.given import without_secrets
from selector.contract import Candidate
from selector.measured import Configuration, Measured, configuration_of
from selector.values import Value, readable

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Configuration", "Row", "Store", "Tried", "Where", "configuration_of", "is_learned", "where_of"]

#: A failure is of use as long as somebody may plan it again; a thousand are years of one machine.
ROWS = 1000
#: Of what was measured here, and as many again of what was imported.
MEASURED_ROWS = 1000
MESSAGE_CHARACTERS = 500

#: What the configuration is to blame for as a rule: less of something, or another layout, is the cure.
OF_CONFIGURATION: frozenset[Reason] = frozenset(
    {"out of memory", "kv cache does not fit", "missing kernel", "graph capture"}
)
#: What says nothing of the configuration, even where the same again fails the same way.
OF_SOMETHING_ELSE: frozenset[Reason] = frozenset(
    {
        "killed",  # by whoever wanted to
        "out of host memory",  # what other programs hold, and the limits of whoever started it
        "stopped",
        "port in use",  # another's
        "devices held",
        "no cluster",
        "too few nodes",
        "disk full",
        "device lost",  # hardware, and plans leave it out as long as it is
        "driver",  # mended by another driver, or a reboot with the same one
        "installation",  # mended by making the environment again
        "import error",
        "download",  # mended by fetching again
        "bad weights",
        "bad argument",  # as often what the user handed on to the engine
        "options",
        "no plan",  # nothing was tried
        "processes left",
        "fault of ours",
    }
)


class Tried(Value, frozen=True, kw_only=True):
    """How a configuration went, the last time that it went so. ``at`` is in seconds since the epoch.

    ``reason`` and ``message`` are a failure's, ``None`` where it served.
    """

    configuration: Configuration
    at: float
    served: bool
    reason: Reason | None = None
    message: str | None = None


def is_learned(fault: Fault) -> bool:
    """Whether a fault tells of the configuration, so that the same one is not to be tried here again."""
    return fault.reason in OF_CONFIGURATION or (fault.permanent and fault.reason not in OF_SOMETHING_ELSE)


class Store(LearnedFile):
    """The memory. What is to be said of the file is returned by what writes, and by ``trouble`` after a reading."""

    # --- what was tried

    def failed(self, where: Where, candidate: Candidate, fault: Fault) -> str | None:
        """Keeps a failure that tells of the configuration; returns what is to be said, as the others do."""
        if not is_learned(fault):
            return self.trouble()
        message = without_secrets(fault.message)[:MESSAGE_CHARACTERS]
        return self._keep(where, candidate, served=False, reason=fault.reason, message=message)

    def served(self, where: Where, candidate: Candidate) -> str | None:
        """Keeps that it served."""
        return self._keep(where, candidate, served=True, reason=None, message=None)

    def tried(self, where: Where) -> tuple[Tried, ...]:
        """What was tried there, the oldest first; nothing where the file cannot be read (:meth:`trouble`)."""
        if not self.exists:
            return ()
        asked = "SELECT configuration, served, reason, message, at FROM tried WHERE place = ? ORDER BY at, served"
        rows: list[tuple[object, ...]] = []

        def read(connection: sqlite3.Connection) -> None:
            if version(connection) in (1, 2):
                rows.extend(connection.execute(asked, (_key(where),)).fetchall())

        self.do(read, write=False)
        return tuple(found for row in rows if (found := _tried(*row)) is not None)

    def forget(self, repos: Collection[str]) -> str | None:
        """Forgets what was tried with checkpoints of ``repos``, and says of how much."""
        if not self.exists:
            return self.trouble()
        forgotten: list[str] = []

        def clear(connection: sqlite3.Connection) -> None:
            places = [place for (place,) in connection.execute("SELECT DISTINCT place FROM tried")]
            forgotten[:] = [place for place in places if _repo(place) in repos]
            connection.executemany("DELETE FROM tried WHERE place = ?", [(place,) for place in forgotten])

        self.do(clear, write=True)
        if (trouble := self.trouble()) is not None or not forgotten:
            return trouble
        return f"what failed here before is forgotten, of {len(forgotten)} engines and checkpoints"

    def _keep(
        self, where: Where, candidate: Candidate, *, served: bool, reason: str | None, message: str | None
    ) -> str | None:
        row = (_key(where), _key(configuration_of(candidate)), served, reason, message, self.clock())
        oldest = "DELETE FROM tried WHERE rowid NOT IN (SELECT rowid FROM tried ORDER BY at DESC, rowid DESC LIMIT ?)"

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO tried VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.execute(oldest, (ROWS,))

        self.do(insert, write=True)
        return self.trouble()

    # --- what was measured

    def measured(self, where: Where, candidate: Candidate, measured: Measured) -> str | None:
        """Keeps what ``candidate`` showed there, in the place of what it showed before by the same source."""
        return self._keep_rows((Row(where=where, configuration=configuration_of(candidate), measured=measured),))

    def measurements(self, where: Where | None = None) -> tuple[Row, ...]:
        """What was measured there, or anywhere, the newest first; what no release wrote is passed over and said.

        Nothing where the file cannot be read (:meth:`trouble`).
        """
        if not self.exists:
            return ()
        asked = (
            "SELECT substr(place, 1, ?2), substr(configuration, 1, ?2), substr(source, 1, ?2), substr(figures, 1, ?2) "
            "FROM measured WHERE ?1 IS NULL OR place = ?1 ORDER BY at DESC, rowid DESC LIMIT ?3"
        )
        rows: list[tuple[object, ...]] = []

        def read(connection: sqlite3.Connection) -> None:
            if version(connection) == 2:
                place = None if where is None else _key(where)
                rows.extend(connection.execute(asked, (place, LINE_BYTES + 1, 2 * MEASURED_ROWS)).fetchall())

        self.do(read, write=False)
        latest = self.clock() + AHEAD_SECONDS
        read_in = (row for each in rows if (row := kept_row(*each)) is not None)
        found = tuple(row for row in read_in if row.measured.at <= latest)
        if len(found) < len(rows):
            self.say(f"{len(rows) - len(found)} of the measurements in {self.path} are none, and passed over")
        return found

    def export_rows(self) -> Iterator[Row]:
        """Everything that was measured on this host, the newest first (:func:`autolaunch.daemon.rows.line_of`)."""
        return (row for row in self.measurements() if row.measured.source != "imported")

    def import_rows(self, rows: Iterable[Row]) -> str | None:
        """Keeps what another host exported (:func:`autolaunch.daemon.rows.rows_of`), as ``imported``.

        A row of other hardware is kept as well: it applies where its hardware is. All are kept, or none.
        """
        return self._keep_rows(
            tuple(
                msgspec.structs.replace(row, measured=msgspec.structs.replace(row.measured, source="imported"))
                for row in rows
            )
        )

    def _keep_rows(self, rows: tuple[Row, ...]) -> str | None:
        oldest = (
            "DELETE FROM measured WHERE (source = 'imported') = ?1 AND rowid NOT IN (SELECT rowid FROM measured "
            "WHERE (source = 'imported') = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2)"
        )

        def insert(connection: sqlite3.Connection) -> None:
            for row in rows:
                place, configuration, measured = _key(row.where), _key(row.configuration), row.measured
                if measured.source == "imported":
                    measured = merged(measured, _imported_before(connection, place, configuration))
                kept = (place, configuration, measured.source, _key(measured), measured.at)
                connection.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?)", kept)
            for kind in (False, True):
                connection.execute(oldest, (kind, MEASURED_ROWS))

        self.do(insert, write=True)
        return self.trouble()


def _imported_before(connection: sqlite3.Connection, place: str, configuration: str) -> Measured | None:
    asked = "SELECT * FROM measured WHERE place = ? AND configuration = ? AND source = 'imported'"
    found = connection.execute(asked, (place, configuration)).fetchone()
    row = None if found is None else kept_row(*found[:4])
    return None if row is None else row.measured


def _key(value: Value) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _repo(place: str) -> str | None:
    """The repository of a place; of one that cannot be read, none."""
    try:
        return msgspec.json.decode(place, type=readable(Where)).repo
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _tried(configuration: object, served: object, reason: object, message: object, at: object) -> Tried | None:
    """A row, if it is one that this release can read."""
    try:
        found = msgspec.json.decode(str(configuration), type=readable(Configuration))
        known = reason if reason in _reasons() else None if served else "unknown"
        row = {"configuration": found, "served": bool(served), "reason": known, "message": message, "at": at}
        return msgspec.convert(row, readable(Tried))
    except msgspec.DecodeError:
        return None


def _reasons() -> frozenset[str]:
    causes, others = get_args(Reason)
    return frozenset((*get_args(causes), *get_args(others)))
