"""Laws of the machine: in whatever order things happen, there is one engine, it ends in a state that explains it."""

from __future__ import annotations

from functools import partial
from typing import get_args

import msgspec
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch.daemon.deployment import Changes, Deployment, Fault, Reason
from autolaunch.daemon.happenings import (
    DevicesLost,
    End,
    Ended,
    Event,
    Gone,
    Plan,
    Planned,
    Prepared,
    Probe,
    Probed,
    Ready,
    Refused,
    Replaced,
    Tell,
    Used,
)
from autolaunch.daemon.machine import (
    JITTER,
    LATCH_FAILURES,
    LATCH_SECONDS,
    PROBE_SECONDS,
    STEADY_SECONDS,
    WAITED_FOR,
    Phase,
    State,
    kept,
    restored,
    step,
    wakes_at,
)
from tests.fakes.machine_world import CANDIDATE, DEPLOYMENT, World, through_file


def _reasons(kind: object) -> list[Reason]:
    return [reason for each in get_args(kind) for reason in (get_args(each) or (each,))]


REASONS = _reasons(Reason)
DEPLOYMENTS = st.sampled_from([DEPLOYMENT, msgspec.structs.replace(DEPLOYMENT, idle_seconds=60.0)])
DEVICES = st.lists(st.sampled_from(["GPU-0", "GPU-1", "GPU-2"]), min_size=1, max_size=2).map(tuple)
FAULTS = st.builds(
    Fault,
    reason=st.sampled_from(REASONS),
    permanent=st.booleans(),
    message=st.just("it broke"),
    hint=st.sampled_from([None, "mend it"]),
    serving=st.booleans(),
)
CHANGES = st.sampled_from([None, None, Changes(), Changes(steps=("one",), context_tokens=4096)])
#: The clock: mostly as it does, sometimes standing still, far ahead, or a little back.
PASSING = st.sampled_from([0.0, 0.001, 1.0, 5.0, 31.0, 59.0, 301.0, 700.0, 1900.0, 1e6, -0.5])


@st.composite
def happenings(draw: st.DrawFn, state: State) -> Event | None:
    """Anything, of this run or another."""
    run = state.run + draw(st.sampled_from([0, 0, 0, -1, 1, -7]))
    fault, changes = draw(FAULTS), draw(CHANGES)
    anything: list[Event | None] = [
        None,
        Planned(run=run, candidate=CANDIDATE),
        Refused(run=run, fault=fault, changes=changes),
        Prepared(run=run),
        Ready(run=run, seconds=1.0),
        Ended(run=run, fault=fault, changes=changes),
        Gone(run=run),
        Gone(run=run, left=fault),
        Probed(run=run, ok=True),
        Probed(run=run, ok=False, message="no token"),
        Used(run=run),
        DevicesLost(devices=draw(DEVICES), message="lost", changes=changes),
        Replaced(deployment=state.deployment),
        Replaced(deployment=msgspec.structs.replace(state.deployment, context_tokens=draw(st.integers(1, 3)))),
    ]
    return draw(st.sampled_from(anything))


