"""What a deployment does next: a pure function of its state, what happened, and the time.

    planned ──▶ preparing ──▶ loading ──▶ ready ⇄ degraded
       ▲            │            │          │        │
       │            └────────────┴────┬─────┴────────┘
       │                              ▼
       ├───── backing off ◀────── draining ─────▶ failed (latched)
       └──────────────────────────────┘

``step`` gives the next state and what has to be done for it (:mod:`autolaunch.daemon.happenings`). Whoever carries that
out is the supervisor (:mod:`autolaunch.daemon.supervisor`); nobody else has a state. Times are seconds of a monotonic
clock.

* planned: nothing runs. A plan is under way, or nobody wants an engine (stopped, or asleep for want of requests).
* preparing: weights and environment; no engine process.
* loading: the engine's processes are there; no token has come back yet.
* ready, degraded: it serves; degraded when it last left a probe unanswered.
* draining: everything is being ended, device memory waited for; ``then`` says what follows.
* backing off: nothing runs until ``until``.
* failed: nothing runs until somebody asks for another try; kept over restarts of the daemon.
"""

from __future__ import annotations

import zlib
from typing import Literal

from msgspec.structs import replace

from autolaunch.daemon.deployment import Changes, Deployment, Fault, KeptDeployment
from autolaunch.daemon.happenings import (
    Action,
    Command,
    DevicesLost,
    End,
    Ended,
    Event,
    Forget,
    Gone,
    Launch,
    Plan,
    Planned,
    Prepare,
    Prepared,
    Probe,
    Probed,
    Ready,
    Refused,
    Remember,
    Replaced,
    Tell,
    Used,
)
from selector.contract import Candidate
from selector.values import Value

Phase = Literal["planned", "preparing", "loading", "ready", "degraded", "draining", "backing off", "failed"]
Then = Literal["again", "back off", "failed"]
#: In these an engine's processes, or a preparation, are there and have to be ended.
BUSY: frozenset[Phase] = frozenset({"preparing", "loading", "ready", "degraded"})
#: What a fault leads to where no process has to be ended first.
_WITHOUT_ENGINE: dict[Then, Phase] = {"again": "planned", "back off": "backing off", "failed": "failed"}
SERVING: frozenset[Phase] = frozenset({"ready", "degraded"})

#: The first pause after a failure, the longest, and how far a pause is moved so that hosts do not fail in step.
BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, JITTER = 5.0, 300.0, 0.2
#: So many failures within so long, and it is not tried again by itself.
LATCH_FAILURES, LATCH_SECONDS = 5, 1800.0
#: Up so long, and what went before is forgotten.
STEADY_SECONDS = 600.0
#: A token is asked for when nothing was heard of a request for so long; and even so after the longer time.
PROBE_SECONDS, LONGEST_UNPROBED_SECONDS = 30.0, 300.0
#: A probe that failed is repeated soon; so many in a row, and the engine hangs.
REPROBE_SECONDS, MISSED_PROBES = 5.0, 2
#: Waiting for others (devices or a port that they hold, a hub or a cluster that does not answer, nodes that have not
#: joined) is no crash loop: it never latches.
WAITED_FOR = frozenset({"devices held", "no cluster", "too few nodes", "port in use", "download"})


class State(Value, frozen=True, kw_only=True):
    """Where a deployment is.

    ``run`` counts the tries; what is asked for carries it, and answers to an earlier one are not listened to.
    ``planning``: in ``planned``, a plan was asked for. ``asleep``: it was idle; somebody who asks wakes it.
    ``closing``: the daemon leaves. ``tries`` counts failures in a row, for the pauses; ``failures`` are the times of
    those that count towards latching. ``fault`` is the last, until it has been up for a while.
    """

    deployment: Deployment
    phase: Phase = "planned"
    since: float = 0.0
    run: int = 0
    wanted: Literal["running", "stopped"] = "running"
    planning: bool = False
    asleep: bool = False
    closing: bool = False
    candidate: Candidate | None = None
    changes: Changes = Changes()
    fault: Fault | None = None
    tries: int = 0
    failures: tuple[float, ...] = ()
    then: Then = "again"
    until: float | None = None
    probing: bool = False
    probe_at: float = 0.0
    probed_at: float = 0.0
    missed: int = 0
    used_at: float = 0.0

    @property
    def at_rest(self) -> bool:
        """Nothing runs and nothing is under way: the daemon may leave."""
        return self.phase in ("backing off", "failed") or (self.phase == "planned" and not self.planning)


