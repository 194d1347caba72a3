"""What the daemon says: one line an event, and never a reason to stop."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from autolaunch.daemon.journal import LINE_BYTES, Event, Journal, Level, goes_to_journal, line

NOON = 1_800_000_000.25
READY = Event(
    event="engine.ready",
    message="serves after 41 s",
    deployment="glm-4.6",
    figures={"seconds": 41.25, "pid": 17, "adopted": False, "left_out": None, "engine": "vllm 0.33.0"},
)

HOSTILE = [
    'a "quoted" \\ value',
    "two\nlines\r\nof <3>text",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07end\x9b2J",
    "nul\x00 bell\x07 del\x7f",
    "next\x85line\u2028separated\u2029again \u202eover",
    "\ud800 alone",
    "=" * 10,
    "x" * 100_000,
    "💡" * 50_000,
    "\x1b" * 5000,
    "",
]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.EBADF


def test_an_event_is_one_line_of_keys_and_values() -> None:
    assert line(READY, journal=False, now=NOON) == (
        'time=2027-01-15T08:00:00.250Z level=info deployment=glm-4.6 event=engine.ready message="serves after 41 s" '
        'seconds=41.25 pid=17 adopted=false engine="vllm 0.33.0"'
    )


@pytest.mark.parametrize(("level", "priority"), [("error", 3), ("warning", 4), ("notice", 5), ("info", 6)])
def test_the_journal_gets_a_priority_and_keeps_the_time_itself(level: Level, priority: int) -> None:
    event = Event(level=level, event="a.b", message="m")
    assert line(event, journal=True) == f"<{priority}>level={level} event=a.b message=m"


def test_json_is_an_object_a_line() -> None:
    told = json.loads(line(READY, journal=False, as_json=True, now=NOON))
    assert told == {
        "time": "2027-01-15T08:00:00.250Z",
        "level": "info",
        "deployment": "glm-4.6",
        "event": "engine.ready",
        "message": "serves after 41 s",
        "seconds": 41.25,
        "pid": 17,
        "adopted": False,
        "engine": "vllm 0.33.0",
    }


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_in_an_event_its_line_is_one_short_printable_line(text: str, as_json: bool) -> None:
    event = Event(event=text, message=text, deployment=text, figures={text: text, "level": text, "n": 1})
    told = line(event, journal=True, as_json=as_json)
    assert told.isprintable()
    assert len(told.encode()) < LINE_BYTES
    assert told.startswith("<6>")
    if as_json:
        assert json.loads(told[3:])["level"] == "info"


def test_quotes_are_escaped_and_sequences_of_a_terminal_go() -> None:
    event = Event(event="a", message='say "\x1b[31mred\x1b[0m"', figures={"a b": "c=d", "event": "own"})
    assert line(event, journal=True) == r'<6>level=info event=a message="say \"red\"" a_b="c=d" event_=own'


def test_many_figures_give_way_and_the_message_stays() -> None:
    event = Event(event="a", message="m" * 500, figures={f"f{each}": "x" * 300 for each in range(100)})
    told = line(event, journal=False, now=NOON)
    assert "m" * 500 in told
    assert "f0=" in told


def test_a_token_is_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    event = Event(event="a", message="of hf_sentinel", deployment="hf_sentinel", figures={"token": "xhf_sentinelx"})
    for as_json in (False, True):
        assert "sentinel" not in line(event, journal=False, as_json=as_json)
    long = Event(event="a", message="y" * 995 + "hf_sentinel")
    assert "hf_" not in line(long, journal=False)


def test_the_journal_is_known_by_its_stream(pipe: tuple[int, int]) -> None:
    found = os.fstat(pipe[1])
    assert goes_to_journal(pipe[1], {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not goes_to_journal(pipe[1], {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
    assert not goes_to_journal(pipe[1], {"JOURNAL_STREAM": "rubbish"})
    assert not goes_to_journal(pipe[1], {})
    assert not goes_to_journal(1 << 20, {})


def test_what_is_said_is_read(pipe: tuple[int, int]) -> None:
    Journal(pipe[1], journal=True).say("warning", "engine.failed", "out of memory", deployment="a", failures=2)
    told = os.read(pipe[0], 4096)
    assert told == b'<4>level=warning deployment=a event=engine.failed message="out of memory" failures=2\n'


def test_a_reader_that_is_gone_stops_nobody(pipe: tuple[int, int]) -> None:
    journal = Journal(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        journal.say("info", "a", "b")


def test_a_closed_stream_stops_nobody(pipe: tuple[int, int]) -> None:
    journal = Journal(pipe[1])
    os.close(pipe[1])
    journal.say("info", "a", "b")


def test_a_reader_that_does_not_read_is_not_waited_for_and_told_what_it_missed(pipe: tuple[int, int]) -> None:
    journal = Journal(pipe[1], journal=True)
    said = 0
    while said < 5000:  # a pipe is 64 KiB
        journal.say("info", "flood", "x" * 200)
        said += 1
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
    os.set_blocking(pipe[0], False)
    read = b""
    try:
        while part := os.read(pipe[0], 1 << 16):
            read += part
    except BlockingIOError:
        pass
    written = read.count(b"event=flood")
    assert written < said
    journal.say("info", "after", "it reads again")
    lost, after = os.read(pipe[0], 4096).splitlines()
    assert f'event=journal.lost message="{said - written} events'.encode() in lost
    assert b"event=after" in after


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EAGAIN, errno.EIO])
def test_a_stream_that_fails_is_told_when_it_works_again(
    pipe: tuple[int, int], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    journal = Journal(pipe[1], journal=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        journal.say("info", "a", "b")
        journal.say("info", "a", "b")
    journal.say("info", "c", "d")
    assert os.read(pipe[0], 4096).decode().splitlines() == [
        '<4>level=warning event=journal.lost message="2 events before this one could not be written" events=2',
        "<6>level=info event=c message=d",
    ]


def test_a_line_that_was_cut_does_not_run_into_the_next(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    journal = Journal(pipe[1], journal=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:10]))
        journal.say("info", "a", "b")
    journal.say("info", "c", "d")
    assert os.read(pipe[0], 4096).decode().splitlines()[0] == "<6>level=i"
