"""The machine's phases as people are shown them, wherever they are: tables, the status line, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autolaunch.daemon.control.contract import Phase

if TYPE_CHECKING:
    from autolaunch.daemon.machine import State


def shown_phase(state: State) -> Phase:
    """The phase, and of ``planned`` what people ask of it: whether it sleeps, or was stopped."""
    if state.phase == "planned" and not state.planning:
        if state.wanted == "stopped":
            return "stopped"
        if state.asleep:
            return "asleep"
    if state.phase == "backing off" and state.wanted == "stopped":
        return "stopped"
    return state.phase