def restored(deployment: Deployment, kept: KeptDeployment, now: float) -> State:
    """The state of a deployment when the daemon begins, from what an earlier daemon kept."""
    state = State(
        deployment=deployment,
        since=now,
        wanted=kept.wanted,
        changes=kept.changes,
        failures=_recent(kept.failures, now),
        tries=len(_recent(kept.failures, now)),
    )
    return state if kept.latched is None else replace(state, phase="failed", fault=kept.latched)


def kept(state: State, now: float) -> KeptDeployment:
    """What of a state outlives the daemon (who runs is added by the supervisor)."""
    return KeptDeployment(
        wanted=state.wanted,
        failures=_recent(state.failures, now),
        latched=state.fault if "failed" in (state.phase, state.then) else None,
        changes=state.changes,
    )


def wakes_at(state: State) -> float | None:
    """When the clock alone will move this state; ``None`` where only an event can."""
    if state.phase == "backing off":
        return state.until
    if state.phase not in SERVING:
        return None
    times = [] if state.probing else [state.probe_at]
    if _troubled(state):
        times.append(state.since + STEADY_SECONDS)
    if state.deployment.idle_seconds is not None and state.phase == "ready":
        times.append(state.used_at + state.deployment.idle_seconds)
    return min(times, default=None)


def step(state: State, event: Event | None, now: float) -> tuple[State, tuple[Action, ...]]:
    """What ``event`` (``None``: only time has passed) makes of ``state``, and what is to be done. Pure."""
    actions: list[Action] = []
    if event is not None:
        state = _taken(state, event, now, actions)
    return _moved(state, now, actions), tuple(actions)


def _taken(state: State, event: Event, now: float, actions: list[Action]) -> State:
    match event:
        case Command():
            return _commanded(state, event, now, actions)
        case Replaced(deployment=deployment):
            if deployment == state.deployment:
                return state
            # Another wish has failed of nothing yet; the devices that are lost are lost for it too.
            changes = Changes(without_devices=state.changes.without_devices)
            state = replace(state, deployment=deployment, changes=changes, failures=(), tries=0, fault=None)
            actions.append(Tell(name="deployment.changed", message="the configuration of this deployment has changed"))
            return _again(state, now, actions)
        case DevicesLost():
            return _lost(state, event, now, actions)
    if event.run != state.run:
        return state  # of an engine, or a plan, that is history
    if state.phase in SERVING:
        return _while_serving(state, event, now, actions)
    return _on_the_way(state, event, now, actions)


def _on_the_way(state: State, event: Event, now: float, actions: list[Action]) -> State:
    """Towards serving, or away from it. What answers something that is over changes nothing."""
    match event:
        case Planned(candidate=candidate) if state.planning:
            actions.append(Prepare(run=state.run))
            return _entered(replace(state, candidate=candidate), "preparing", now)
        case Refused(fault=fault, changes=changes) if state.planning or state.phase in ("preparing", "loading"):
            return _failed(state, fault, changes, now, actions, running=False)
        case Prepared() if state.phase == "preparing":
            actions.append(Launch(run=state.run))
            return _entered(state, "loading", now)
        case Ready(seconds=seconds) if state.phase == "loading":
            actions.append(Tell(name="engine.ready", message="a token came back", seconds=round(seconds, 3)))
            actions.append(Remember(fault=None))
            probe_at = now + PROBE_SECONDS
            state = replace(state, probe_at=probe_at, probed_at=now, used_at=now, missed=0, probing=False)
            return _entered(state, "ready", now)
        case Ended(fault=fault, changes=changes) if state.phase == "loading":
            return _failed(state, fault, changes, now, actions, running=True)
        case Gone(left=left) if state.phase == "draining":
            return _gone(state, left, now, actions)
    return state


