"""What has happened lately, numbered and bounded: what ``/v1/events`` gives, and is followed by."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from autolaunch.daemon.control.contract import EventDocument
from autolaunch.daemon.journal import Event, cleaned

#: So many are kept; one is a few hundred bytes.
KEPT_EVENTS = 2000
#: The most that a reader is given at once.
BATCH = 200


class Happened:
    """The last events. Everything may be called from any thread, and nothing waits for a reader."""

    def __init__(self, kept: int = KEPT_EVENTS, *, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives seconds since the epoch."""
        self._kept: deque[EventDocument] = deque(maxlen=kept)
        self._clock = clock
        self._serial = 0
        self._lock = threading.Lock()
        self._readers: set[Callable[[], None]] = set()

    @property
    def serial(self) -> int:
        """The number of the last event; 0 where there was none."""
        return self._serial

    def append(self, event: Event) -> None:
        """Takes an event in, without what must not be said, and tells who follows."""
        event = cleaned(event)
        with self._lock:
            self._serial += 1
            self._kept.append(
                EventDocument(
                    serial=self._serial,
                    time=_moment(self._clock()),
                    level=event.level,
                    event=event.event,
                    message=event.message,
                    deployment=event.deployment,
                    figures=event.figures,
                )
            )
            readers = tuple(self._readers)
        for tell in readers:
            tell()

    def after(self, serial: int, most: int = BATCH) -> tuple[EventDocument, ...]:
        """The first that came after ``serial``; in front of them ``events.missed`` where there were others before.

        A ``serial`` that no event has had yet is of an earlier start: what there is follows, and how many were
        missed is unknown (``None``).
        """
        with self._lock:
            earlier = serial > self._serial
            if earlier:
                serial = 0
            found = tuple(each for each in self._kept if each.serial > serial)[:most]
            missed = (found[0].serial if found else self._serial + 1) - serial - 1
        if earlier:
            return (self._missed(serial + missed, "the numbers began anew: this was started since", None), *found)
        if not missed:
            return found
        return (self._missed(serial + missed, f"{missed} events before this are no longer kept", missed), *found)

    def _missed(self, serial: int, message: str, count: int | None) -> EventDocument:
        return EventDocument(
            serial=serial,
            time=_moment(self._clock()),
            level="warning",
            event="events.missed",
            message=message,
            figures={"events": count},
        )

    def follow(self, tell: Callable[[], None]) -> None:
        """``tell`` is called after every event, from whatever thread it comes, until :meth:`leave`."""
        with self._lock:
            self._readers.add(tell)

    def leave(self, tell: Callable[[], None]) -> None:
        with self._lock:
            self._readers.discard(tell)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)
