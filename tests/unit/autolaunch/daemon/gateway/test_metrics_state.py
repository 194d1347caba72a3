"""What is told of deployments, from supervisors whose time and hands are FAKE."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from msgspec.structs import replace
from prometheus_client.registry import CollectorRegistry

from autolaunch.daemon.deployment import Fault
from autolaunch.daemon.gateway.metrics import Happened, Snapshot, StateMetrics, snapshot_of
from autolaunch.daemon.gateway.metrics_snapshot import PHASES
from autolaunch.daemon.happenings import Command
from autolaunch.daemon.machine import LATCH_SECONDS, Phase, State
from autolaunch.daemon.shown import shown_phase
from autolaunch.daemon.supervisor import Supervisor
from engines.logs import Figures, LoadProgress
from tests.fakes.machine_world import CANDIDATE, DEPLOYMENT
from tests.fakes.simulated import SECONDS, FakeHands, SimulatedLoop

FIRST = {"model": "a", "replica": "1"}


class Told:
    """A registry of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.registry = CollectorRegistry()
        StateMetrics(self.registry, lambda: snapshot)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"autolaunch_{name}", {**FIRST, **labels})

    def phase(self, replica: str = "1") -> list[str]:
        return [each for each in PHASES if self.value("replica_phase", replica=replica, phase=each) == 1]


def story(hands: FakeHands, *moments: float | str) -> list[Told]:
    """What was told when so many seconds had passed, one after another; a word is a command that is given then."""
    told: list[Told] = []

    async def all_of_it() -> None:
        loop = asyncio.get_running_loop()
        happened = Happened()
        one = Supervisor(DEPLOYMENT, hands, on_tell=happened.tell, clock=loop.time)
        one.begin()
        for moment in moments:
            if isinstance(moment, str):
                one.post(Command(verb="stop" if moment == "stop" else "retry"))
                continue
            await asyncio.sleep(moment - loop.time())
            server = one.run.server
            if server is not None and not hasattr(server, "figures"):
                process = server.process
                engine = server.engine
                one.run.server = SimpleNamespace(  # type: ignore[assignment]  # FAKE
                    process=process,
                    engine=engine,
                    progress=LoadProgress(stage="weights", fraction=0.25, done=1, total=4),
                    figures=Figures(weights_bytes=123, kv_cache_tokens=4567),
                )
            told.append(Told(snapshot_of((one,), happened, now=loop.time())))
        await one.close()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(all_of_it())
    return told


def test_a_start_goes_through_its_phases_and_ends_ready(tmp_path: Path) -> None:
    planned, preparing, loading, ready = story(FakeHands(tmp_path), 1.0, 3.0, 10.0, 80.0)
    assert [each.phase() for each in (planned, preparing, loading, ready)] == [
        ["planned"],
        ["preparing"],
        ["loading"],
        ["ready"],
    ]
    assert [each.value("replica_ready") for each in (planned, loading, ready)] == [0, 0, 1]
    assert planned.value("replica_phase_duration_seconds") == 1.0
    assert [each.value("engine_starts_total") for each in (planned, loading, ready)] == [0, 0, 1]


def test_a_load_tells_how_far_it_is_and_only_while_it_loads(tmp_path: Path) -> None:
    planned, loading, ready = story(FakeHands(tmp_path), 1.0, 10.0, 80.0)
    assert planned.value("load_progress_ratio", stage="weights") is None
    assert loading.value("load_progress_ratio", stage="weights") == 0.25
    assert ready.value("load_progress_ratio", stage="weights") is None


def test_what_was_predicted_stands_beside_what_was_measured(tmp_path: Path) -> None:
    planned, loading, ready = story(FakeHands(tmp_path), 1.0, 10.0, 80.0)
    per_device = CANDIDATE.memory.per_device
    assert planned.value("predicted_memory_bytes", use="weights") is None
    assert loading.value("predicted_memory_bytes", use="weights") == per_device.weights_bytes
    assert loading.value("measured_memory_bytes", use="weights") is None
    assert ready.value("measured_memory_bytes", use="weights") == 123
    assert ready.value("predicted_kv_cache_tokens") == CANDIDATE.memory.kv_cache_tokens
    assert ready.value("measured_kv_cache_tokens") == 4567
    assert ready.value("replica_max_sequences") == CANDIDATE.limits.max_sequences
    assert ready.value("measured_load_seconds") == SECONDS["launch"]
    assert ready.value("measured_memory_bytes", use="graphs") is None  # the engine has not said


def test_the_engine_is_told_in_words_and_no_path(tmp_path: Path) -> None:
    ready = story(FakeHands(tmp_path), 80.0)[0]
    info = next(each for each in ready.registry.collect() if each.name == "autolaunch_engine_info")
    labels = info.samples[0].labels
    assert labels["engine"] == "vllm"
    assert labels["checkpoint"] == CANDIDATE.checkpoint.repo
    assert not any(value.startswith(("/", "~")) or str(tmp_path) in value for value in labels.values())