def _while_serving(state: State, event: Event, now: float, actions: list[Action]) -> State:
    match event:
        case Ended(fault=fault, changes=changes):
            return _failed(state, fault, changes, now, actions, running=True)
        case Probed(ok=ok, message=message) if state.probing:
            return _probed(state, now, actions, ok=ok, message=message)
        case Used(waiting=True):
            return replace(state, used_at=now)  # whether it answers is to be asked all the same
        case Used():
            longest = state.probed_at + LONGEST_UNPROBED_SECONDS
            at = state.probe_at if state.phase == "degraded" else min(now + PROBE_SECONDS, longest)
            return replace(state, used_at=now, probe_at=at)
    return state


def _moved(state: State, now: float, actions: list[Action]) -> State:
    """What follows from the time and from what is wanted, whatever happened."""
    if state.phase == "backing off" and (state.until is None or now >= state.until):
        state = _entered(state, "planned", now)
    rests = state.wanted == "stopped" or state.closing or state.asleep
    if state.phase == "planned" and not state.planning and not rests:
        state = replace(state, planning=True, run=state.run + 1, candidate=None)
        actions.append(Plan(run=state.run, changes=state.changes))
    if state.phase not in SERVING:
        return state
    if _troubled(state) and now >= state.since + STEADY_SECONDS:
        state = replace(state, failures=(), tries=0, fault=None)
    idle_seconds = state.deployment.idle_seconds
    if idle_seconds is not None and state.phase == "ready" and now >= state.used_at + idle_seconds:
        actions.append(Tell(name="engine.idle", message="nobody asked for a while: stopped until somebody does"))
        return _draining(replace(state, asleep=True), "again", now, actions)
    if not state.probing and now >= state.probe_at:
        state = replace(state, probing=True, probed_at=now)
        actions.append(Probe(run=state.run))
    return state


def _commanded(state: State, command: Command, now: float, actions: list[Action]) -> State:
    match command.verb:
        case "start":
            return replace(state, wanted="running", asleep=False, used_at=now)
        case "ask":
            return replace(state, asleep=False, used_at=now)
        case "stop":
            state = replace(state, wanted="stopped")
        case "close":
            state = replace(state, closing=True)
        case "restart":
            return _again(replace(state, wanted="running", asleep=False), now, actions)
        case "retry":
            if state.phase == "failed" or state.failures:
                actions.append(Forget())
            forgotten = replace(state, failures=(), tries=0, fault=None, changes=Changes(), then="again")
            state = replace(forgotten, wanted="running", asleep=False, used_at=now)
            # A plan that is under way is one of what is forgotten now.
            rests = state.planning or state.phase in ("failed", "backing off")
            return _entered(state, "planned", now) if rests else state
    if state.phase in BUSY:
        return _draining(state, "again", now, actions)
    if state.planning or state.phase == "backing off":
        # What is being planned is not waited for: it holds nothing, and its answer comes to a run that is over.
        return replace(_entered(state, "planned", now), run=state.run + 1, planning=False)
    return state


def _again(state: State, now: float, actions: list[Action]) -> State:
    """End what runs and plan anew."""
    if state.phase in BUSY:
        return _draining(state, "again", now, actions)
    if state.phase == "draining":
        return replace(state, then="again")
    return replace(_entered(state, "planned", now), planning=False)


def _lost(state: State, event: DevicesLost, now: float, actions: list[Action]) -> State:
    known = state.changes.without_devices
    if set(event.devices) <= set(known):
        return state
    fault = Fault(reason="device lost", permanent=True, message=event.message, devices=event.devices)
    if state.phase in BUSY:
        return _failed(state, fault, event.changes, now, actions, running=True)
    without = (*known, *(each for each in event.devices if each not in known))
    state = replace(state, changes=replace(state.changes, without_devices=without))
    # What is being planned now counts on them.
    return replace(state, planning=False) if state.planning else state


def _probed(state: State, now: float, actions: list[Action], *, ok: bool, message: str) -> State:
    state = replace(state, probing=False)
    if ok:
        if state.phase == "degraded":
            actions.append(Tell(name="engine.recovered", message="it answers again"))
            state = replace(state, phase="ready")
        return replace(state, missed=0, probe_at=now + PROBE_SECONDS)
    missed = state.missed + 1
    if missed >= MISSED_PROBES:
        fault = Fault(reason="hangs", permanent=False, message=message, serving=True)
        return _failed(replace(state, missed=missed), fault, None, now, actions, running=True)
    actions.append(Tell(name="engine.degraded", level="warning", message=message))
    return replace(state, phase="degraded", missed=missed, probe_at=now + REPROBE_SECONDS)


