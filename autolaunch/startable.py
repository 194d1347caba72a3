"""Plans that no launch starts, refused before anything is fetched for them."""

from __future__ import annotations

from engines.base import first_replica, planned_package
from selector.contract import Candidate
from selector.engine_facts import EngineFacts
from selector.errors import NoPackage, Unsupported
from selector.hardware import HardwareReport


def refuse_what_is_not_started(candidate: Candidate, nodes: str | None) -> None:
    argv = " ".join(candidate.command.argv) if candidate.command is not None else None
    hint = f"the command it would run: {argv}" if argv else None
    if candidate.parallel.nodes > 1 and nodes is None:
        raise Unsupported("several machines are a Ray cluster's nodes: --nodes auto takes them", hint=hint)
    if candidate.parallel.data > 1:
        # Each replica is an engine of its own (autolaunch.daemon.replicas.one_replica).
        raise Unsupported(
            f"a launch starts one replica, and the plan has {candidate.parallel.data}",
            hint="--data-parallel 1 plans for one" + (f"; {hint}" if hint else ""),
        )


def refuse_without_environment(candidate: Candidate, facts: EngineFacts, report: HardwareReport) -> None:
    """An environment made for other devices would leave the planned ones alone, and serve from the processor."""
    devices = first_replica(report, candidate)
    kind = devices[0].vendor if devices else "cpu"
    _, package = planned_package(facts, candidate.engine)
    if kind not in package.devices:
        raise NoPackage(
            f"no environment of {facts.name} for {kind} devices can be made: there is no published package of it",
            hint=f"install {facts.title} yourself and give its place with --engine-path, or choose another --engine",
        )
