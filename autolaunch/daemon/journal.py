"""What the daemon says: one line an event, for people, for ``grep`` and for the journal.

``time=… level=info deployment=glm-4.6 event=engine.ready message="serves" seconds=41.2``. Under systemd the journal
keeps the time, and the level goes in front of the line as it wants it (``<6>``). Whatever is in a value, a line is
one line: quoted, without control characters, and short enough to go into a pipe in one piece.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from autolaunch.given import without_secrets
from selector.values import Value

Level = Literal["error", "warning", "notice", "info", "debug"]
#: Of syslog, as ``sd-daemon(3)`` has them.
PRIORITIES: dict[Level, int] = {"error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}

Figure = str | int | float | bool | None
#: POSIX lets a pipe take so many bytes at once or none (PIPE_BUF of Linux is 4096, of macOS 512).
LINE_BYTES = min(4096, select.PIPE_BUF) if hasattr(select, "PIPE_BUF") else 512
MESSAGE_CHARACTERS, VALUE_CHARACTERS, KEY_CHARACTERS = 1000, 300, 40

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]")
_PLAIN = re.compile(r"[\w.:/+@%,~*<>()\[\]-]+")
_RESERVED = frozenset({"time", "level", "deployment", "event", "message"})


class Event(Value, frozen=True, kw_only=True):
    """Something that happened. ``event`` is a stable dotted name; a figure that is ``None`` is left out."""

    level: Level = "info"
    event: str
    message: str
    deployment: str | None = None
    figures: dict[str, Figure] = msgspec.field(default_factory=dict)


def line(event: Event, *, journal: bool, as_json: bool = False, now: float | None = None) -> str:
    """The event as one line without its end, of :data:`LINE_BYTES` at most.

    Args:
        event: what happened.
        journal: put the level in front as a priority, and leave out the time.
        as_json: an object instead of ``key=value``.
        now: seconds since the epoch, where it is not to be the present.
    """
    front = f"<{PRIORITIES[event.level]}>" if journal else ""
    written = _json if as_json else _pairs
    fields: dict[str, Figure] = {}
    if not journal:
        moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
        fields["time"] = moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
    fields["level"] = event.level
    if event.deployment is not None:
        fields["deployment"] = _clean(event.deployment, VALUE_CHARACTERS)
    fields["event"] = _clean(event.event, VALUE_CHARACTERS)
    fields["message"] = _clean(event.message, MESSAGE_CHARACTERS)
    for name, value in event.figures.items():
        if value is not None:
            fields[_key(name)] = _clean(value, VALUE_CHARACTERS) if isinstance(value, str) else value
    # The end of the line gives way, and last the message: what happened, and to what, is always said.
    while len((found := front + written(fields)).encode()) >= LINE_BYTES:
        last = next(reversed(fields))
        if last != "message":
            del fields[last]
            continue
        message = str(fields["message"])
        fields["message"] = _clean(message, len(message) // 2)
    return found


def cleaned(event: Event) -> Event:
    """The event as it may be shown anywhere: bounded, without tokens, terminal sequences and control characters."""
    figures: dict[str, Figure] = {
        _key(name): _clean(value, VALUE_CHARACTERS) if isinstance(value, str) else value
        for name, value in event.figures.items()
        if value is not None
    }
    return Event(
        level=event.level,
        event=_clean(event.event, VALUE_CHARACTERS),
        message=_clean(event.message, MESSAGE_CHARACTERS),
        deployment=None if event.deployment is None else _clean(event.deployment, VALUE_CHARACTERS),
        figures=figures,
    )


def goes_to_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether a stream is the journal's: systemd says which one it connected (``JOURNAL_STREAM``)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Journal:
    """Writes events to a stream. It never raises and never waits: what a dead or full reader does not take is counted,
    and told as soon as one does.
    """

    def __init__(
        self,
        descriptor: int = 2,
        *,
        journal: bool | None = None,
        as_json: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        #: Hears every event too, whether or not the stream takes it; it must not raise.
        self.heard: Callable[[Event], None] | None = None
        self._descriptor = descriptor
        self._journal = goes_to_journal(descriptor, os.environ) if journal is None else journal
        self._as_json = as_json
        self._clock = clock
        self._lock = threading.Lock()
        self._lost = 0
        self._cut = False

    def tell(self, event: Event) -> None:
        if self.heard is not None:
            self.heard(event)
        with self._lock:
            if self._lost and not self._write(_lost(self._lost)):
                self._lost += 1
                return
            self._lost = 0
            if not self._write(event):
                self._lost = 1

    def say(self, level: Level, event: str, message: str, *, deployment: str | None = None, **figures: Figure) -> None:
        """:meth:`tell` in one line."""
        self.tell(Event(level=level, event=event, message=message, deployment=deployment, figures=figures))

    def _write(self, event: Event) -> bool:
        """Whether all of the line went out."""
        text = line(event, journal=self._journal, as_json=self._as_json, now=self._clock())
        # After a line that was cut, another begins on a line of its own.
        content = ("\n" * self._cut + text + "\n").encode()
        try:
            # Asked first, and not set to return at once: the stream is shared with whoever started the daemon.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(0):
                return False
            written = os.write(self._descriptor, content)
        except (OSError, ValueError):  # nobody reads, the disk is full, the stream is closed
            return False
        self._cut = written < len(content)
        return not self._cut


def _lost(count: int) -> Event:
    message = f"{count} events before this one could not be written"
    return Event(level="warning", event="journal.lost", message=message, figures={"events": count})


# --- forms ------------------------------------------------------------------------------------------


def _json(fields: dict[str, Figure]) -> str:
    return msgspec.json.encode(fields).decode()


def _pairs(fields: dict[str, Figure]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: Figure) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _key(name: str) -> str:
    """A name that stands before an equals sign, and that is none of an event's own."""
    plain = re.sub(r"[^A-Za-z0-9_.]", "_", name[:KEY_CHARACTERS]) or "_"
    return f"{plain}_" if plain in _RESERVED else plain


def _clean(text: str, characters: int) -> str:
    """Without tokens, terminal sequences and control characters; what separates lines or words becomes one space."""
    text = _ESCAPE.sub("", without_secrets(text)[: 4 * characters])
    kept = "".join(each if each.isprintable() else " " if each.isspace() else "" for each in text)
    return kept if len(kept) <= characters else kept[: max(0, characters - 1)] + "…"
