"""What would make a model fit, or fit better: the smallest changes first, then the smallest machines.

Every advice is a plan that was really made: a machine is only named when :func:`selector.search.decide` finds
the model feasible on it, a context only when it fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from selector.asked import PlanRequest
from selector.contract import Advice
from selector.facts import ModelFacts
from selector.hardware import HardwareReport
from selector.search import Decision, Facts

if TYPE_CHECKING:
    from selector.case import Shelf


def advise(
    model: ModelFacts,
    report: HardwareReport,
    request: PlanRequest,
    facts: Facts,
    decision: Decision,
    shelf: Callable[[], Shelf],
    machine: str | None = None,
    *,
    thorough: bool = False,
) -> tuple[Advice, ...]:
    """Advice for a decision.

    Args:
        shelf: asked for the machines that may be advised, when it comes to that.
        machine: the ``--hardware`` that was asked about, ``None`` for this machine: commands repeat it.
        thorough: more than a plan shows by itself: what would do better, and the smallest machines in any case.
    """
    if decision.ranked and not thorough and _nothing_lacks(model, request, decision):
        return ()  # what advice needs beyond this is not even imported: most plans end here
    from selector.better import all_at_once, better_weights, longer_context, speculation
    from selector.case import Case
    from selector.fitting import (
        fewer_pins,
        free_memory,
        lower_quality,
        more_main_memory,
        other_weights,
        smaller_request,
        wired_limit,
    )
    from selector.smallest import FEW, SEVERAL, same_devices, smallest_machines

    case = Case(model, report, request, facts, machine)
    if decision.ranked:
        changes = (*longer_context(case, decision, thorough=thorough), *all_at_once(case, decision, shelf()))
        if not thorough:
            return changes
        return (
            *changes,
            *speculation(case, decision),
            *better_weights(case, decision),
            *smallest_machines(case, shelf(), SEVERAL),
        )
    unpinned = tuple(fewer_pins(case))
    if unpinned and not thorough:
        return unpinned  # the machine would do: what stands in the way is what was asked of it
    changes = (
        *unpinned,
        *free_memory(case),
        *wired_limit(case),
        *smaller_request(case),
        *other_weights(case),
        *lower_quality(case, decision),
        *more_main_memory(case, decision),
    )
    grown = tuple(same_devices(case, shelf()))
    said = {each.command for each in grown}
    machines = smallest_machines(case, shelf(), SEVERAL if thorough else FEW)
    return (*changes, *grown, *(each for each in machines if each.command not in said))


def _nothing_lacks(model: ModelFacts, request: PlanRequest, decision: Decision) -> bool:
    """Whether the chosen plan has the whole context, and room for all requests that come at once."""
    chosen = decision.ranked[0]
    wanted = request.context_tokens or model.context_tokens
    return chosen.limits.context_tokens >= wanted and chosen.speed.concurrency >= (request.concurrency or 0)
