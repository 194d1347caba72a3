"""A FAKE world around the machine: it remembers what was asked, answers it, and holds the machine to its promises.

Nothing is started and no time passes: the clock is a number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import get_args

import msgspec

from autolaunch.daemon.deployment import Changes, Deployment, Fault, KeptDeployment
from autolaunch.daemon.happenings import (
    Action,
    Command,
    End,
    Ended,
    Event,
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
    Tell,
)
from autolaunch.daemon.machine import LATCH_FAILURES, SERVING, Phase, State, kept, restored, step, wakes_at
from selector.contract import Candidate
from tests.fakes.plans import candidate

CANDIDATE: Candidate = candidate("vllm", "glm-tiny")
DEPLOYMENT = Deployment(name="a", model="glm-tiny")

Asked = Plan | Prepare | Launch | Probe | End


class Watch:
    """Sees every step of one deployment and holds the machine to what it promises.

    Attributes:
        asked: everything that was asked for, in order, but what is only said.
        open: what was asked for and not answered.
        told: everything that was said.
        there: the run of which something may be there.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.open: list[Asked] = []
        self.told: list[Tell] = []
        self.there: int | None = None

    def sees(self, before: State, event: Event | None, now: float, state: State, actions: tuple[Action, ...]) -> None:
        """One step, which made ``state`` of ``before``."""
        self._answered(before, event)
        for action in actions:
            if isinstance(action, Tell):
                self.told.append(action)
            elif isinstance(action, get_args(Asked)):
                self._look_at(action, event, state)
                self.asked.append(action)
                self.open.append(action)
        self._look_at_state(state, now)

    def forgets(self, run: int) -> None:
        """What was said, and what was asked for before ``run``, where it is a long story."""
        self.asked = [each for each in self.asked if each.run >= run]
        self.told.clear()

    def _answered(self, before: State, event: Event | None) -> None:
        """What the world knows after ``event``; an answer to what was not asked for tells it nothing."""
        match event:
            case Planned(run=run):
                self._close(Plan, run)
            case Refused(run=run):
                self._close(Plan, run)
                if self._close(Prepare, run) or self._close(Launch, run):
                    self.there = None if self.there == run and before.phase in ("preparing", "loading") else self.there
            case Prepared(run=run):
                self._close(Prepare, run)
            case Ready(run=run) | Ended(run=run):
                self._close(Launch, run)
            case Probed(run=run):
                self._close(Probe, run)
            case Gone(run=run):
                if self._close(End, run):
                    self.there = None
                    self.open = [each for each in self.open if each.run != run]

    def _close(self, kind: type[Asked], run: int) -> bool:
        found = next((each for each in self.open if isinstance(each, kind) and each.run == run), None)
        if found is not None:
            self.open.remove(found)
        return found is not None

    def _look_at(self, action: Asked, event: Event | None, state: State) -> None:
        run = action.run
        assert run == state.run, "of a run that is over nothing is asked for"
        if not isinstance(action, Probe):
            assert action not in self.asked, "once a run"
        earlier = [each for each in self.asked if each.run == run]
        assert not any(isinstance(each, End) for each in earlier), "nothing after its end"
        if not isinstance(action, End):
            assert state.wanted == "running", "nobody wants it"
            assert not state.closing, "the daemon leaves"
            assert not state.asleep, "nobody has asked"
        match action:
            case Plan():
                assert all(each.run < run for each in self.asked), "a new try has a new number"
                assert self.there is None, "something of an earlier run is there"
            case Prepare():
                assert isinstance(event, Planned), "what is not planned cannot be prepared"
                assert self.there is None, "something of an earlier run is there"
                self.there = run
            case Launch():
                assert isinstance(event, Prepared), "what is not prepared cannot be started"
                assert self.there == run, "exactly one engine"
            case Probe():
                assert state.phase in SERVING
                assert not any(isinstance(each, Probe) and each.run == run for each in self.open), "one at a time"
            case End():
                assert self.there == run, "nothing of it is there"

    def _look_at_state(self, state: State, now: float) -> None:
        assert state.phase in get_args(Phase)
        at = wakes_at(state)
        assert at is None or at > now, "what is due is done"
        if state.phase == "backing off":
            assert at is not None, "only time leads out of it"
        if state.phase in SERVING:
            assert at is not None or state.probing, "it is asked for a token some day"
            assert self.there == state.run
        if state.phase in ("failed", "backing off"):
            assert state.fault is not None, "with its cause"
        if state.phase == "draining":
            assert any(isinstance(each, End) and each.run == state.run for each in self.open)
        if state.at_rest:
            assert self.there is None
            assert not [each for each in self.open if not isinstance(each, Plan | Probe)]
        assert len(state.failures) <= LATCH_FAILURES


