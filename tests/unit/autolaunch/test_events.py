"""The events of a launch: numbered, bounded, and honest to readers that are slow."""

from __future__ import annotations

from autolaunch.events import Event, Events
from autolaunch.hubs.speed import Transfer
from autolaunch.server import LaunchEvent


def say(events: Events, count: int) -> None:
    for number in range(count):
        events.told("engine.ready", f"number {number}", "info", hint=None, reason=None)


def test_each_reader_gets_all_there_is_from_where_it_is() -> None:
    now = 10.0
    events = Events(clock=lambda: now)
    now = 12.5
    transfer = Transfer(done_bytes=1, total_bytes=4)
    events.heard("a#2", LaunchEvent(stage="weights", message="raw", fraction=0.25, transfer=transfer), "shown")
    say(events, 1)
    first, second = events.after(0)
    assert first == Event(
        serial=1, name="launch.weights", message="shown", seconds=2.5, unit="a#2", fraction=0.25, transfer=transfer
    )
    assert events.after(1) == (second,)
    assert events.after(2) == ()


def test_a_reader_that_is_too_slow_is_told_how_many_it_missed() -> None:
    events = Events(kept=3)
    say(events, 5)
    missed, *rest = events.after(0)
    assert (missed.name, missed.missed, missed.serial, missed.level) == ("events.missed", 2, 2, "warning")
    assert [each.serial for each in rest] == [3, 4, 5]
    assert [each.serial for each in events.after(2)] == [3, 4, 5], "of what it has seen nothing is missed"
