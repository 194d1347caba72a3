"""What was tried here, and how it went: failures and successes by hardware, driver, engine and checkpoint.

A SQLite file, opened for each question and closed after it. It is a memory and never a condition: where it cannot be
read nothing is known, where it cannot be written nothing is learned, and either is said once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from autolaunch.daemon.deployment import Fault, Reason
from autolaunch.given import without_secrets
from selector.contract import Candidate, Limits
from selector.hardware import HardwareReport
from selector.request import KvDtype
from selector.values import Value, readable

if TYPE_CHECKING:
    import sqlite3

SCHEMA = 1
#: A failure is of use as long as somebody may plan it again; a thousand are years of one machine.
ROWS = 1000
BUSY_SECONDS = 0.25
SET_ASIDE = 5
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

_CREATE = """
CREATE TABLE tried (
    place TEXT NOT NULL, configuration TEXT NOT NULL, served INTEGER NOT NULL, reason TEXT, message TEXT,
    at REAL NOT NULL, PRIMARY KEY (place, configuration, served)
)
"""
#: What makes the schema after each number of it.
MIGRATIONS: dict[int, str] = {0: _CREATE}


class Where(Value, frozen=True, kw_only=True):
    """What a failure is a failure of, beside the configuration. Another driver or version may have mended it.

    ``hardware`` names the devices that are used, with their bytes; on the host, its processor and main memory.
    """

    hardware: str
    driver: str | None
    engine: str
    engine_version: str
    package: str
    repo: str
    quantization: str
    file_prefix: str | None = None
    revision: str | None = None


class Configuration(Value, frozen=True, kw_only=True):
    """A layout, on so many ``devices``, and its limits (:class:`selector.contract.Limits`)."""

    tensor: int
    pipeline: int
    data: int
    expert: bool
    nodes: int
    devices: int
    context_tokens: int
    max_sequences: int
    kv_cache_dtype: KvDtype
    memory_utilization: float
    speculative: str
    eager: bool
    gpu_layers: int | None = None
    cpu_expert_layers: int = 0
    device_layers: tuple[int, ...] = ()


class Tried(Value, frozen=True, kw_only=True):
    """How a configuration went, the last time that it went so. ``at`` is in seconds since the epoch.

    ``reason`` and ``message`` are a failure's, ``None`` where it served.
    """

    configuration: Configuration
    at: float
    served: bool
    reason: Reason | None = None
    message: str | None = None


def where_of(candidate: Candidate, report: HardwareReport) -> Where:
    """What a failure of ``candidate`` on this machine would be kept under."""
    devices = [each for each in report.accelerators if each.index in candidate.parallel.devices]
    kinds = Counter(f"{each.name} {each.memory_total_bytes or 'unknown'}" for each in devices)
    parts = [f"{count} x {kind}" for kind, count in sorted(kinds.items())]
    host = report.host
    if not devices or candidate.limits.cpu_expert_layers:
        parts.append(f"{host.cpu.brand or host.machine or 'CPU'} {host.memory_total_bytes or 'unknown'}")
    vendors = {each.vendor for each in devices}
    drivers = sorted(f"{each.vendor} {each.version}" for each in report.drivers if each.vendor in vendors)
    return Where(
        hardware=" + ".join(parts),
        driver=", ".join(drivers) or None,
        engine=candidate.engine.name,
        engine_version=candidate.engine.version,
        package=candidate.engine.package,
        repo=candidate.checkpoint.repo,
        quantization=candidate.checkpoint.quantization,
        file_prefix=candidate.checkpoint.file_prefix,
        revision=candidate.checkpoint.revision,
    )


def configuration_of(candidate: Candidate) -> Configuration:
    parallel, limits = candidate.parallel, candidate.limits
    kept = set(Configuration.__struct_fields__) & set(Limits.__struct_fields__)
    return Configuration(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        expert=parallel.expert,
        nodes=parallel.nodes,
        devices=len(parallel.devices),
        **{name: getattr(limits, name) for name in kept},
    )


def is_learned(fault: Fault) -> bool:
    """Whether a fault tells of the configuration, so that the same one is not to be tried here again."""
    return fault.reason in OF_CONFIGURATION or (fault.permanent and fault.reason not in OF_SOMETHING_ELSE)


class Store:
    """The memory in the file at ``path``, which is made when there is first something to keep."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._unsaid: str | None = None
        self._failing = False

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
        if not os.access(self.path, os.F_OK):  # its own exists raises where the folder is closed
            return ()
        asked = "SELECT configuration, served, reason, message, at FROM tried WHERE place = ? ORDER BY at, served"
        rows: list[tuple[object, ...]] = []

        def read(connection: sqlite3.Connection) -> None:
            if _version(connection) == SCHEMA:
                rows.extend(connection.execute(asked, (_key(where),)).fetchall())

        self._do(read, write=False)
        return tuple(found for row in rows if (found := _tried(*row)) is not None)

    def forget(self, repos: Collection[str]) -> str | None:
        """Forgets what was tried with checkpoints of ``repos``, and says of how much."""
        if not os.access(self.path, os.F_OK):
            return self.trouble()
        forgotten: list[str] = []

        def clear(connection: sqlite3.Connection) -> None:
            places = [place for (place,) in connection.execute("SELECT DISTINCT place FROM tried")]
            forgotten[:] = [place for place in places if _repo(place) in repos]
            connection.executemany("DELETE FROM tried WHERE place = ?", [(place,) for place in forgotten])

        self._do(clear, write=True)
        if (trouble := self.trouble()) is not None or not forgotten:
            return trouble
        return f"what failed here before is forgotten, of {len(forgotten)} engines and checkpoints"

    def trouble(self) -> str | None:
        """What is to be said of the file and was not yet said: a sentence, once."""
        said, self._unsaid = self._unsaid, None
        return said

    def _keep(
        self, where: Where, candidate: Candidate, *, served: bool, reason: str | None, message: str | None
    ) -> str | None:
        row = (_key(where), _key(configuration_of(candidate)), served, reason, message, self._clock())
        oldest = "DELETE FROM tried WHERE rowid NOT IN (SELECT rowid FROM tried ORDER BY at DESC, rowid DESC LIMIT ?)"

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO tried VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.execute(oldest, (ROWS,))

        self._do(insert, write=True)
        return self.trouble()

    # --- the file

    def _do(self, work: Callable[[sqlite3.Connection], None], *, write: bool) -> None:
        """Does ``work`` on the file; what goes wrong is kept for :meth:`trouble`."""
        try:
            import sqlite3
        except ImportError:  # a Python that was built without it
            self._fail("this Python has no sqlite3")
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
            self._fail(reason or str(error))
        else:
            self._failing = False

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._unsaid = f"what failed here before is not known or not kept ({self.path}: {reason[:200]})"
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
        try:
            yield connection
        finally:
            connection.close()

    def _set_aside(self) -> str:
        place = self.path.with_name(f"{self.path.name}.corrupt-{int(self._clock())}")
        self.path.replace(place)
        with contextlib.suppress(OSError):  # it belongs to the file that was set aside
            self.path.with_name(f"{self.path.name}-journal").unlink()
        for old in sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*"))[:-SET_ASIDE]:
            with contextlib.suppress(OSError):
                old.unlink()
        return place.name


def _version(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def _migrate(connection: sqlite3.Connection) -> None:
    """Brings a file of an earlier schema to this one; a new file is of schema 0."""
    found = _version(connection)
    if found > SCHEMA:
        raise OSError(0, f"it is of schema {found}, and this release writes {SCHEMA}")
    for number in range(found, SCHEMA):
        connection.execute(MIGRATIONS[number])
    if found < SCHEMA:
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


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
