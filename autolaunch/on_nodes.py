"""What a launch over the nodes of a cluster starts, and what a plan for them says of it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from selector.case import figures
from selector.contract import Advice, Candidate, LaunchPlan, Note
from selector.request import Pins

#: By so much more at once replicas on their own hosts are worth a word.
_WORTH = 1.1


def started_on_nodes(pins: Pins) -> Pins:
    """The pins of what is started over nodes: one engine, and of those that are, vLLM. What is pinned stays."""
    return msgspec.structs.replace(pins, engine=pins.engine or "vllm", data_parallel=pins.data_parallel or 1)


def told_of_nodes(decided: LaunchPlan, pins: Pins, replan: Callable[[Pins], LaunchPlan]) -> LaunchPlan:
    """The plan, saying where a launch would not start it, and where an engine on each host would serve more, or at all.

    Args:
        decided: made with :func:`started_on_nodes` of ``pins``.
        pins: the user's own.
        replan: the plan for the same nodes with other pins.
    """
    chosen = decided.chosen
    if chosen is None:
        if pins.engine is not None or pins.engine_version is not None:
            return decided
        found = replan(msgspec.structs.replace(pins, data_parallel=1)).chosen
        if found is None or found.parallel.nodes > 1:
            return decided
        weights = f"{found.checkpoint.repo} ({found.checkpoint.quantization})"
        message = f"{weights} with {found.engine.name} fits on one host: run autolaunch there, without --nodes"
        advice = Advice(kind="engine", message=message, numbers=figures(found))
        return msgspec.structs.replace(decided, advice=(advice, *decided.advice))
    if chosen.engine.name != "vllm" or chosen.parallel.data > 1:
        note = Note(
            severity="info",
            code="nodes.not_started",
            message="this is a plan on paper: a launch over the nodes of a cluster starts one replica, with vLLM",
        )
    else:
        engine = chosen.engine.name if pins.engine_version is not None else pins.engine  # a version is of an engine
        free = msgspec.structs.replace(pins, engine=engine)
        found = None if pins.data_parallel is not None else replan(free).chosen
        if found is None or not _serves_more(
            found, chosen, {each.index: each.node for each in decided.hardware.accelerators}
        ):
            return decided
        note = Note(severity="performance", code="nodes.replicas", message=_replicas(found, chosen))
    return msgspec.structs.replace(decided, chosen=msgspec.structs.replace(chosen, notes=(*chosen.notes, note)))


def _serves_more(found: Candidate, chosen: Candidate, node: dict[int, int]) -> bool:
    """Whether ``found`` are replicas of the same weights, each inside one of several hosts, that serve more at once."""
    mine, its = chosen.speed.throughput_tokens_per_second, found.speed.throughput_tokens_per_second
    weights = [(each.checkpoint.repo, each.checkpoint.quantization) for each in (found, chosen)]
    apart = found.parallel.nodes == 1 and len({node[index] for index in found.parallel.devices}) > 1
    return apart and weights[0] == weights[1] and mine is not None and its is not None and its > _WORTH * mine


def _replicas(found: Candidate, chosen: Candidate) -> str:
    mine, its = chosen.speed.throughput_tokens_per_second or 0, found.speed.throughput_tokens_per_second or 0
    return (
        f"{found.parallel.data} replicas with {found.engine.name}, each inside a host, would serve about {its:,.0f} "
        f"tokens/s together, this one {mine:,.0f}: for that, run autolaunch on each host without --nodes, and name the "
        "hosts to one gateway (gateway.hosts)"
    )
