"""What happens in a launch, numbered, kept within a bound, and read by as many as like to."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from autolaunch.hubs.speed import Transfer
from autolaunch.server import LaunchEvent
from selector.values import Value

#: So many are kept for readers that are slow or come late; one is a few hundred bytes.
KEPT_EVENTS = 1000

Level = Literal["info", "warning", "error"]


class Event(Value, frozen=True, kw_only=True):
    """Something that happened in a launch.

    Attributes:
        serial: counts from 1; no event of this launch has the same.
        name: stable and for programs. How far a start is: ``launch.port``, ``launch.weights``, ``launch.environment``,
            ``launch.starting``, ``launch.loading``, ``launch.ready``, ``launch.stopping``, ``launch.stopped``. What
            the supervisor makes of it: ``engine.ready``, ``engine.failed``, ``ladder.step`` and others like these.
            ``lock.written``, ``lock.failed``: of a launch that is to be kept in a file.
            ``events.missed``: this reader was too slow, or came late; ``missed`` tells how many it did not get.
        message: one sentence for a person.
        level: ``info``, ``warning`` or ``error``.
        seconds: since the launch began.
        unit: the engine that it is about: ``glm-4.6``, or ``glm-4.6#2`` for its second replica.
        hint: what to do about it.
        reason: why, of a failure: ``out of memory``, ``port in use`` and others.
        fraction: 0 to 1 of what ``message`` tells, where it is known.
        transfer: of a download: bytes done and in all, bytes a second, seconds left.
        missed: of ``events.missed``, a number of events.
    """

    serial: int
    name: str
    message: str
    level: Level = "info"
    seconds: float = 0.0
    unit: str | None = None
    hint: str | None = None
    reason: str | None = None
    fraction: float | None = None
    transfer: Transfer | None = None
    missed: int | None = None


class Events:
    """The last events of a launch. Everything may be called from any thread, and nothing waits for a reader."""

    def __init__(self, kept: int = KEPT_EVENTS, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept: deque[Event] = deque(maxlen=kept)
        self._serial = 0
        self._lock = threading.Lock()
        self._clock = clock
        self._began = clock()

    def told(self, name: str, message: str, level: Level, *, hint: str | None, reason: str | None) -> None:
        """What a supervisor says. Texts come here as they may be shown."""
        self._add(name, message, level=level, hint=hint, reason=reason)

    def heard(self, unit: str, event: LaunchEvent, message: str) -> None:
        """What the start of an engine says; ``message`` as it may be shown."""
        self._add(f"launch.{event.stage}", message, unit=unit, fraction=event.fraction, transfer=event.transfer)

    def _add(
        self,
        name: str,
        message: str,
        *,
        level: Level = "info",
        unit: str | None = None,
        hint: str | None = None,
        reason: str | None = None,
        fraction: float | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        seconds = round(self._clock() - self._began, 3)
        with self._lock:
            self._serial += 1
            self._kept.append(
                Event(
                    serial=self._serial,
                    name=name,
                    message=message,
                    level=level,
                    seconds=seconds,
                    unit=unit,
                    hint=hint,
                    reason=reason,
                    fraction=fraction,
                    transfer=transfer,
                )
            )

    @property
    def serial(self) -> int:
        """The number of the last event; 0 where there was none."""
        return self._serial

    def after(self, serial: int) -> tuple[Event, ...]:
        """Those after ``serial``, and before them ``events.missed`` where some are no longer kept."""
        with self._lock:
            found = tuple(each for each in self._kept if each.serial > serial)
            missed = self._serial - serial - len(found)
        if missed <= 0:
            return found
        first = found[0] if found else None
        return (
            Event(
                serial=serial + missed,
                name="events.missed",
                message=f"{missed} events before this are no longer kept",
                level="warning",
                seconds=round(self._clock() - self._began, 3) if first is None else first.seconds,
                missed=missed,
            ),
            *found,
        )
