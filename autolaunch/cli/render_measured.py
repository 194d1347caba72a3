"""What was foretold beside what was measured, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autolaunch.cli.terminal import Terminal, count, duration, gib, rate, table


class Compared(Protocol):
    """A :class:`autolaunch.comparison.Comparison`, or the document of one."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def predicted(self) -> float: ...
    @property
    def measured(self) -> float: ...


def render_compared(figures: Sequence[Compared], terminal: Terminal) -> str:
    """A row a figure: as predicted, as measured, and how many times the prediction that is."""
    rows: list[tuple[str, ...]] = [
        (each.name, _figure(each, each.predicted), _figure(each, each.measured), _share(each)) for each in figures
    ]
    return table(("", "predicted", "measured", ""), rows, right=(1, 2, 3), flex=0, width=terminal.width_columns)


def _figure(one: Compared, value: float) -> str:
    if one.unit == "bytes":
        return gib(int(value))
    if one.unit == "seconds":
        return duration(value)
    return f"{count(int(value))} tokens" if one.unit == "tokens" else f"{rate(value)} tok/s"


def _share(one: Compared) -> str:
    return f"{one.measured / one.predicted:.2f}×" if one.predicted else ""
