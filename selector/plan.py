"""From a report and a request to the LaunchPlan that a reader gets."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from selector import runner_up
from selector.asked import PlanRequest
from selector.contract import Advice, Candidate, LaunchPlan, Rejection, Request
from selector.facts import ModelFacts
from selector.hardware import HardwareReport
from selector.request import Pins
from selector.search import Decision, Facts, decide

ALTERNATIVES_SHOWN = 5


def nearest_rejections(rejected: tuple[Rejection, ...]) -> tuple[Rejection, ...]:
    """For each checkpoint and engine the rejection that came nearest to fitting, and the nearest that names a node.

    Of several nodes the layout that lacks least is often one inside a node, and says nothing of what another lacks.
    """

    def shortage(each: Rejection) -> float:
        if each.code == "pin.max_sequences":
            return 1.0  # it fits; what was asked of it does not agree
        needed, usable = each.numbers.get("needed_bytes"), each.numbers.get("usable_bytes")
        if needed is None or not usable:
            return devices_short(each)
        return needed / usable

    nearest: dict[tuple[str, str, str], Rejection] = {}
    named: dict[tuple[str, str, str], Rejection] = {}
    for each in rejected:
        key = (each.repo, each.quantization, each.engine)
        if key not in nearest or shortage(each) < shortage(nearest[key]):
            nearest[key] = each
        if names_a_node(each) and (key not in named or shortage(each) < shortage(named[key])):
            named[key] = each
    return (*nearest.values(), *(each for key, each in named.items() if each is not nearest[key]))


def names_a_node(rejection: Rejection) -> bool:
    """Whether it says which of several nodes has too little."""
    return "node" in rejection.numbers


def devices_short(rejection: Rejection) -> float:
    """How many times the devices that are needed are those that there is room on; more than memory is ever short of.

    Infinite where that is not the matter.
    """
    numbers = rejection.numbers
    needed, there = numbers.get("needed_groups"), numbers.get("groups")
    if needed is None or there is None:
        needed, there = numbers.get("needed_devices"), numbers.get("devices")
    return float("inf") if needed is None or there is None else 1e6 * needed / max(0.5, there)


def varied(ranked: tuple[Candidate, ...], most: int) -> tuple[Candidate, ...]:
    """The best candidate of each checkpoint and engine, in order, ``most`` of them."""
    best: dict[tuple[str, str, str], Candidate] = {}
    for candidate in ranked:
        key = (candidate.checkpoint.repo, candidate.checkpoint.quantization, candidate.engine.name)
        best.setdefault(key, candidate)
    return tuple(best.values())[:most]


def shown_pins(pins: Pins) -> dict[str, str | int | float | bool | tuple[int, ...]]:
    """Only what was pinned, by name."""
    return {name: value for name in Pins.__struct_fields__ if (value := getattr(pins, name)) is not None}


def shown_request(request: PlanRequest) -> Request:
    return Request(
        objective=request.objective,
        context_tokens=request.context_tokens,
        concurrency=request.concurrency,
        input_tokens=request.workload.input_tokens,
        output_tokens=request.workload.output_tokens,
        pinned=shown_pins(request.pins),
    )


def with_what_it_lacks(
    others: tuple[Candidate, ...], ranked: tuple[Candidate, ...], model: ModelFacts, request: PlanRequest
) -> tuple[Candidate, ...]:
    """The others, the first of them with a note on what would put it in front (:mod:`selector.runner_up`)."""
    if not others:
        return others
    quality = {
        (repo, each.quantization): each.quality for each in model.checkpoints for repo in (each.repo, each.modelscope)
    }
    scored = tuple((each, quality[each.checkpoint.repo, each.checkpoint.quantization]) for each in ranked)
    note = runner_up.note(runner_up.changes(scored, others[0], request, model.context_tokens))
    if note is None:
        return others
    return (msgspec.structs.replace(others[0], notes=(*others[0].notes, note)), *others[1:])


def launch_plan(
    model: ModelFacts,
    report: HardwareReport,
    request: PlanRequest,
    facts: Facts,
    *,
    advise: Callable[[Decision], tuple[Advice, ...]],
    keep_all: bool = False,
) -> LaunchPlan:
    """The plan for a model on a machine.

    ``advise`` is called with the decision for what would make it fit, or fit better. ``keep_all`` keeps every
    candidate and every refusal; otherwise the best of each checkpoint and engine, and the nearest refusals.
    """
    decision = decide(model, report, request, facts)
    chosen = decision.ranked[0] if decision.ranked else None
    others = decision.ranked[1:]
    if not keep_all and chosen is not None:
        others = tuple(each for each in varied(decision.ranked, ALTERNATIVES_SHOWN + 1) if each is not chosen)
        others = others[:ALTERNATIVES_SHOWN]
    others = with_what_it_lacks(others, decision.ranked, model, request)
    return LaunchPlan(
        model=model.id,
        feasible=chosen is not None,
        request=shown_request(request),
        hardware=report,
        chosen=chosen,
        alternatives=others,
        rejected=decision.rejected if keep_all else nearest_rejections(decision.rejected),
        advice=advise(decision),
    )
