from __future__ import annotations

import io
import re
import time

import click
import pytest

from autolaunch.cli.progress import Progress
from autolaunch.cli.terminal import Terminal
from autolaunch.hubs.speed import Transfer
from autolaunch.server import LaunchEvent


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


LIVE = Terminal(width_columns=80, color=True)


def stages(progress: Progress) -> None:
    progress.event(LaunchEvent(stage="port", message="port 8000 is free"))
    progress.event(LaunchEvent(stage="weights", message="fetching", fraction=0.5))
    progress.event(LaunchEvent(stage="weights", message="weights are here", fraction=1.0))
    progress.event(LaunchEvent(stage="environment", message="compiling 38 packages"))


def test_a_live_display_leaves_the_finished_stages_and_the_cursor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Tty()
    with Progress(stream, LIVE) as progress:
        stages(progress)
    text = stream.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is shown again"
    plain = re.sub(r"\x1b\[\?25[hl]", "", click.unstyle(text))
    assert "✓ weights  weights are here" in plain
    assert "✓ engine   compiling 38 packages" in plain
    assert "port 8000" not in plain


def test_a_stage_that_failed_is_not_ticked_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream, Terminal()) as progress:
        stages(progress)
        raise KeyboardInterrupt
    assert "✓ weights" in stream.getvalue()
    assert "engine" not in stream.getvalue()


def test_an_engines_line_cannot_drive_the_terminal_or_break_the_display() -> None:
    stream = io.StringIO()
    with Progress(stream, Terminal()) as progress:
        progress.event(LaunchEvent(stage="environment", message="evil\x1b[2J\nline " + "x" * 500))
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1
    assert len(stream.getvalue()) <= 81


def test_a_load_that_was_stopped_is_not_ticked_off() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream, Terminal()) as progress:
        progress.event(LaunchEvent(stage="starting", message="starting mlx"))
        progress.event(LaunchEvent(stage="loading", message="POST /v1/chat/completions 404"))
        progress.event(LaunchEvent(stage="stopping", message="stopping mlx"))
        raise KeyboardInterrupt
    assert "✓ start" in stream.getvalue()
    assert "✗ load     no token came back" in stream.getvalue()
    assert "a token" not in stream.getvalue()


def test_a_load_that_is_ready_is_ticked_off() -> None:
    stream = io.StringIO()
    with Progress(stream, Terminal()) as progress:
        progress.event(LaunchEvent(stage="loading", message="loading"))
        progress.event(LaunchEvent(stage="ready", message="it answers"))
        progress.event(LaunchEvent(stage="stopping", message="stopping"))
    assert "✓ load     a token came back" in stream.getvalue()
    assert "✗" not in stream.getvalue()


def test_the_load_shows_what_is_being_done_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with Progress(Tty(), LIVE) as progress:
        progress.event(LaunchEvent(stage="loading", message="loading the weights, 10 of 22", fraction=10 / 22))
        shown = progress._line().plain
        assert "load" in shown
        assert "loading the weights, 10 of 22" in shown
        assert " 45%" in shown
        progress.event(LaunchEvent(stage="loading", message="compiling"))
        assert "%" not in progress._line().plain


def test_a_download_is_a_bar_with_its_rate_and_its_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Tty()
    arriving = Transfer(done_bytes=5 * 10**9, total_bytes=10**10, bytes_per_second=1e8, left_seconds=50.0)
    with Progress(stream, LIVE) as progress:
        progress.event(LaunchEvent(stage="weights", message="fetching", fraction=0.5, transfer=arriving))
        shown = progress._line().plain
    assert "5.0 of 10.0 GB, 100.0 MB/s, 50 s left" in shown
    assert " 50%" in shown
    assert len(shown) <= 80


def test_a_download_says_a_line_a_minute_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    with Progress(stream, Terminal()) as progress:
        for second in range(0, 181, 5):
            now = 1000.0 + second
            arriving = Transfer(done_bytes=second * 10**8, total_bytes=10**11)
            progress.event(LaunchEvent(stage="weights", message=f"fetching, {second} s", transfer=arriving))
        said = stream.getvalue().splitlines()
    assert [line.rpartition(", ")[2] for line in said] == ["60 s", "120 s", "180 s"]
