"""The last events: numbered, bounded, clean, and no reader holds anything up."""

from __future__ import annotations

import threading

import pytest

from autolaunch.daemon.control.happened import Happened
from autolaunch.daemon.journal import Event


def happened(count: int, kept: int = 5) -> Happened:
    found = Happened(kept, clock=lambda: 1_800_000_000.25)
    for number in range(count):
        found.append(Event(event=f"e{number + 1}", message="m"))
    return found


def test_events_are_numbered_from_one_and_given_after_a_number() -> None:
    one = happened(3)
    assert [each.serial for each in one.after(0)] == [1, 2, 3]
    assert [each.event for each in one.after(2)] == ["e3"]
    assert one.after(3) == ()
    assert one.after(0)[0].time.isoformat() == "2027-01-15T08:00:00.250000+00:00"


def test_what_is_no_longer_kept_is_told_as_missed() -> None:
    one = happened(12)
    missed, *rest = one.after(0)
    assert (missed.event, missed.figures, missed.serial) == ("events.missed", {"events": 7}, 7)
    assert [each.serial for each in rest] == [8, 9, 10, 11, 12]
    assert [each.serial for each in one.after(7)] == [8, 9, 10, 11, 12]
    assert one.after(6)[0].figures == {"events": 1}


def test_a_number_of_an_earlier_start_gets_what_there_is_and_is_told() -> None:
    missed, *rest = happened(3).after(10**9)
    assert (missed.event, missed.serial, missed.figures) == ("events.missed", 0, {"events": None})
    assert [each.serial for each in rest] == [1, 2, 3]
    assert [each.serial for each in happened(12).after(13)] == [7, 8, 9, 10, 11, 12]
    (alone,) = happened(0).after(1)
    assert (alone.event, alone.serial) == ("events.missed", 0)


def test_a_reader_gets_a_bounded_number_at_once_and_comes_back_for_the_rest() -> None:
    one = happened(5)
    first = one.after(0, most=2)
    assert [each.serial for each in first] == [1, 2]
    assert [each.serial for each in one.after(first[-1].serial, most=9)] == [3, 4, 5]


def test_what_is_in_an_event_is_shown_without_tokens_and_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    one = Happened()
    one.append(Event(event="a", message="\x1b[31mof hf_sentinel\n", deployment="d\x07", figures={"x\n": "hf_sentinel"}))
    (told,) = one.after(0)
    assert (told.message, told.deployment, told.figures) == ("of <HF_TOKEN> ", "d", {"x_": "<HF_TOKEN>"})


def test_who_follows_is_told_until_it_leaves() -> None:
    one, told = Happened(), []

    def tell() -> None:
        told.append(one.serial)

    one.follow(tell)
    one.append(Event(event="a", message="m"))
    one.leave(tell)
    one.append(Event(event="b", message="m"))
    assert told == [1]


def test_events_of_many_threads_have_each_a_number_of_their_own() -> None:
    one = Happened(10_000)

    def tell() -> None:
        for _ in range(200):
            one.append(Event(event="e", message="m"))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.serial for each in one.after(0, most=10_000)] == list(range(1, 801))
