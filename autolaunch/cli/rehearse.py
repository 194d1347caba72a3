"""``autolaunch MODEL --rehearse``: the plan proven on this machine without its weights, and the report of it."""

from __future__ import annotations

import sys
from typing import Literal

import click

from autolaunch.cli import signals
from autolaunch.cli.render_measured import render_compared
from autolaunch.cli.running import How, announce
from autolaunch.cli.terminal import Terminal, clean, duration, heading, wrapped, write
from autolaunch.rehearsing import Rehearsal, rehearse
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.errors import EngineError

_MARKS = {True: "✓", False: "✗", None: "–"}
_NAME = 11


def run_rehearsal(decided: LaunchPlan, chosen: Candidate, known: Catalog, how: How, *, as_json: bool) -> None:
    """Rehearse, show the report, leave nothing running.

    Raises:
        AutolaunchError: what failed before the engine was started.
        click.exceptions.Exit: the rehearsal failed (5).
    """
    from autolaunch import api
    from autolaunch.cli.progress import Progress
    from autolaunch.launching import LaunchOptions

    terminal = Terminal.of(sys.stderr)
    mode: Literal["miniature", "dummy"] = how.rehearse or "miniature"
    announce(decided, chosen, terminal)
    options = LaunchOptions(
        home=api.home(),
        host=how.host,
        port=how.port,
        offline=how.offline,
        engine_path=how.engine_path,
        extra=how.engine_options,
    )
    with Progress(sys.stderr, terminal) as progress:
        result = rehearse(
            decided,
            catalog=known,
            options=options,
            mode=mode,
            candidate=chosen,
            on_event=progress.event,
            uninterrupted=signals.deferred,
        )
    if as_json:
        write(sys.stdout, result.to_json())
    else:
        out = Terminal.of(sys.stdout)
        write(sys.stdout, render_rehearsal(result, out), out)
    if not result.ok:
        raise click.exceptions.Exit(EngineError.exit_code)


def render_rehearsal(result: Rehearsal, terminal: Terminal) -> str:
    """The report as a person reads it."""
    plan, ran = result.plan, result.rehearsed
    engine = f"{plan.engine.name} {ran.engine.version}"
    checkpoint = f"{plan.checkpoint.repo} ({plan.checkpoint.quantization})"
    if result.mode == "dummy":
        what = f"The shapes are those of {checkpoint}, its weights made up by the engine."
    elif result.stands_in:
        what = (
            f"In the place of {checkpoint} ran a miniature of its architecture and quantization, with random weights."
        )
    else:
        what = f"{checkpoint} is a miniature: its weights are random."
    parts = [
        heading(f"{'Proven' if result.ok else 'Not proven'}: {result.model} as planned, {engine}"),
        wrapped(what, terminal, first="  "),
        *(wrapped(f"But: {each}.", terminal, first="  ") for each in _reservations(result)),
        "",
    ]
    for step in result.steps:
        took = f"  {duration(step.seconds)}" if step.seconds else ""
        parts.append(
            wrapped(f"{_MARKS[step.ok]} {step.name:<{_NAME}}{clean(step.message)}{took}", terminal, first="  ")
        )
    if result.figures:
        parts += ["", render_compared(result.figures, terminal)]
        if result.mode == "miniature":
            told = "Both are of the miniature: they show how well memory is foretold, not how fast the real model is."
            parts.append(wrapped(told, terminal, first="  "))
    if result.failure is not None:
        parts += ["", wrapped(f"{result.failure.code}: {clean(result.failure.message)}", terminal, first="  ")]
        if result.failure.hint:
            parts.append(wrapped(clean(result.failure.hint), terminal, first="  "))
    if not result.ok and result.log_path:
        parts.append(f"  its output is in {result.log_path}")
    return "\n".join(parts)


def _reservations(result: Rehearsal) -> tuple[str, ...]:
    """What of the plan was not tried."""
    found = []
    if not result.here:
        found.append("the plan is of another machine, and this one stood in for it")
    if result.plan.parallel.data > 1:
        found.append(f"one replica of {result.plan.parallel.data} ran")
    if result.differs:
        found.append(f"{', '.join(result.differs)} had the miniature's own values")
    return tuple(found)