def _brought(world: World, phase: Phase) -> None:
    """To any phase on the shortest way."""
    match phase:
        case "degraded":
            world.to("ready").happens(None, PROBE_SECONDS)
            world.happens(Probed(run=world.state.run, ok=False, message="no token"))
        case "draining" | "backing off" | "failed":
            world.to("ready").fails(Fault(reason="killed", permanent=phase == "failed", message="killed", serving=True))
    world.to(phase)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A world in which all sorts of things have happened; everything that must hold has held in it."""
    world = World(draw(DEPLOYMENTS))
    _brought(world, draw(st.sampled_from(get_args(Phase))))
    for kind in draw(st.lists(st.sampled_from("aaaaepdcn"), max_size=15)):
        world.now += draw(PASSING)
        if kind == "a" and world.open:
            world.answer(draw(st.sampled_from(world.open)))
        elif kind == "e":
            world.fails(draw(FAULTS), draw(CHANGES))
        elif kind == "p":
            world.passes(draw(st.sampled_from([0.0, 6.0, 31.0, 700.0])))
        elif kind == "d":
            world.happens(Probed(run=world.state.run, ok=False, message="no token"))
        elif kind == "c":
            world.command(draw(st.sampled_from(["start", "stop", "restart", "retry", "ask", "close"])))
        else:
            world.happens(draw(happenings(world.state)))
    note(f"in {world.state.phase}")
    return world


@settings(max_examples=60, derandomize=True)
@given(worlds(), st.data())
def test_whatever_happens_in_whatever_order_what_must_hold_holds(world: World, data: st.DataObject) -> None:
    """The world looks, at every step (:mod:`tests.fakes.machine_world`); here more noise than sense."""
    for _ in range(10):
        world.happens(data.draw(happenings(world.state)), data.draw(PASSING))


@settings(max_examples=60, derandomize=True)
@given(worlds(), FAULTS, CHANGES)
def test_every_fault_from_everywhere_ends_in_serving_waiting_or_giving_up_with_its_cause(
    world: World, fault: Fault, changes: Changes | None
) -> None:
    told = len(world.told)
    was_leaving = world.state.phase == "draining"
    if not world.fails(fault, None if was_leaving else changes):
        return
    assert world.state.fault == fault
    assert any(fault.message in each.message for each in world.told[told:] if isinstance(each, Tell))
    end = world.goes_well(lambda state: state.phase in ("ready", "backing off", "failed"))
    rests = end.phase == "planned" and (end.closing or end.asleep or end.wanted == "stopped")
    assert rests or end.phase in ("ready", "backing off", "failed")
    assert end.fault == fault
    if end.phase == "failed":
        said = [each for each in world.told[told:] if each.name == "deployment.failed"]
        assert [each.level for each in said] == ["error"]
        assert fault.message in said[0].message
        assert said[0].hint == fault.hint


@settings(max_examples=60, derandomize=True)
@given(worlds(), st.sampled_from(["stop", "close"]))
def test_a_stop_comes_to_rest_from_everywhere_and_nothing_is_started_after_it(world: World, verb: str) -> None:
    wanted = world.state.wanted
    world.command(verb)
    asked = len(world.asked)
    end = world.goes_well()
    assert end.at_rest
    assert end.phase in ("planned", "failed")
    assert world.there is None
    assert world.asked[asked:] == []
    assert end.wanted == ("stopped" if verb == "stop" else wanted)
    if verb == "close":
        for command in ("start", "retry", "restart", "ask"):
            world.command(command)
        world.happens(Replaced(deployment=msgspec.structs.replace(end.deployment, port=9)))
        world.passes(10_000.0)
        assert world.asked[asked:] == []
        return
    assert world.branch().command("ask") == ()
    if end.phase == "failed":
        assert world.branch().command("start") == (), "only another try clears what was given up"
    world.command("retry" if end.phase == "failed" else "start")
    assert world.goes_well().phase in ("ready", "planned" if end.closing else "ready")


@settings(max_examples=60, derandomize=True)
@given(worlds())
def test_another_try_brings_it_back_from_everywhere(world: World) -> None:
    world.happens(None)  # what the time has brought has happened before
    world.command("retry")
    assert world.state.failures == ()
    assert world.state.changes == Changes()
    end = world.goes_well()
    if end.asleep:  # it served meanwhile, and nobody came
        assert world.told[-1].name == "engine.idle"
    else:
        assert end.phase in (("planned",) if end.closing else ("ready", "degraded"))


@settings(max_examples=60, derandomize=True)
@given(worlds())
def test_a_daemon_that_comes_after_it_goes_on_where_it_was(world: World) -> None:
    """Where it had given up it stays so; what was wanted runs again; what was not does not."""
    state = world.state
    after = World(state.deployment, kept=through_file(kept(state, world.now)), now=world.now)
    given_up = state.phase == "failed" or state.then == "failed"
    assert (after.state.phase == "failed") == given_up
    assert (after.count(Plan) == 1) == (state.wanted == "running" and not given_up)
    assert after.state.changes == state.changes
    assert after.state.failures == kept(state, world.now).failures


# --- failing often -------------------------------------------------------------------------------------


def _is_in(phase: str, state: State) -> bool:
    return state.phase == phase


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["killed", "stalled", "unknown", "hangs", "download", "devices held"]),
            st.sampled_from(["planned", "loading", "ready", "ready"]),
            st.sampled_from([0.0, 3.0, 200.0, 599.0, 600.0, 2000.0]),
            st.booleans(),
        ),
        max_size=25,
    )
)
def test_five_failures_in_half_an_hour_are_the_end_and_pauses_double(
    story: list[tuple[str, str, float, bool]],
) -> None:
    """Reckoned a second time here, by a book of its own."""
    world, counted, tries = World(), list[float](), 0
    for reason, phase, seconds, changed in story:
        fault = Fault(reason=reason, permanent=False, message="it broke", serving=phase == "ready")  # type: ignore[arg-type]  # of Reason
        world.goes_well(partial(_is_in, phase))
        assert world.state.phase == phase
        if phase == "ready":
            world.passes(seconds)
            if seconds >= STEADY_SECONDS:
                counted, tries = [], 0
        changes = Changes(steps=("less",)) if changed and phase == "ready" else None
        world.fails(fault, changes)
        failed_at = world.now
        counted = [each for each in counted if failed_at - each < LATCH_SECONDS]
        if reason not in WAITED_FOR:
            counted.append(failed_at)
        assert world.state.failures == tuple(counted)
        world.goes_well(lambda state: state.at_rest and not state.planning)
        if len(counted) >= LATCH_FAILURES and reason not in WAITED_FOR:
            assert world.state.phase == "failed"
            assert "failures in half an hour" in world.told[-1].message
            later = restored(DEPLOYMENT, through_file(kept(world.state, world.now)), world.now)
            assert step(later, None, world.now + 10_000) == (later, ())
            world.command("retry")
            counted, tries = [], 0
            continue
        assert world.state.phase == "backing off"
        assert world.state.until is not None
        pause_seconds = world.state.until - failed_at
        least = min(300.0, 5.0 * 2**tries)
        assert least * (1 - JITTER) <= pause_seconds <= least * (1 + JITTER)
        tries += 1


@given(st.integers(0, 12), st.booleans(), st.sampled_from(["loading", "preparing"]))
def test_as_many_tries_follow_each_other_without_a_pause_as_the_ladder_has_steps(
    steps: int, permanent: bool, phase: str
) -> None:
    fault = Fault(reason="out of memory", permanent=permanent, message="it does not fit")
    world = World()
    for number in range(steps):
        world.goes_well(lambda state: state.phase == phase)
        began = world.now
        world.fails(fault, Changes(steps=("less",) * (number + 1)))
        world.goes_well(lambda state: state.planning)
        assert world.now - began <= 1.0, "no pause"
        assert world.state.failures == ()
    world.goes_well(lambda state: state.phase == phase)
    world.fails(fault)
    end = world.goes_well(lambda state: state.phase in ("backing off", "failed"))
    assert end.phase == ("failed" if permanent else "backing off")
    assert world.count(Plan) == steps + 1


@given(st.lists(st.sampled_from(sorted(WAITED_FOR)), min_size=6, max_size=40), st.integers(0, LATCH_FAILURES - 1))
def test_waiting_for_others_is_no_crash_loop(reasons: list[Reason], failures: int) -> None:
    world = World()
    for _ in range(failures):
        world.to("ready").fails(Fault(reason="killed", permanent=False, message="killed", serving=True))
    for reason in reasons:
        world.goes_well(lambda state: state.planning)
        world.fails(Fault(reason=reason, permanent=False, message="others have it"))
        assert world.state.phase == "backing off"
    assert len(world.state.failures) <= failures


# --- the clock -----------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True)
@given(worlds())
def test_the_clock_alone_never_turns_in_circles(world: World) -> None:
    """At the time that it asks for, something is done, and the next is later; where it asks for none, nothing is."""
    world.happens(None)
    for _ in range(50):
        at = wakes_at(world.state)
        if at is None:
            before = world.state
            assert world.happens(None, 1e6) == ()
            assert world.state == before
            return
        assert at > world.now
        before = world.state
        world.now = at
        actions = world.happens(None)
        assert actions or world.state != before


@given(DEPLOYMENTS)
def test_a_day_of_quiet_asks_for_a_token_every_half_minute_and_for_nothing_else(deployment: Deployment) -> None:
    world = World(deployment).to("ready")
    asked = len(world.asked)
    world.passes(86_400.0)
    probes, ends = world.count(Probe), world.count(End)
    assert probes == (86_400 // 30 if deployment.idle_seconds is None else 1)
    assert ends == (deployment.idle_seconds is not None)
    assert len(world.asked) == asked + probes + ends
