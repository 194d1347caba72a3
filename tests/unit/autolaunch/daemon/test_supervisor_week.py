"""A week of the real supervisor with a fault an hour. Time and hands are FAKE (:mod:`tests.fakes.simulated`)."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from autolaunch.daemon import machine, supervisor
from autolaunch.daemon.deployment import Deployment, Fault, Reason
from autolaunch.daemon.happenings import Action, Command, Event, Replaced, Tell
from autolaunch.daemon.machine import State
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.daemon.survivors import started_at
from tests.fakes.machine_world import DEPLOYMENT, Watch, through_file
from tests.fakes.simulated import FakeHands, SimulatedLoop

HOUR, DAY = 3600.0, 86_400.0


def fault(reason: Reason, *, permanent: bool = False, serving: bool = False) -> Fault:
    return Fault(reason=reason, permanent=permanent, message=f"{reason}, says the story", serving=serving)


class Week:
    """A supervisor, its hands, and what goes wrong; every step of the machine is watched."""

    def __init__(self, home: Path, seed: int, loop: SimulatedLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = loop
        self.random = random.Random(seed)  # noqa: S311 - a story, no secret
        self.hands = FakeHands(home)
        self.watch = Watch()
        self.told: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.retried = 0
        self.one = Supervisor(DEPLOYMENT, self.hands, on_tell=self._tell, on_change=self._changed, clock=loop.time)
        real = machine.step

        def watched(state: State, event: Event | None, now: float) -> tuple[State, tuple[Action, ...]]:
            after, actions = real(state, event, now)
            self.watch.sees(state, event, now, after, actions)
            return after, actions

        monkeypatch.setattr(machine, "step", watched)
        self.one.begin()

    def _tell(self, _one: Supervisor, tell: Tell) -> None:
        self.told[tell.name] += 1

    def _changed(self, one: Supervisor) -> None:
        self.phases[one.state.phase] += 1
        self.watch.forgets(one.state.run)
        assert len(self.hands.living) <= 1, "exactly one engine"

    # --- what goes wrong -------------------------------------------------------------------------------

    def goes_wrong(self, kind: str) -> None:
        engine = self.hands.living.get(self.one.state.run)
        assert engine is not None, "it served"
        if kind.startswith("command "):
            for verb in kind.split()[1:]:
                self.one.post(Command(verb=verb))  # type: ignore[arg-type]  # of the verbs
        elif kind == "worker":
            engine.worker.lives = False
        elif kind == "hang":
            engine.deaf = 2
        elif kind == "slow":
            engine.deaf = 1
        elif kind == "used":
            engine.output_bytes += 1000
        elif kind == "lost":
            self.one.lost((f"GPU-{self.random.randrange(2)}",), "it has fallen off the bus")
        elif kind == "reload":
            changed = self._other(self.one.state.deployment)
            self.one.post(Replaced(deployment=changed))
        elif kind.startswith("raises "):
            self.hands.wrong[kind.split()[1]] = [ZeroDivisionError("a fault of ours")]
            if kind != "raises probe":
                engine.dies()
        else:
            self.hands.why = fault("out of memory", serving=True) if kind == "out of memory" else None
            for name, faults in FAILING.get(kind, {}).items():
                self.hands.wrong[name] = list(faults)
            engine.dies()

    def _other(self, deployment: Deployment) -> Deployment:
        return msgspec.structs.replace(deployment, concurrency=1 if deployment.concurrency is None else None)

    async def mended(self) -> None:
        """Within the hour it serves again, or has given up and says why; then somebody asks for another try."""
        state = self.one.state
        assert state.phase in ("ready", "backing off", "failed"), state.phase
        if state.phase == "failed":
            assert state.fault is not None
            assert state.fault.message
            self.one.post(Command(verb="retry"))
            self.retried += 1
        await asyncio.wait_for(self.one.until(lambda state: state.phase == "ready" and not state.probing), HOUR)
        assert not any(self.hands.wrong.values()), f"it has not struck: {self.hands.wrong}"


FAILING: dict[str, dict[str, tuple[Fault, ...]]] = {
    "killed": {},
    "out of memory": {},
    "devices held": {"plan": (fault("devices held"),) * 3},
    "no plan": {"plan": (fault("no plan", permanent=True),)},
    "download": {"prepare": (fault("download"),) * 2},
    "disk full": {"prepare": (fault("disk full", permanent=True),)},
    "port in use": {"start": (fault("port in use"),)},
    "stalled": {"launch": (fault("stalled"),)},
    "bad weights": {"launch": (fault("bad weights", permanent=True),)},
    "too large": {"launch": (fault("out of memory", permanent=True),) * 3},
    "crash loop": {"launch": (fault("killed"),) * 4},
    "processes left": {"end": (fault("processes left", permanent=True),)},
}
KINDS = (
    *FAILING,
    *("worker", "hang", "slow", "used", "lost", "reload"),
    *("command stop start", "command restart", "command retry", "command stop restart stop start ask"),
    *("raises plan", "raises prepare", "raises launch", "raises end", "raises probe", "raises remember"),
)


class Figures(msgspec.Struct, frozen=True):
    """What could grow."""

    tasks: int
    timers: int
    threads: int
    descriptors: int
    ours: int
    state_bytes: int
    blocks: int


def figures(week: Week) -> Figures:
    gc.collect()
    timers = week.loop._scheduled  # type: ignore[attr-defined]  # nothing else tells
    return Figures(
        tasks=len(asyncio.all_tasks()),
        timers=sum(not each.cancelled() for each in timers),
        threads=threading.active_count(),
        descriptors=len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0,
        # Of some types that are written in C it is no text.
        ours=sum(str(type(each).__module__).startswith("autolaunch.daemon") for each in gc.get_objects()),
        state_bytes=len(msgspec.json.encode(week.one.kept())) + len(msgspec.json.encode(week.one.state.changes)),
        blocks=sys.getallocatedblocks(),
    )


@pytest.mark.parametrize("seed", [5])
def test_a_week_of_faults_leaves_nothing_behind(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Figures] = []
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 10.0)  # else most of the time goes into looks at what goes well

    async def story() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        week = Week(tmp_path, seed, loop, monkeypatch)
        await week.one.until(lambda state: state.phase == "ready")
        kinds: list[str] = []
        for day in range(7):
            for hour in range(24):
                at = day * DAY + hour * HOUR + HOUR / 2 + week.random.uniform(-600.0, 600.0)
                await asyncio.sleep(at - loop.time())
                await week.mended()
                if not kinds:
                    kinds = week.random.sample(KINDS, len(KINDS))
                week.goes_wrong(kinds.pop())
            await asyncio.sleep((day + 1) * DAY - loop.time())
            await week.mended()
            week.one.post(Command(verb="retry"))  # the ladder's steps of the day are forgotten
            await asyncio.sleep(1.0)
            await week.mended()
            found.append(figures(week))
            assert through_file(week.one.kept()).wanted == "running"
        assert loop.time() == pytest.approx(7 * DAY, abs=HOUR)
        await week.one.close()
        assert week.hands.living == {}
        assert week.hands.most == 1
        assert len(asyncio.all_tasks()) == 1
        assert set(week.phases) == set(machine.Phase.__args__)  # type: ignore[attr-defined]  # of a Literal
        assert week.retried > 20
        assert week.told["engine.ready"] > 150
        assert week.told["internal"] >= 30

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(story())
    first, *others = found
    for each in others:
        assert (each.tasks, each.threads, each.descriptors) == (first.tasks, first.threads, first.descriptors)
        assert each.timers == first.timers
        assert abs(each.ours - first.ours) <= 3
        assert each.state_bytes == first.state_bytes
        assert abs(each.blocks - first.blocks) <= 500
    assert started_at(4_194_998) == 0.0, "the fakes are nobody"
