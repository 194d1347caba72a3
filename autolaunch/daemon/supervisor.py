"""One deployment, kept up: the machine's actions carried out on an asyncio loop.

The machine decides (:mod:`autolaunch.daemon.machine`), the hands do (:mod:`autolaunch.daemon.hands`, in threads), and
what is here passes events one way and actions the other. Everything but ``post_from_thread`` belongs to the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import TYPE_CHECKING, TypeVar

import psutil

from autolaunch.daemon import machine
from autolaunch.daemon.deployment import Changes, Deployment, Fault, KeptDeployment
from autolaunch.daemon.faults import Refusal
from autolaunch.daemon.gateway.routing import Traffic
from autolaunch.daemon.hands import Run
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
    Tell,
    Used,
)
from autolaunch.daemon.machine import State

if TYPE_CHECKING:
    from autolaunch.daemon.hands import Decided, Hands

T = TypeVar("T")

#: How often a serving engine's output and its workers are looked at: two readings of what is at hand.
LOOK_SECONDS = 2.0
#: How often it is kept what requests showed, besides at the end: a daemon may be killed.
FOLD_SECONDS = 300.0


class Supervisor:
    """Keeps one deployment as its state says.

    Attributes:
        state: the machine's, replaced at every step.
        run: the present try, or the last.
        ran: the last try before it that had an engine.
        traffic: what passes to the engine: counted by the gateway, looked at here.
        load_seconds: from the last start to its first token.
    """

    def __init__(
        self,
        deployment: Deployment,
        hands: Hands,
        *,
        kept: KeptDeployment | None = None,
        executor: Executor | None = None,
        on_change: Callable[[Supervisor], None] = lambda _: None,
        on_tell: Callable[[Supervisor, Tell], None] = lambda _self, _tell: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_change`` is called after every step that changed the state, ``on_tell`` with what is to be said.

        ``executor`` runs the hands; by default the loop's own.
        """
        self.state: State = machine.restored(deployment, kept or KeptDeployment(), clock())
        self.run = Run(0)
        self.ran = self.run
        self._decided = self.run
        self.hands = hands
        self._executor = executor
        self._on_change = on_change
        self._on_tell = on_tell
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._work: asyncio.Task[object] | None = None
        self._watched = -1
        self._workers: tuple[psutil.Process, ...] = ()
        self.traffic = Traffic()
        self.load_seconds: float | None = None
        self._seen_answers = 0
        self._folded_at = 0.0
        self._folded = 0
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Lets it go, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._step(None)

    def post(self, event: Event) -> None:
        """Something has happened."""
        self._step(event)

    def lost(self, devices: tuple[str, ...], message: str) -> None:
        """Devices are no longer there for work."""
        fault = Fault(reason="device lost", permanent=True, message=message, devices=devices)
        changes = self.next_changes(self.run, fault) if self.state.phase in machine.BUSY else None
        self.post(DevicesLost(devices=devices, message=message, changes=changes))

    def post_from_thread(self, event: Event) -> None:
        """As ``post``, from any thread; nothing happens once the loop is closed."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.post, event)

    async def until(self, true: Callable[[State], bool]) -> State:
        """Waits for a state of which ``true`` holds."""
        while not true(self.state):
            self._changed.clear()
            await self._changed.wait()
        return self.state

    async def close(self) -> None:
        """Ends what runs, in order, and what was begun for it."""
        self.post(Command(verb="close"))
        await self.until(lambda state: state.at_rest)
        for timer in (self._timer, self._looking):
            if timer is not None:
                timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def decided(self) -> Decided | None:
        """The present plan; the one before, while there is none."""
        return self.run.decided or self._decided.decided

    def kept(self) -> KeptDeployment:
        """What a later daemon has to know."""
        from msgspec.structs import replace

        return replace(machine.kept(self.state, self._clock()), run=self.run.kept())

    # --- the machine ------------------------------------------------------------------------------------

    def _step(self, event: Event | None) -> None:
        before = self.state
        self.state, actions = machine.step(before, event, self._clock())
        for action in actions:
            if not isinstance(action, Tell):
                self._do(action)
        self._set_timer()
        if self.state != before:
            self._changed.set()
        # Last, what others make of it: should they fail, nothing that has to be done is left undone.
        for action in actions:
            if isinstance(action, Tell):
                self._on_tell(self, action)
        if self.state != before:
            self._on_change(self)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = machine.wakes_at(self.state)
        if at is not None and self._loop is not None:
            # A moment later than asked: a step that comes too early would only set the timer again.
            self._timer = self._loop.call_later(max(0.0, at - self._clock()) + 0.001, self._step, None)

    def _do(self, action: Action) -> None:
        match action:
            case Plan(run=number):
                self.ran = self.run if self.run.server is not None else self.ran
                self.run = Run(number)
                self._work = self._spawn(self._plan(self.run, action), lambda fault: Refused(run=number, fault=fault))
            case Prepare(run=number):
                self._work = self._spawn(self._prepare(self.run), lambda fault: Refused(run=number, fault=fault))
            case Launch(run=number):
                self._work = self._spawn(self._launch(self.run), lambda fault: Ended(run=number, fault=fault))
            case Probe(run=number):
                self._spawn(self._probe(self.run), lambda fault: Ended(run=number, fault=fault))
            case End(run=number):
                self._spawn(self._end(self.run, self._work), lambda fault: Gone(run=number, left=fault))
            case Remember():
                self._spawn(self._keep(self.hands.remember, self.run, self.state.deployment, action.fault))
            case Forget():
                self._spawn(self._keep(self.hands.forget, self.state.deployment))

    def _spawn(
        self, work: Coroutine[object, object, object], failed: Callable[[Fault], Event] | None = None
    ) -> asyncio.Task[object]:
        """``failed`` is what a fault of ours in ``work`` means to its run; without it the fault is only said."""
        assert self._loop is not None, "begun before"  # noqa: S101 - nothing steps before it has a loop
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, failed))
        return task

    def _done(self, task: asyncio.Task[object], failed: Callable[[Fault], Event] | None) -> None:
        """Where the deployment depends on what failed, it ends in a state that explains it."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        message = f"a fault of autolaunch, not of yours: {type(error).__name__}: {error}"
        if failed is not None:
            self._step(failed(Fault(reason="fault of ours", permanent=True, message=message)))
        self._on_tell(self, Tell(name="internal", level="error", message=message))

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        assert self._loop is not None, "begun before"  # noqa: S101 - nothing steps before it has a loop
        return await self._loop.run_in_executor(self._executor, call, *arguments)

    # --- what it has done -------------------------------------------------------------------------------

    def _failed(self, kind: type[Refused | Ended], run: Run, fault: Fault) -> None:
        """Tells the machine, with what could be changed because of it."""
        self._step(kind(run=run.number, fault=fault, changes=self.next_changes(run, fault)))

    def next_changes(self, run: Run, fault: Fault) -> Changes | None:
        """The next step of the ladder from where ``run`` is; from the plan before, where there is none any more."""
        if run.decided is None:
            run = self._decided
        repeated = self.state.fault is not None and self.state.fault.reason == fault.reason
        return self.hands.next_changes(run, self.state.deployment, self.state.changes, fault, repeated=repeated)

    async def _keep(self, call: Callable[..., str | None], *arguments: object) -> None:
        said = await self._in_thread(call, *arguments)
        if said is not None:
            self._on_tell(self, Tell(name="memory", level="warning", message=said))

    async def _plan(self, run: Run, action: Plan) -> None:
        try:
            await self._in_thread(self.hands.plan, run, self.state.deployment, action.changes)
        except Refusal as refusal:
            self._failed(Refused, run, refusal.fault)
            return
        assert run.decided is not None, "planned just now"  # noqa: S101 - or it was refused
        if run is self.run:
            self._decided = run
        self._step(Planned(run=run.number, candidate=run.decided.candidate))

    async def _prepare(self, run: Run) -> None:
        try:
            await self._in_thread(self.hands.prepare, run, self.state.deployment)
        except Refusal as refusal:
            self._failed(Refused, run, refusal.fault)
            return
        self._step(Prepared(run=run.number))

    async def _launch(self, run: Run) -> None:
        def started() -> None:
            # Kept before anything else: a daemon that dies now leaves an engine that has to be found.
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._on_change, self)

        try:
            seconds = await self._in_thread(self.hands.launch, run, self.state.deployment, started)
        except Refusal as refusal:
            self._failed(Refused if run.server is None else Ended, run, refusal.fault)
            return
        if run.number == self.state.run and self.state.phase == "loading":
            self._watch(run)
        self.load_seconds = seconds
        self._step(Ready(run=run.number, seconds=seconds))

    async def _probe(self, run: Run) -> None:
        told = await self._in_thread(self.hands.probe, run)
        self._step(Probed(run=run.number, ok=told is None, message=told or ""))

    async def _end(self, run: Run, work: asyncio.Task[object] | None) -> None:
        self._unwatch()
        self._fold(run)
        closing = self.state.closing
        left = await self._in_thread(lambda: self.hands.end(run, wait_for_memory=not closing))
        if work is not None and not work.done():
            # It sees that its run was cancelled, or its engine end; one that was being started is ended by it.
            await asyncio.wait((work,))
            left = await self._in_thread(lambda: self.hands.end(run, wait_for_memory=False)) or left
        self._step(Gone(run=run.number, left=left))

    # --- watching an engine that serves -----------------------------------------------------------------

    def _watch(self, run: Run) -> None:
        assert self._loop is not None and run.server is not None, "it serves"  # noqa: S101 - a token came
        process = run.server.process
        if process.ends_on >= 0:
            self._watched = process.ends_on
            self._loop.add_reader(self._watched, self._ended, run)
        self._workers = process.titled(run.server.engine.behaviour.worker_titles)
        self._seen_answers = self.traffic.answers
        self.traffic.pace.clear()
        self._folded, self._folded_at = 0, self._clock()
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look, run)

    def _unwatch(self) -> None:
        if self._loop is not None and self._watched >= 0:
            self._loop.remove_reader(self._watched)
        self._watched = -1
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _fold(self, run: Run) -> None:
        """Has kept what requests showed of the engine, where there were more since the last time."""
        pace, self._folded_at = self.traffic.pace, self._clock()
        if pace.added == self._folded or (measured := pace.measured()) is None:
            return
        self._folded = pace.added
        self._spawn(self._keep(self.hands.measure, run, self.state.deployment, measured))

    def _ended(self, run: Run) -> None:
        if run.server is None or not run.server.process.stopping:
            return
        self._unwatch()
        self._failed(Ended, run, self.hands.ended(run, serving=True))

    def _look(self, run: Run) -> None:
        """Once in a while: is every worker there, and were there requests?"""
        if self._loop is None or run.server is None or run.number != self.state.run:
            return
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look, run)
        dead = next((worker.pid for worker in self._workers if not lives(worker)), None)
        if dead is not None:
            self._unwatch()
            self._failed(Ended, run, self.hands.worker_died(run, dead))
            return
        if self._clock() - self._folded_at >= FOLD_SECONDS:
            self._fold(run)
        if self.traffic.answers != self._seen_answers:
            self._seen_answers = self.traffic.answers
            self._step(Used(run=run.number))
        elif self.traffic.under_way:
            # One that takes long gives nothing for a while, and must not be cut off as idle.
            self._step(Used(run=run.number, waiting=True))


def lives(process: psutil.Process) -> bool:
    """Whether this very process is there (and no other by its id) and not only waiting to be buried."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
