"""What the machine does about each thing that goes wrong, by name. The world around it is made up."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
import pytest

from autolaunch.daemon.deployment import Changes, Fault, KeptDeployment, Reason
from autolaunch.daemon.happenings import (
    Command,
    DevicesLost,
    End,
    Ended,
    Forget,
    Gone,
    Launch,
    Plan,
    Planned,
    Prepare,
    Probe,
    Probed,
    Ready,
    Refused,
    Remember,
    Replaced,
    Tell,
    Used,
)
from autolaunch.daemon.ladder import next_changes
from autolaunch.daemon.machine import (
    JITTER,
    LATCH_FAILURES,
    LONGEST_UNPROBED_SECONDS,
    PROBE_SECONDS,
    REPROBE_SECONDS,
    STEADY_SECONDS,
    Phase,
    kept,
    wakes_at,
)
from selector.catalog import Catalog
from selector.machines import report_from_spec
from tests.fakes.machine_world import CANDIDATE, DEPLOYMENT, World, through_file

PHASES: tuple[Phase, ...] = get_args(Phase)
LESS = Changes(steps=("less context",), context_tokens=4096)


def fault(
    reason: Reason = "killed", *, permanent: bool = False, serving: bool = False, message: str = "it broke"
) -> Fault:
    return Fault(reason=reason, permanent=permanent, message=message, hint="mend it", serving=serving)


def brought(phase: Phase, world: World | None = None) -> World:
    """A world in ``phase``."""
    world = world or World()
    match phase:
        case "degraded":
            world.to("ready").happens(None, PROBE_SECONDS)
            world.happens(Probed(run=world.state.run, ok=False, message="no token"))
        case "draining" | "backing off" | "failed":
            world.to("ready").fails(fault(permanent=phase == "failed", serving=True))
    return world.to(phase)


def names(world: World) -> list[str]:
    return [tell.name for tell in world.told]


# --- the way up ----------------------------------------------------------------------------------------


def test_it_is_planned_prepared_started_and_serves() -> None:
    world = World()
    world.goes_well()
    assert [type(each) for each in world.asked] == [Plan, Prepare, Launch]
    assert world.state.phase == "ready"
    assert names(world) == ["engine.ready"]


def test_what_served_is_remembered_and_so_is_what_failed() -> None:
    world = World().to("loading")
    assert Remember(fault=None) in world.happens(Ready(run=1, seconds=1.0))
    broken = fault(serving=True)
    assert Remember(fault=broken) in world.happens(Ended(run=1, fault=broken))


def test_a_plan_that_was_refused_tells_nothing_of_a_configuration() -> None:
    world = World()
    actions = world.happens(Refused(run=1, fault=fault("no plan", permanent=True)))
    assert not any(isinstance(each, Remember) for each in actions)


def test_answers_to_an_earlier_try_are_not_listened_to() -> None:
    world = World().to("ready")
    world.command("restart")
    world.to("loading")
    assert world.state.run == 2
    before = world.state
    for late in (
        Ended(run=1, fault=fault()),
        Gone(run=1),
        Ready(run=1, seconds=1.0),
        Probed(run=1, ok=False),
        Refused(run=1, fault=fault()),
        Planned(run=1, candidate=CANDIDATE),
        Used(run=1),
    ):
        assert world.happens(late) == ()
        assert world.state == before


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["planned", "preparing", "loading", "ready", "degraded"])
def test_a_permanent_cause_is_given_up_at_once_with_its_cause_and_hint(phase: Phase) -> None:
    world = brought(phase)
    broken = fault("bad weights", permanent=True, message="model-00003.safetensors is cut short")
    world.fails(broken)
    world.goes_well()
    assert (world.state.phase, world.state.fault) == ("failed", broken)
    told = world.told[-1]
    assert (told.name, told.level) == ("deployment.failed", "error")
    assert (told.message, told.hint) == ("model-00003.safetensors is cut short", "mend it")
    assert wakes_at(world.state) is None


@pytest.mark.parametrize("phase", ["planned", "preparing", "loading", "ready"])
def test_a_passing_cause_pauses_5_10_20_and_40_seconds_and_the_fifth_time_is_the_last(phase: Phase) -> None:
    world = World()
    for seconds in (5.0, 10.0, 20.0, 40.0):
        world.goes_well(lambda state: state.phase == phase and (phase != "planned" or state.planning))
        world.fails(fault())
        world.to("backing off")
        assert world.state.until is not None
        assert seconds * (1 - JITTER) <= world.state.until - world.now + 1.0 * (phase in ("loading", "ready"))
        assert world.state.until - world.now <= seconds * (1 + JITTER)
        assert f"another try in {world.told[-1].seconds:g} s" in world.told[-1].message
    world.goes_well(lambda state: state.phase == phase and (phase != "planned" or state.planning))
    world.fails(fault())
    world.to("failed")
    assert world.told[-1].message == "it broke; 5 failures in half an hour"
    assert not world.open


def test_the_longest_pause_is_five_minutes() -> None:
    world = World()
    for _ in range(12):
        world.goes_well(lambda state: state.planning)
        world.fails(fault("devices held"))
    assert world.state.until is not None
    assert 240.0 <= world.state.until - world.now <= 360.0


@pytest.mark.parametrize("reason", ["devices held", "no cluster", "too few nodes", "port in use", "download"])
def test_what_others_do_is_waited_for_and_never_given_up_on(reason: Reason) -> None:
    world = World()
    for _ in range(12):
        world.goes_well(lambda state: state.planning)
        world.fails(fault(reason))
        assert world.state.phase == "backing off"
        assert world.told[-1].name == "deployment.waits"


@pytest.mark.parametrize("verb", ["start", "retry"])
def test_who_wants_it_to_run_has_asked_for_it(verb: Literal["start", "retry"]) -> None:
    world = World(msgspec.structs.replace(DEPLOYMENT, idle_seconds=60.0))
    world.to("ready").passes(59.5)
    world.command(verb)
    world.passes(1.0)
    assert not world.state.asleep


def test_two_deployments_that_fail_together_do_not_try_again_together() -> None:
    pauses = set()
    for name in ("a", "b", "c", "d"):
        world = World(msgspec.structs.replace(DEPLOYMENT, name=name))
        world.fails(fault())
        assert world.state.until is not None
        pauses.add(world.state.until - world.now)
    assert len(pauses) == 4


def test_ten_minutes_up_forgive_what_was_before() -> None:
    world = World()
    for _ in range(4):
        world.to("ready").fails(fault(serving=True))
    world.to("ready").passes(STEADY_SECONDS - 1.0)
    assert len(world.state.failures) == 4
    world.passes(1.0)
    assert kept(world.state, world.now).failures == ()
    assert world.state.tries == 0
    assert world.state.fault is None
    world.fails(fault(serving=True))
    world.to("backing off")
    assert world.state.until is not None
    assert world.state.until - world.now < 6.0


def test_a_fault_that_a_change_has_mended_is_forgotten_too() -> None:
    """Else the next of its kind, weeks later, would be taken for the same again."""
    world = World().to("loading")
    world.fails(fault("out of memory"), LESS)
    world.to("ready")
    assert world.state.fault is not None
    world.passes(STEADY_SECONDS)
    assert world.state.fault is None


def test_given_up_is_kept_over_a_restart_of_the_daemon_and_another_try_clears_it() -> None:
    world = World()
    for _ in range(LATCH_FAILURES):
        world.to("ready").fails(fault(serving=True))
    world.to("failed")
    after = World(kept=through_file(kept(world.state, world.now)), now=world.now + 5.0)
    after.passes(100_000.0)
    assert (after.state.phase, after.state.fault) == ("failed", world.state.fault)
    assert after.asked == []
    assert after.command("start") == ()
    assert Forget() in after.command("retry")
    assert after.goes_well().phase == "ready"
    assert after.state.failures == ()


def test_a_crash_loop_of_the_daemon_does_not_begin_to_count_anew() -> None:
    world = World()
    for number in range(LATCH_FAILURES):
        world.to("ready").fails(fault(serving=True))
        assert len(world.state.failures) == number + 1
        world = World(kept=through_file(kept(world.state, world.now)), now=world.now + 1.0)
    assert world.state.phase == "failed"


def test_failures_of_yesterday_do_not_count_when_the_daemon_begins() -> None:
    world = World(kept=KeptDeployment(failures=(1.0, 2.0, 3.0, 4.0)), now=86_400.0)
    assert (world.state.failures, world.state.tries) == ((), 0)


def test_what_holds_the_devices_and_would_not_end_is_named_and_nothing_is_started_beside_it() -> None:
    world = brought("draining")
    left = fault("processes left", permanent=True, message="processes 12, 13 would not end")
    world.happens(Gone(run=1, left=left))
    world.passes(100_000.0)
    assert (world.state.phase, world.state.fault) == ("failed", left)
    assert world.told[-1].message == "processes 12, 13 would not end"
    assert world.count(Plan) == 1


# --- memory, and the ladder ----------------------------------------------------------------------------


def test_out_of_memory_while_loading_takes_one_step_and_no_pause() -> None:
    world = World().to("loading")
    world.fails(fault("out of memory", permanent=True), LESS)
    assert world.state.phase == "draining"
    assert (world.told[-1].name, world.told[-1].message) == ("ladder.step", "it broke; less context")
    world.happens(Gone(run=1), 1.0)
    assert world.open == [Plan(run=2, changes=LESS)]
    assert world.state.failures == ()
    assert world.goes_well().phase == "ready"


def test_out_of_memory_while_serving_takes_one_step_after_a_pause_and_counts() -> None:
    world = World().to("ready")
    world.fails(fault("out of memory", serving=True), LESS)
    world.to("backing off")
    assert len(world.state.failures) == 1
    assert names(world)[-2:] == ["ladder.step", "engine.failed"]
    world.goes_well()
    assert world.asked[-3] == Plan(run=2, changes=LESS)


def test_a_step_of_the_ladder_is_taken_however_often_it_failed_before() -> None:
    """It is no failure: it counts towards nothing, and ends nothing."""
    world = World()
    for _ in range(LATCH_FAILURES):
        world.to("ready").fails(fault(serving=True))
    world.to("failed").command("restart")
    world.to("loading").fails(fault("out of memory", permanent=True), LESS)
    assert world.goes_well(lambda state: state.planning).planning


def test_a_wait_for_devices_never_ends_it_however_often_it_failed_before() -> None:
    world = World()
    for _ in range(LATCH_FAILURES):
        world.to("ready").fails(fault(serving=True))
    world.to("failed").command("restart")
    world.fails(fault("devices held", message="process 77 holds 60 GiB"))
    assert world.state.phase == "backing off"
    assert (world.told[-1].name, world.told[-1].hint) == ("deployment.waits", "mend it")


def test_a_pinned_context_is_never_lowered() -> None:
    catalog = Catalog()
    pinned = msgspec.structs.replace(DEPLOYMENT, context_tokens=8192)
    world = World(pinned)
    for _ in range(20):
        world.goes_well(lambda state: state.phase in ("loading", "failed"))
        if world.state.phase == "failed":
            break
        broken = fault("out of memory", permanent=True)
        changes = next_changes(
            CANDIDATE, broken, world.state.changes, pinned, report=report_from_spec("cpu-64gb", catalog), known=catalog
        )
        world.fails(broken, changes)
    assert world.state.phase == "failed"
    asked = [each.changes for each in world.asked if isinstance(each, Plan)]
    assert len(asked) > 1
    assert all(each.context_tokens in (None, 8192) for each in asked)


def test_a_changed_plan_is_kept_over_a_restart_of_the_daemon() -> None:
    world = World().to("loading")
    world.fails(fault("out of memory"), LESS)
    world.to("ready")
    after = World(kept=through_file(kept(world.state, world.now)), now=world.now)
    assert after.open == [Plan(run=1, changes=LESS)]


# --- readiness is not liveness -------------------------------------------------------------------------


def test_one_missed_token_is_a_warning_and_the_engine_is_asked_again_soon() -> None:
    world = World().to("ready")
    world.happens(None, PROBE_SECONDS)
    assert world.open == [Probe(run=1)]
    world.happens(Probed(run=1, ok=False, message="no token within 30 s"))
    assert world.state.phase == "degraded"
    assert (world.told[-1].name, world.told[-1].message) == ("engine.degraded", "no token within 30 s")
    assert wakes_at(world.state) == world.now + REPROBE_SECONDS
    world.happens(None, REPROBE_SECONDS)
    world.happens(Probed(run=1, ok=True))
    assert (world.state.phase, world.state.missed) == ("ready", 0)
    assert names(world)[-1] == "engine.recovered"


def test_two_missed_tokens_in_a_row_and_the_engine_is_replaced() -> None:
    world = brought("degraded")
    world.happens(None, REPROBE_SECONDS)
    world.happens(Probed(run=1, ok=False, message="no token within 30 s"))
    assert world.state.phase == "draining"
    assert world.open == [End(run=1)]
    world.to("backing off")
    assert world.state.fault is not None
    assert (world.state.fault.reason, world.state.fault.message) == ("hangs", "no token within 30 s")
    assert world.goes_well().phase == "ready"
    assert world.count(Launch) == 2


def test_no_token_is_asked_for_while_requests_come_but_every_five_minutes_even_so() -> None:
    world = World().to("ready")
    began, asked = world.now, list[float]()
    while world.now < began + 3 * LONGEST_UNPROBED_SECONDS:
        world.happens(Used(run=1), 2.0)
        if world.open:
            asked.append(world.now - began)
            world.happens(Probed(run=1, ok=True))
    assert asked == [LONGEST_UNPROBED_SECONDS * each for each in (1, 2, 3)]


def test_an_engine_without_requests_is_asked_every_half_minute() -> None:
    world = World().to("ready")
    world.passes(300.0)
    assert world.count(Probe) == 10


def test_a_second_token_is_not_asked_for_before_the_first_was_answered() -> None:
    world = World().to("ready")
    world.happens(None, PROBE_SECONDS)
    world.happens(None, 10_000.0)
    world.happens(Used(run=1), 10_000.0)
    assert world.count(Probe) == 1


def test_a_token_that_was_not_asked_for_tells_nothing() -> None:
    world = World().to("ready")
    before = world.state
    for ok in (False, True):
        assert world.happens(Probed(run=1, ok=ok, message="twice")) == ()
        assert world.state == before


def test_requests_do_not_keep_a_degraded_engine_from_being_asked_again() -> None:
    world = brought("degraded")
    at = wakes_at(world.state)
    world.happens(Used(run=1))
    assert wakes_at(world.state) == at


# --- idle ----------------------------------------------------------------------------------------------


def test_who_is_idle_is_stopped_and_who_asks_wakes_it() -> None:
    world = World(msgspec.structs.replace(DEPLOYMENT, idle_seconds=600.0)).to("ready")
    world.passes(599.0)
    assert world.state.phase == "ready"
    world.happens(Used(run=1))
    world.passes(599.0)
    assert world.state.phase == "ready"
    world.passes(1.0)
    assert names(world)[-1] == "engine.idle"
    world.goes_well()
    assert (world.state.phase, world.state.asleep, world.state.at_rest) == ("planned", True, True)
    world.passes(100_000.0)
    assert world.count(Plan) == 1
    world.command("ask")
    assert world.goes_well().phase == "ready"


def test_a_probe_is_no_request() -> None:
    world = World(msgspec.structs.replace(DEPLOYMENT, idle_seconds=100.0)).to("ready")
    world.passes(100.0)
    assert world.count(Probe) == 3
    assert world.state.asleep


def test_who_asks_while_it_is_put_to_sleep_gets_it_back() -> None:
    world = World(msgspec.structs.replace(DEPLOYMENT, idle_seconds=100.0)).to("ready")
    world.passes(100.0)
    assert world.state.phase == "draining"
    world.command("ask")
    assert world.goes_well().phase == "ready"


# --- devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["preparing", "loading", "ready", "degraded"])
def test_a_lost_device_leads_to_a_new_plan_without_it_at_once_and_is_said(phase: Phase) -> None:
    world = brought(phase)
    changes = Changes(without_devices=("GPU-1",), steps=("device 1 (GPU-1) is left out",), rungs=("devices",))
    world.happens(DevicesLost(devices=("GPU-1",), message="GPU 1 has fallen off the bus", changes=changes))
    assert world.told[-1].message == "GPU 1 has fallen off the bus; device 1 (GPU-1) is left out"
    world.goes_well(lambda state: state.planning)
    assert world.open == [Plan(run=2, changes=changes)]
    assert world.state.failures == ()


def test_a_device_that_is_lost_while_a_plan_is_made_is_not_in_the_next() -> None:
    world = World()
    world.happens(DevicesLost(devices=("GPU-1",), message="lost"))
    assert world.asked[-1] == Plan(run=2, changes=Changes(without_devices=("GPU-1",)))
    assert world.happens(Planned(run=1, candidate=CANDIDATE)) == ()


def test_the_same_device_is_lost_once() -> None:
    world = World()
    lost = DevicesLost(devices=("GPU-1",), message="lost")
    world.happens(lost)
    world.to("ready")
    before = world.state
    assert world.happens(lost) == ()
    assert world.state == before


def test_where_the_devices_were_the_users_own_it_is_given_up_and_said() -> None:
    world = World().to("ready")
    world.happens(DevicesLost(devices=("GPU-1",), message="GPU 1 has fallen off the bus"))
    assert world.goes_well().phase == "failed"
    assert world.told[-1].message == "GPU 1 has fallen off the bus"


# --- commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_ends_it_wherever_it_is(phase: Phase) -> None:
    world = brought(phase)
    ends = world.count(End)
    world.command("stop")
    assert world.count(End) == ends + (phase in ("preparing", "loading", "ready", "degraded"))
    world.goes_well()
    assert world.state.at_rest
    assert world.state.phase == ("failed" if phase == "failed" else "planned")
    plans = world.count(Plan)
    world.passes(100_000.0)
    assert world.count(Plan) == plans
    assert kept(world.state, world.now).wanted == "stopped"
    world.command("retry" if phase == "failed" else "start")
    assert world.goes_well().phase == "ready"


@pytest.mark.parametrize("phase", PHASES)
def test_the_daemon_that_leaves_ends_it_and_remembers_that_it_was_wanted(phase: Phase) -> None:
    world = brought(phase)
    world.command("close")
    world.goes_well()
    assert world.state.at_rest
    assert not world.open or phase == "planned"
    left = through_file(kept(world.state, world.now))
    assert left.wanted == "running"
    after = World(kept=left, now=world.now)
    assert after.count(Plan) == (phase != "failed")


def test_the_plan_of_a_deployment_that_was_stopped_is_not_waited_for() -> None:
    world = World()
    world.command("stop")
    assert world.state.at_rest
    assert world.happens(Planned(run=1, candidate=CANDIDATE)) == ()
    world.command("start")
    assert world.asked[-1] == Plan(run=3, changes=Changes())


def test_a_restart_plans_anew_without_a_pause() -> None:
    world = World().to("ready")
    began = world.now
    world.command("restart")
    world.goes_well(lambda state: state.planning)
    assert world.now - began <= 1.0
    assert world.state.failures == ()


def test_another_try_ends_a_pause_and_what_was_changed() -> None:
    world = World().to("ready")
    world.fails(fault("out of memory", serving=True), LESS)
    world.to("backing off")
    actions = world.command("retry")
    assert Forget() in actions
    assert world.open == [Plan(run=2, changes=Changes())]


def test_another_try_does_not_wait_for_the_plan_of_the_try_before() -> None:
    world = World().to("loading")
    world.fails(fault("out of memory"), LESS)
    world.goes_well(lambda state: state.planning)
    world.command("retry")
    assert world.asked[-1] == Plan(run=3, changes=Changes())


def test_another_try_of_what_serves_ends_nothing() -> None:
    world = World().to("ready")
    assert world.command("retry") == ()
    assert world.state.phase == "ready"


# --- the configuration is read again -------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_a_reload_without_a_change_does_nothing(phase: Phase) -> None:
    world = brought(phase)
    before = world.state
    assert world.happens(Replaced(deployment=msgspec.structs.replace(DEPLOYMENT))) == ()
    assert world.state == before


@pytest.mark.parametrize("phase", PHASES)
def test_a_reload_with_a_change_restarts_and_forgets_what_the_old_one_failed_of(phase: Phase) -> None:
    world = brought(phase)
    changed = msgspec.structs.replace(DEPLOYMENT, context_tokens=4096)
    actions = world.happens(Replaced(deployment=changed))
    assert any(isinstance(each, Tell) and each.name == "deployment.changed" for each in actions)
    assert (world.state.failures, world.state.fault, world.state.changes) == ((), None, Changes())
    world.goes_well(lambda state: state.planning)
    assert world.state.deployment == changed
    assert world.goes_well().phase == "ready"


def test_a_reload_does_not_bring_lost_devices_back() -> None:
    world = World()
    world.happens(DevicesLost(devices=("GPU-1",), message="lost"))
    world.happens(Replaced(deployment=msgspec.structs.replace(DEPLOYMENT, context_tokens=4096)))
    assert world.asked[-1] == Plan(run=3, changes=Changes(without_devices=("GPU-1",)))


def test_a_reload_does_not_start_what_was_stopped() -> None:
    world = World()
    world.command("stop")
    world.happens(Replaced(deployment=msgspec.structs.replace(DEPLOYMENT, context_tokens=4096)))
    assert world.count(Plan) == 1


def test_a_reload_with_a_change_leaves_what_sleeps_asleep_until_somebody_asks() -> None:
    world = World(msgspec.structs.replace(DEPLOYMENT, idle_seconds=10.0)).to("ready")
    world.passes(10.0)
    world.goes_well()
    assert world.state.asleep
    changed = msgspec.structs.replace(DEPLOYMENT, port=8001)
    world.happens(Replaced(deployment=changed))
    world.passes(100_000.0)
    assert (world.state.asleep, world.state.deployment, world.count(Plan)) == (True, changed, 1)
    world.command("ask")
    assert world.goes_well().phase == "ready"


def test_contradictory_wishes_end_in_the_last() -> None:
    world = World().to("ready")
    for verb in ("stop", "start", "restart", "stop", "retry", "stop", "start"):
        world.happens(Command(verb=verb))
    assert world.goes_well().phase == "ready"
    assert (world.count(End), world.count(Launch)) == (1, 2)
