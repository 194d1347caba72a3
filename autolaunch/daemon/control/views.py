"""The documents of the contract, made from what the supervisors have now."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from autolaunch import __version__
from autolaunch.daemon.control.contract import (
    BriefDocument,
    ChosenDocument,
    Compared,
    DeploymentDocument,
    EngineDocument,
    FaultDocument,
    HostDocument,
    HostModelDocument,
    LoadDocument,
    Phase,
    ReplicaDocument,
    StatusDocument,
)
from autolaunch.daemon.output import printable
from autolaunch.daemon.rows import merged
from autolaunch.daemon.shown import shown_phase
from autolaunch.given import without_secrets
from autolaunch.measured import comparisons, of_start
from selector.contract import Candidate, LaunchPlan

if TYPE_CHECKING:
    from autolaunch.daemon.control.steered import Steered
    from autolaunch.daemon.deployment import Fault
    from autolaunch.daemon.gateway.other_hosts import OtherHost
    from autolaunch.daemon.hands import Run
    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.server import LaunchEvent

#: The furthest first: a deployment is what the best of its replicas is.
_FURTHEST: tuple[Phase, ...] = (
    *("ready", "degraded", "loading", "preparing", "planned", "draining"),
    *("backing off", "asleep", "failed", "stopped"),
)


def deployments(steered: Steered) -> tuple[DeploymentDocument, ...]:
    """All of them, in the order of the configuration."""
    names = dict.fromkeys(one.state.deployment.name for one in steered.supervisors.values())
    return tuple(deployment(steered, name) for name in names)


def units(steered: Steered, name: str) -> dict[str, Supervisor]:
    """The supervisors of a deployment by unit, or the one of unit ``name``; none where there is no such thing."""
    found = {unit: one for unit, one in steered.supervisors.items() if one.state.deployment.name == name}
    return found or {unit: one for unit, one in steered.supervisors.items() if unit == name}


def deployment(steered: Steered, name: str) -> DeploymentDocument:
    """One that there is; of the name of a unit, with that replica alone."""
    found = units(steered, name)
    of = next(iter(found.values())).state.deployment
    replicas = tuple(replica(unit, one, steered.requests(unit), steered.doing(unit)) for unit, one in found.items())
    first = min(replicas, key=lambda each: _FURTHEST.index(each.phase))
    return DeploymentDocument(
        name=of.name,
        model=of.model,
        added=steered.added(of.name),
        phase=first.phase,
        since=first.since,
        url=steered.gateway_url,
        replicas=replicas,
    )


def status(steered: Steered) -> StatusDocument:
    path = steered.configuration_path
    return StatusDocument(
        version=__version__,
        kind=steered.kind,
        pid=os.getpid(),
        started=steered.started,
        configuration=None if path is None else str(path),
        wrong=None if steered.wrong is None else shown(steered.wrong),
        url=steered.gateway_url,
        deployments=tuple(BriefDocument(name=each.name, phase=each.phase) for each in deployments(steered)),
        hosts=tuple(host(each) for each in steered.hosts),
    )


def host(one: OtherHost) -> HostDocument:
    """Another host. Its key is in nothing of it."""
    return HostDocument(
        name=one.name,
        url=one.access.url,
        state=one.state,
        since=moment(one.since),
        models=tuple(HostModelDocument(name=each.name, state=each.standing().condition) for each in one.members),
        requests=one.requests,
        failures=one.failures,
        fault=None if one.error is None else shown(one.error, one.access.api_key),
    )


def plan(one: Supervisor) -> LaunchPlan | None:
    """The ranking that the engine was chosen from; what is ``chosen`` in it is what runs, after the ladder's steps."""
    decided = one.decided
    return None if decided is None else msgspec.structs.replace(decided.plan, chosen=decided.candidate)


def replica(unit: str, one: Supervisor, requests: int | None, doing: LaunchEvent | None) -> ReplicaDocument:
    """One replica. What an engine said has no key and no token in it."""
    state, run = one.state, one.run
    busy = state.phase in ("loading", "ready", "degraded", "draining") and run.server is not None
    decided = run.decided
    return ReplicaDocument(
        unit=unit,
        phase=shown_phase(state),
        since=moment(state.since),
        wanted=state.wanted,
        run=state.run,
        failures=len(state.failures),
        next_try_at=moment(state.until) if state.phase == "backing off" and state.until is not None else None,
        fault=None if state.fault is None else _fault(state.fault, run, one.ran),
        chosen=None
        if decided is None
        else ChosenDocument(
            checkpoint=decided.candidate.checkpoint,
            engine=decided.candidate.engine,
            parallel=decided.candidate.parallel,
            limits=decided.candidate.limits,
            memory=decided.candidate.memory,
            speed=decided.candidate.speed,
        ),
        engine=_engine(run) if busy else None,
        load=_load(run, doing) if state.phase in ("preparing", "loading") else None,
        changes=state.changes.steps,
        measured=_measured(run) if busy else {},
        measurements=_compared(one, decided.candidate) if busy and decided is not None else (),
        requests=requests,
        log_path=next((str(each.server.log_path) for each in (run, one.ran) if each.server is not None), None),
        folder=None if run.prepared is None else str(run.prepared.folder),
    )


def moment(monotonic_seconds: float) -> datetime:
    """The time of day of a moment of the monotonic clock, to a tenth of a second: the two clocks drift."""
    ago = time.monotonic() - monotonic_seconds
    return datetime.fromtimestamp(round(time.time() - ago, 1), UTC)


def shown(text: str, *keys: str | None) -> str:
    """``text`` of others without control characters, tokens, and the engines' ``keys``."""
    for key in keys:
        if key:
            text = text.replace(key, "<key>")
    return printable(without_secrets(text))


def keys_of(*runs: Run) -> tuple[str | None, ...]:
    return tuple(run.server.api_key for run in runs if run.server is not None)


def _fault(fault: Fault, *runs: Run) -> FaultDocument:
    keys = keys_of(*runs)
    return FaultDocument(
        reason=fault.reason,
        permanent=fault.permanent,
        message=shown(fault.message, *keys),
        hint=None if fault.hint is None else shown(fault.hint, *keys),
        serving=fault.serving,
        lines=tuple(shown(line, *keys) for line in fault.lines),
    )


def _engine(run: Run) -> EngineDocument | None:
    server = run.server
    if server is None:
        return None
    return EngineDocument(pid=server.pid, address=f"{server.address.host}:{server.address.port}")


def _load(run: Run, doing: LaunchEvent | None) -> LoadDocument | None:
    progress = None if run.server is None else run.server.progress
    if progress is not None:
        return LoadDocument(
            stage=progress.stage,
            message=progress.message,
            fraction=progress.fraction,
            done=progress.done,
            total=progress.total,
        )
    if doing is None:
        return None
    return LoadDocument(stage=doing.stage, message=shown(doing.message, *keys_of(run)), fraction=doing.fraction)


def _compared(one: Supervisor, candidate: Candidate) -> tuple[Compared, ...]:
    """What was foretold beside what its start and its requests have shown."""
    run, served = one.run, one.traffic.pace.measured()
    if run.server is None:
        return ()
    seen = run.started or of_start(run.server.figures, load_seconds=run.load_seconds)
    if served is not None:
        seen = merged(served, seen)
    return tuple(
        Compared(name=each.name, unit=each.unit, predicted=each.predicted, measured=each.measured)
        for each in comparisons(candidate, seen)
    )


def _measured(run: Run) -> dict[str, int | float]:
    if run.server is None:
        return {}
    told = msgspec.structs.asdict(run.server.figures)
    return {name: value for name, value in told.items() if value is not None}
