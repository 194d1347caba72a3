"""``--lock FILE``: a launch that is kept in a file, and one that a file has."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from autolaunch import api
from autolaunch.cli.asked import Asked
from autolaunch.cli.plan import planned, refuse_unasked
from autolaunch.cli.running import How
from autolaunch.cli.terminal import Terminal, clean, wrapped, write
from autolaunch.locked import Difference, Lock, differences, read_lock, write_lock
from autolaunch.locking import lock_of_launch, refuse_unwritable
from autolaunch.replaying import (
    Beside,
    checked,
    pins_in,
    refuse_contradictions,
    refuse_other_hardware,
    replanned,
    replayed,
)
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import LockError, UsageError
from selector.hardware import HardwareReport
from selector.request import Pins

if TYPE_CHECKING:
    from autolaunch.foreground import Foreground


def planned_with_lock(asked: Asked, how: How, known: Catalog, path: Path) -> tuple[Asked, How, LaunchPlan]:
    """What is to be launched, and how it was asked for with all that the lock has.

    Raises:
        LockError: it is no lock, or was changed; or none can be written there.
        UsageError: something else was asked for beside it.
        OtherHardware: it is of another machine, and nobody said to plan again.
        NoFeasiblePlan: it does not fit now.
    """
    if not os.path.lexists(path):
        if not asked.model:
            raise LockError(f"{path}: there is no such file", hint=f"autolaunch MODEL --lock {path} writes it")
        if how.replan:
            raise UsageError(f"--replan is for a lock that is there, and {path} is not")
        refuse_unwritable(path)
        return asked, how, planned(asked, known)
    lock = read_lock(path)
    if how.replan:
        refuse_unwritable(path)
        return _planned_anew(asked, how, known, lock, path)
    lock = checked(lock, known, path)
    beside = Beside(
        model=asked.model or None,
        context_tokens=asked.context_tokens,
        engine_options=how.engine_options,
        model_path=how.model_path,
        engine_path=how.engine_path,
    )
    report = api.probe() if asked.hardware is None else api.hardware_report(asked.hardware, known)
    beside = msgspec.structs.replace(beside, pins=asked.pins(report))
    refuse_contradictions(lock, path, beside, known)
    if asked.hardware is None:
        _refuse_unasked(lock, report)
    mentioned = refuse_other_hardware(lock, report, path)
    _tell((*mentioned, *(each for each in differences(lock, report, environ=os.environ) if each not in mentioned)))
    asked = _of_lock(asked, lock, pins_in(lock, known), lock.plan.limits.context_tokens)
    how = msgspec.structs.replace(how, replayed=path)
    decided = planned(asked, known, report=report if asked.hardware is None else None)
    if decided.chosen is not None:
        decided = msgspec.structs.replace(decided, chosen=replayed(lock, decided, known, path))
    return asked, how, decided


def _refuse_unasked(lock: Lock, report: HardwareReport) -> None:
    """That devices are not there is another thing than that nobody could ask for them."""
    if lock.plan.parallel.devices and not report.accelerators:
        refuse_unasked(report)


def _of_lock(asked: Asked, lock: Lock, pins: Pins, context_tokens: int | None) -> Asked:
    return msgspec.structs.replace(
        asked,
        model=lock.model,
        objective=lock.request.objective,
        context_tokens=context_tokens,
        concurrency=lock.request.concurrency,
        input_tokens=lock.request.input_tokens,
        output_tokens=lock.request.output_tokens,
        workload=None,
        gpus=None,
        locked=pins,
    )


def _planned_anew(asked: Asked, how: How, known: Catalog, lock: Lock, path: Path) -> tuple[Asked, How, LaunchPlan]:
    """The nearest that this machine allows; what the user pins beside it holds."""
    if asked.model:
        refuse_contradictions(lock, path, Beside(model=asked.model, engine_options=lock.engine_options), known)
    report = api.probe() if asked.hardware is None else api.hardware_report(asked.hardware, known)
    theirs = asked.pins(report)
    own = {name: value for name in Pins.__struct_fields__ if (value := getattr(theirs, name)) is not None}
    tried: list[Asked] = []

    def plan(pins: Pins, context_tokens: int | None) -> LaunchPlan:
        given = {"gpus": None, "gpu_count": None} if {"gpus", "gpu_count"} & set(own) else {}
        pins = msgspec.structs.replace(pins, **{**given, **own})
        tried.append(_of_lock(asked, lock, pins, asked.context_tokens or context_tokens))
        here = report if asked.hardware is None else None
        return planned(tried[-1], known, report=here)

    decided, gone = replanned(lock, known, plan)
    _tell(tuple(differences(lock, report)))
    if gone and decided.chosen is not None:
        names = ", ".join(name.replace("_", " ") for name in gone if name not in own)
        terminal = Terminal.of(sys.stderr)
        write(sys.stderr, wrapped(f"planned again without the lock's {names}", terminal, first="  "), terminal)
    return tried[-1], how, decided


def _tell(found: tuple[Difference, ...]) -> None:
    """What differs, a line each, on stderr."""
    terminal = Terminal.of(sys.stderr)
    for each in found:
        write(sys.stderr, click.style(clean(f"  {each}"), fg="yellow"), terminal)


def keep_lock(kept_up: Foreground, decided: LaunchPlan, known: Catalog, path: Path) -> None:
    """Writes the lock of what serves now; where that cannot be, says so, and it goes on serving."""
    terminal = Terminal.of(sys.stderr)
    try:
        write_lock(path, lock_of_launch(kept_up, decided, known, api.home()))
    except LockError as error:
        write(
            sys.stderr,
            click.style(clean(f"  it serves, and is kept in no lock: {error.message}"), fg="yellow"),
            terminal,
        )
    else:
        write(sys.stderr, clean(f"  kept in {path}: autolaunch --lock {path} launches the same again"), terminal)