def test_one_failure_is_counted_once_though_it_is_told_twice(tmp_path: Path) -> None:
    """An engine that dies of memory while it serves: less is tried (told), after a pause (told)."""
    hands = FakeHands(tmp_path)
    hands.why = Fault(reason="out of memory", permanent=False, message="CUDA out of memory", serving=True)

    async def all_of_it() -> Told:
        loop = asyncio.get_running_loop()
        happened = Happened()
        one = Supervisor(DEPLOYMENT, hands, on_tell=happened.tell, clock=loop.time)
        one.begin()
        await one.until(lambda state: state.phase == "ready")
        hands.living[one.state.run].dies()
        await one.until(lambda state: state.phase == "backing off")
        told = Told(snapshot_of((one,), happened, now=loop.time()))
        await one.close()
        return told

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        told = runner.run(all_of_it())
    assert told.phase() == ["backing_off"]
    assert told.value("replica_failures_total", reason="out_of_memory") == 1
    assert told.value("replica_recent_failures") == 1
    assert told.value("replica_max_sequences") is None  # nothing is planned
    assert told.value("engine_starts_total") == 1


def test_a_deployment_that_is_given_up_has_failed_and_is_wanted(tmp_path: Path) -> None:
    hands = FakeHands(tmp_path)
    hands.wrong["plan"] = [Fault(reason="no plan", permanent=True, message="it does not fit")]
    failed = story(hands, 5.0)[0]
    assert failed.phase() == ["failed"]
    assert failed.value("replica_wanted") == 1
    assert failed.value("replica_failures_total", reason="no_plan") == 1


def test_one_that_was_stopped_is_not_wanted(tmp_path: Path) -> None:
    ready, stopped = story(FakeHands(tmp_path), 80.0, "stop", 100.0)
    assert ready.value("replica_wanted") == 1
    assert stopped.phase() == ["stopped"]
    assert stopped.value("replica_wanted") == 0


def test_one_that_nobody_asks_is_asleep_and_wanted(tmp_path: Path) -> None:
    one = Supervisor(DEPLOYMENT, FakeHands(tmp_path), clock=lambda: 0.0)
    one.state = replace(one.state, asleep=True)
    asleep = Told(snapshot_of((one,), Happened(), now=5.0))
    assert asleep.phase() == ["asleep"]
    assert asleep.value("replica_wanted") == 1
    assert asleep.value("replica_ready") == 0


@pytest.mark.parametrize("phase", get_args(Phase))
def test_every_phase_of_the_machine_is_one_that_is_shown(phase: Phase) -> None:
    shown = shown_phase(State(deployment=DEPLOYMENT, phase=phase)).replace(" ", "_")
    assert shown == phase.replace(" ", "_")
    assert shown in PHASES


def test_replicas_are_told_apart(tmp_path: Path) -> None:
    hands, happened = FakeHands(tmp_path), Happened()
    first = Supervisor(DEPLOYMENT, hands, clock=lambda: 0.0)
    second = Supervisor(replace(DEPLOYMENT, replica=2), hands, clock=lambda: 0.0)
    second.state = replace(second.state, phase="ready")
    told = Told(snapshot_of((first, second), happened, now=5.0, running=lambda one: 7 if one is second else None))
    assert (told.phase(), told.phase("2")) == (["planned"], ["ready"])
    assert told.value("replica_requests_running") is None
    assert told.value("replica_requests_running", replica="2") == 7


def test_a_daemon_tells_whether_its_configuration_holds_and_a_launch_says_nothing_of_it() -> None:
    def told(ok: bool | None) -> float | None:
        return Told(Snapshot(configuration_ok=ok)).registry.get_sample_value("autolaunch_configuration_ok")

    assert [told(True), told(False), told(None)] == [1, 0, None]


def test_failures_that_no_longer_count_are_not_told(tmp_path: Path) -> None:
    """One that was given up keeps them in its state; a crash loop of yesterday is none of today."""
    one = Supervisor(DEPLOYMENT, FakeHands(tmp_path), clock=lambda: 0.0)
    one.state = replace(one.state, phase="failed", failures=(0.0, 100.0, 200.0))
    seen = [Told(snapshot_of((one,), Happened(), now=now)) for now in (300.0, LATCH_SECONDS + 150.0)]
    assert [each.value("replica_recent_failures") for each in seen] == [3, 1]


def test_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    """A configuration that is changed a thousand times leaves nothing behind."""
    happened = Happened()
    failing = FakeHands(tmp_path)

    async def one_more() -> None:
        loop = asyncio.get_running_loop()
        one = Supervisor(DEPLOYMENT, failing, on_tell=happened.tell, clock=loop.time)
        one.begin()
        await one.until(lambda state: state.phase == "ready")
        await one.close()

    for _ in range(3):
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(one_more())
    import gc

    gc.collect()
    assert len(happened) == 0