class World(Watch):
    """A deployment from the beginning, at ``now`` seconds, and what answers it."""

    def __init__(self, deployment: Deployment = DEPLOYMENT, *, kept: KeptDeployment | None = None, now: float = 1000.0):
        super().__init__()
        self.now = now
        self.state: State = restored(deployment, kept or KeptDeployment(), now)
        self.happens(None)

    def branch(self) -> World:
        """Another world, the same until now."""
        other = copy.copy(self)
        other.asked, other.open, other.told = list(self.asked), list(self.open), list(self.told)
        return other

    def happens(self, event: Event | None, after: float = 0.0) -> tuple[Action, ...]:
        """``event`` happens ``after`` so many seconds; everything that must hold then is looked at."""
        self.now += after
        before = self.state
        self.state, actions = step(before, event, self.now)
        assert (self.state, actions) == step(before, event, self.now), "the same again gives the same"
        self.sees(before, event, self.now, self.state, actions)
        again = through_file(kept(self.state, self.now))
        assert kept(restored(self.state.deployment, again, self.now), self.now) == again, "what is kept comes back"
        assert msgspec.json.decode(msgspec.json.encode(self.state), type=State) == self.state
        return actions

    def command(self, verb: str) -> tuple[Action, ...]:
        return self.happens(Command(verb=verb))  # type: ignore[arg-type]  # a test's own words

    def passes(self, seconds: float) -> None:
        """So much time passes; probes are answered, and nothing else."""
        until = self.now + seconds
        while (at := wakes_at(self.state)) is not None and at <= until:
            self.now = max(self.now, at)
            self.happens(None)
            for probe in [each for each in self.open if isinstance(each, Probe)]:
                self.happens(Probed(run=probe.run, ok=True))
        self.now = until
        self.happens(None)

    def count(self, kind: type[Asked]) -> int:
        return sum(isinstance(each, kind) for each in self.asked)

    # --- answers ----------------------------------------------------------------------------------------

    def answer(self, asked: Asked, *, seconds: float = 1.0) -> None:
        """What is asked for is done, and well."""
        run = asked.run
        answers: dict[type[Asked], Event] = {
            Plan: Planned(run=run, candidate=CANDIDATE),
            Prepare: Prepared(run=run),
            Launch: Ready(run=run, seconds=seconds),
            Probe: Probed(run=run, ok=True),
            End: Gone(run=run),
        }
        self.happens(answers[type(asked)], seconds)

    def goes_well(self, until: Callable[[State], bool] = lambda _: False, *, most_steps: int = 60) -> State:
        """All that is asked for is done and what has to be waited for is waited for, until it serves or rests."""
        for _ in range(most_steps):
            if until(self.state):
                break
            if self.open:
                self.answer(self.open[0])
            elif self.state.phase in SERVING:
                break
            elif (at := wakes_at(self.state)) is not None:
                self.now = max(self.now, at)
                self.happens(None)
            else:
                break
        else:
            raise AssertionError(f"it does not come to rest: {self.state}")
        return self.state

    def to(self, phase: Phase, **more: object) -> World:
        """Goes well until it is in ``phase``."""
        self.goes_well(lambda state: state.phase == phase)
        assert self.state.phase == phase
        return self

    def fails(self, fault: Fault, changes: Changes | None = None, *, after: float = 0.0) -> bool:
        """``fault`` strikes where it is now; ``False`` where nothing is that could fail."""
        run = self.state.run
        if self.state.planning or self.state.phase == "preparing":
            self.happens(Refused(run=run, fault=fault, changes=changes), after)
        elif self.state.phase == "loading" or self.state.phase in SERVING:
            self.happens(Ended(run=run, fault=fault, changes=changes), after)
        elif self.state.phase == "draining":
            self.happens(Gone(run=run, left=fault), after)
        else:
            return False
        return True


def through_file(value: KeptDeployment) -> KeptDeployment:
    """As the state file gives it back."""
    return msgspec.json.decode(msgspec.json.encode(value), type=KeptDeployment)
