"""The file that autolaunch remembers in: opened for each question, closed after it, and never a condition.

Where it cannot be read nothing is known, where it cannot be written nothing is learned, and either is said once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

SCHEMA = 2
BUSY_SECONDS = 0.25
SET_ASIDE = 5

#: What makes the schema after each number of it. What was tried is as it was in schema 1.
MIGRATIONS: dict[int, str] = {
    0: """
CREATE TABLE tried (
    place TEXT NOT NULL, configuration TEXT NOT NULL, served INTEGER NOT NULL, reason TEXT, message TEXT,
    at REAL NOT NULL, PRIMARY KEY (place, configuration, served)
)
""",
    1: """
CREATE TABLE measured (
    place TEXT NOT NULL, configuration TEXT NOT NULL, source TEXT NOT NULL, figures TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (place, configuration, source)
)
""",
}


class LearnedFile:
    """The file at ``path``, which is made when there is first something to keep. ``clock`` is the time of day."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.clock = clock
        self._unsaid: str | None = None
        self._failing = False

    @property
    def exists(self) -> bool:
        return os.access(self.path, os.F_OK)  # its own exists raises where the folder is closed

    def trouble(self) -> str | None:
        """What is to be said of the file and was not yet said: a sentence, once."""
        said, self._unsaid = self._unsaid, None
        return said

    def say(self, sentence: str) -> None:
        """Leaves a sentence for :meth:`trouble`, unless there is one."""
        self._unsaid = self._unsaid or sentence

    def do(self, work: Callable[[sqlite3.Connection], None], *, write: bool) -> None:
        """Does ``work`` on the file; what goes wrong is kept for :meth:`trouble`."""
        try:
            import sqlite3
        except ImportError:  # a Python that was built without it
            self.fail("this Python has no sqlite3")
            return
        try:
            try:
                self._attempt(work, write=write)
            except sqlite3.DatabaseError as error:
                if not write or error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                aside = self._set_aside()
                self._attempt(work, write=True)
                self._unsaid = f"{self.path} was no sound database: it was set aside as {aside}, and begun anew"
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            self.fail(reason or str(error))
        else:
            self._failing = False

    def fail(self, reason: str) -> None:
        if not self._failing:
            self._unsaid = f"what was learned here before is not known or not kept ({self.path}: {reason[:200]})"
        self._failing = True

    def _attempt(self, work: Callable[[sqlite3.Connection], None], *, write: bool) -> None:
        with self._open(write=write) as connection:
            if not write:
                work(connection)
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                _migrate(connection)
                work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(connection.Error):  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        import sqlite3

        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        address = f"{self.path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        connection.text_factory = _text
        try:
            yield connection
        finally:
            connection.close()

    def _set_aside(self) -> str:
        place = self.path.with_name(f"{self.path.name}.corrupt-{int(self.clock())}")
        self.path.replace(place)
        with contextlib.suppress(OSError):  # it belongs to the file that was set aside
            self.path.with_name(f"{self.path.name}-journal").unlink()
        for old in sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*"))[:-SET_ASIDE]:
            with contextlib.suppress(OSError):
                old.unlink()
        return place.name


def _text(content: bytes) -> str:
    """A text, whatever somebody wrote into it: one that is none in UTF-8 must not hide the others."""
    return content.decode(errors="replace")


def version(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def _migrate(connection: sqlite3.Connection) -> None:
    """Brings a file of an earlier schema to this one; a new file is of schema 0."""
    found = version(connection)
    if found > SCHEMA:
        raise OSError(0, f"it is of schema {found}, and this release writes {SCHEMA}")
    for number in range(found, SCHEMA):
        connection.execute(MIGRATIONS[number])
    if found < SCHEMA:
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
