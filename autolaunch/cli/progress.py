"""How far a launch or an installation is, on stderr: a live line on a terminal, one line a stage otherwise."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

import click

from autolaunch.cli.terminal import Terminal, clean, duration, shortened, write

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from autolaunch.hubs.speed import Transfer

#: A stage as a person reads it. Stages that are not here say nothing.
_TITLES = {
    "weights": "weights",
    "environment": "engine",
    "starting": "start",
    "loading": "load",
    "ready": "ready",
    "stopping": "stop",
    # of a benchmark
    "asking": "ask",
    "alone": "alone",
    "together": "together",
    # of an installation alone; in a launch they are messages of its environment
    "waiting": "wait",
    "resolving": "resolve",
    "downloading": "fetch",
    "installing": "install",
    "compiling": "compile",
    "done": "done",
}
#: A stage that only says that the one before it came to its end.
_ENDS = frozenset({"ready", "done"})
#: What is left standing of a stage whose last message was only its latest line.
_DONE = {"loading": "a token came back"}
_FAILED = {"loading": "no token came back"}
_LABEL = 9
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_A_SECOND = 8
#: Where there is no terminal, a download says so often how far it is.
_SAID_SECONDS = 60.0
_BAR_COLUMNS, _BAR_FROM_COLUMNS = 10, 78


class Happened(Protocol):
    """``fraction`` is 0 to 1 where it is known."""

    @property
    def stage(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def fraction(self) -> float | None: ...


class Progress:
    """Takes what happens in a launch or an installation. A stage that is over leaves one line with its time behind."""

    def __init__(self, stream: TextIO, terminal: Terminal) -> None:
        self._stream = stream
        self._terminal = terminal
        self._stage: str | None = None
        self._message = ""
        self._figures: str | None = None
        self._fraction: float | None = None
        self._said = time.monotonic()
        self._began = time.monotonic()
        self._live: Live | None = None
        self._interactive = terminal.color and stream.isatty()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def event(self, event: Happened) -> None:
        """Show what happened. Called from the thread that works."""
        if event.stage not in _TITLES or self._closed:
            return
        if event.stage != self._stage:
            # A launch that is ready closes its stage: what is stopped in the midst of one has failed in it.
            self._end_stage(failed=event.stage == "stopping")
            self._stage, self._began, self._fraction = event.stage, time.monotonic(), None
            self._said = self._began
            if event.stage in _ENDS:
                self._stage = None
                return
            self._begin_stage()
        self._message = clean(event.message).replace("\n", " ")
        self._fraction = event.fraction
        transfer = getattr(event, "transfer", None)  # of an installation there is none
        self._figures = None if transfer is None else _figures(transfer)
        now = time.monotonic()
        if transfer is not None and not self._interactive and now - self._said >= _SAID_SECONDS:
            self._said = now
            write(self._stream, f"  … {_TITLES[event.stage]:<{_LABEL}}{self._message}", self._terminal)

    def close(self, *, finished: bool = True) -> None:
        """Leave the terminal as it was. ``finished`` is whether the last stage came to its end."""
        if self._closed:
            return
        if finished:
            self._end_stage()
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._closed = True

    def _begin_stage(self) -> None:
        if not self._interactive:
            return
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False)
            self._live = Live(
                console=console, refresh_per_second=_FRAMES_A_SECOND, transient=True, get_renderable=self._line
            )
            self._live.start()

    def _end_stage(self, *, failed: bool = False) -> None:
        if self._stage is None:
            return
        title, seconds = _TITLES[self._stage], time.monotonic() - self._began
        room = self._terminal.width_columns - _LABEL - 4 - 12
        message = (_FAILED if failed else _DONE).get(self._stage, self._message)
        line = f"  {'✗' if failed else '✓'} {title:<{_LABEL}}{shortened(message, room)}"
        text = f"{line}  {click.style(duration(seconds), dim=True)}"
        self._stage = None
        if self._live is not None:
            from rich.text import Text

            if not self._terminal.unicode:
                text = text.replace("✓", "v").replace("✗", "x")
            self._live.console.print(Text.from_ansi(text))
        else:
            write(self._stream, text, self._terminal)

    def _line(self) -> Text:
        """What the live line shows now: it is asked some times a second, also while nothing happens."""
        from rich.text import Text

        if self._stage is None:
            return Text("")
        elapsed = time.monotonic() - self._began
        frame = _FRAMES[int(elapsed * _FRAMES_A_SECOND) % len(_FRAMES)] if self._terminal.unicode else "-"
        known = "" if self._fraction is None else f" {_bar(self._fraction, self._terminal)}{self._fraction:4.0%}"
        room = self._terminal.width_columns - _LABEL - 4 - 12 - len(known)
        said = shortened(self._figures or self._message, room)
        text = f"  {frame} {_TITLES[self._stage]:<{_LABEL}}{said}{known}  {duration(elapsed)}"
        return Text(text, no_wrap=True, overflow="crop")


def _figures(transfer: Transfer) -> str:
    from autolaunch.hubs.speed import told  # whoever fetches has it already

    return told(transfer)


def _bar(fraction: float, terminal: Terminal) -> str:
    """Ten columns, where the line has room for them."""
    if terminal.width_columns < _BAR_FROM_COLUMNS:
        return ""
    full = round(max(0.0, min(1.0, fraction)) * _BAR_COLUMNS)
    on, off = ("━", "╌") if terminal.unicode else ("#", ".")
    return f"{on * full}{off * (_BAR_COLUMNS - full)} "