def _gone(state: State, left: Fault | None, now: float, actions: list[Action]) -> State:
    if left is not None:
        # Whatever holds the devices is not ours to end, or will not end: nothing is started beside it.
        actions.append(Tell(name="deployment.failed", level="error", message=left.message, hint=left.hint))
        return _entered(replace(state, fault=left, candidate=None), "failed", now)
    state = replace(state, candidate=None)
    if state.then == "failed":
        return _entered(state, "failed", now)
    if state.then == "back off" and not state.closing and state.wanted == "running":
        return _entered(state, "backing off", now)
    return _entered(state, "planned", now)


def _failed(
    state: State, fault: Fault, changes: Changes | None, now: float, actions: list[Action], *, running: bool
) -> State:
    """What a fault leads to: one change and another try, a pause, or the end of trying."""
    if state.candidate is not None:
        actions.append(Remember(fault=fault))
    counts = fault.reason not in WAITED_FOR and (changes is None or fault.serving)
    failures = (*_recent(state.failures, now), *((now,) if counts else ()))
    state = replace(state, fault=fault, failures=failures, planning=False)
    then, until = _what_follows(state, fault, changes, now, counts=counts)
    if changes is not None:
        state = replace(state, changes=changes)
    state = replace(state, until=until, tries=0 if then == "failed" else state.tries + (until is not None))
    _tell(state, fault, changes, then, now, actions)
    if running:
        return _draining(state, then, now, actions)
    return _entered(replace(state, then=then, candidate=None), _WITHOUT_ENGINE[then], now)


def _what_follows(
    state: State, fault: Fault, changes: Changes | None, now: float, *, counts: bool
) -> tuple[Then, float | None]:
    if changes is None and fault.permanent:
        return "failed", None
    if counts and len(state.failures) >= LATCH_FAILURES:
        return "failed", None
    if changes is not None and not fault.serving:
        return "again", None
    return "back off", now + _pause_seconds(state)


def _pause_seconds(state: State) -> float:
    """5 s, doubled up to 300, moved by up to a fifth: a figure of the deployment and the try, the same every time."""
    seconds = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** min(state.tries, 16))
    share = zlib.crc32(f"{state.deployment.name} {state.run}".encode()) / 2**32
    return float(seconds * (1 + JITTER * (2 * share - 1)))


def _tell(state: State, fault: Fault, changes: Changes | None, then: Then, now: float, actions: list[Action]) -> None:
    reason, hint = fault.reason, fault.hint
    if changes is not None:
        message = "; ".join((fault.message, *changes.steps[-1:]))
        actions.append(Tell(name="ladder.step", level="warning", message=message, reason=reason))
    if then == "back off" and state.until is not None:
        seconds = round(state.until - now, 1)
        name = "deployment.waits" if fault.reason in WAITED_FOR else "engine.failed"
        message = f"{fault.message if changes is None else 'it is started again'}; another try in {seconds:g} s"
        actions.append(Tell(name=name, level="warning", message=message, hint=hint, reason=reason, seconds=seconds))
    elif then == "failed":
        often = len(state.failures) >= LATCH_FAILURES and not fault.permanent
        message = f"{fault.message}; {len(state.failures)} failures in half an hour" if often else fault.message
        actions.append(Tell(name="deployment.failed", level="error", message=message, hint=hint, reason=reason))


def _draining(state: State, then: Then, now: float, actions: list[Action]) -> State:
    actions.append(End(run=state.run))
    return _entered(replace(state, then=then, probing=False), "draining", now)


def _entered(state: State, phase: Phase, now: float) -> State:
    then = state.then if phase in ("draining", "failed") else "again"
    return replace(state, phase=phase, since=now, planning=False, then=then)


def _troubled(state: State) -> bool:
    """Whether there is something that is forgotten once it has been up for a while."""
    return bool(state.failures or state.tries or state.fault is not None)


def _recent(failures: tuple[float, ...], now: float) -> tuple[float, ...]:
    """Those that count; where the clock seems to have gone back a little, none of them is newer than now."""
    return tuple(min(each, now) for each in failures if abs(now - each) < LATCH_SECONDS)[-LATCH_FAILURES:]
