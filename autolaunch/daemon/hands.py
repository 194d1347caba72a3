"""What a supervisor has done by others: plan, prepare, start, ask for a token, end. Everything here may block.

Each method runs in a thread of its own while the supervisor's loop goes on. What fails raises :class:`Refusal`, which
carries the fault that the machine decides about.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from autolaunch.daemon.deployment import Changes, Deployment, Fault, KeptRun
from autolaunch.daemon.faults import fault_of, of_diagnosis, of_worker
from autolaunch.daemon.process import GRACE_SECONDS, QUIET_SECONDS, STALL_SECONDS
from autolaunch.daemon.refusing import refusing
from autolaunch.launching import LaunchOptions, Prepared, prepare, start
from autolaunch.server import LaunchEvent, Server
from selector.contract import Candidate, LaunchPlan
from selector.errors import AutolaunchError, EngineStartError, PortTaken
from selector.values import Value

if TYPE_CHECKING:
    from pathlib import Path

    from autolaunch.daemon.leases import Lease, Leases
    from autolaunch.daemon.store import Store
    from autolaunch.locked import Lock
    from autolaunch.measured import Measured
    from selector.catalog import Catalog

#: A port of the engine's own is chosen and let go before the engine takes it; who is quicker has it.
PORTS_TRIED = 3
#: Of the memory that was free when it was planned, so much is still as planned when it starts.
_AS_PLANNED = 0.98


class Patience(Value, frozen=True, kw_only=True):
    """Seconds that an engine gets to end by itself, and may do nothing in while it loads and while it serves."""

    grace_seconds: float = GRACE_SECONDS
    stall_seconds: float = STALL_SECONDS
    quiet_seconds: float = QUIET_SECONDS


PATIENCE = Patience()


class Decided(NamedTuple):
    """A candidate, the ranking that it is of, what was chosen before any change, and the lock that it is of."""

    plan: LaunchPlan
    candidate: Candidate
    first: Candidate | None = None
    lock: Lock | None = None


class Run:
    """One try: what it was planned as, and what it has started.

    Attributes:
        number: the machine's count.
        cancelled: set when it is to end; what is being prepared stops.
        server: the engine, once there is one.
        left: what would not end, when it was ended while it was being started.
        mark: stands in the environment of all its processes.
        error: what ended it before it served.
        load_seconds: from the start of the process to the first token.
        started: what the start showed, once that was looked at.
    """

    def __init__(self, number: int, decided: Decided | None = None) -> None:
        self.number = number
        self.decided = decided
        self.cancelled = threading.Event()
        self.prepared: Prepared | None = None
        self.server: Server | None = None
        self.error: AutolaunchError | None = None
        self.lease: Lease | None = None
        self.free_before: Mapping[str, int] = {}
        self.left: Fault | None = None
        self.mark = secrets.token_hex(16)
        self.load_seconds: float | None = None
        self.started: Measured | None = None

    @property
    def devices(self) -> frozenset[str]:
        """The UUIDs of the devices of this host that it was planned on."""
        if self.decided is None:
            return frozenset()
        report = self.decided.plan.hardware
        place = None if self.prepared is None else self.prepared.place
        here = {0}
        if report.hosts:  # of a cluster; before it is prepared nobody knows which of its nodes this is
            here = {each.index for each in report.hosts if place is not None and each.id == place.node}
        by_index = {device.index: device.uuid for device in report.accelerators if device.node in here}
        found = (by_index.get(index) for index in self.decided.candidate.parallel.devices)
        return frozenset(uuid for uuid in found if uuid is not None)

    def kept(self) -> KeptRun | None:
        """What tells its processes from others, for a daemon that comes after this one."""
        if self.server is None:
            return None
        from autolaunch.daemon.survivors import started_at

        process = self.server.process
        return KeptRun(
            mark=self.mark,
            guard_pid=process.guard_pid,
            guard_started=started_at(process.guard_pid),
            engine_pid=process.pid,
            engine_started=started_at(process.pid),
        )


class Planner(Protocol):
    """How a deployment is planned."""

    def __call__(self, deployment: Deployment, changes: Changes) -> Decided:
        """The plan to start.

        Raises:
            Refusal: there is none.
        """
        ...


class Hands:
    """Does what the machine asks for, for one deployment."""

    def __init__(
        self,
        *,
        home: Path,
        catalog: Catalog,
        planner: Planner,
        store: Store | None = None,
        leases: Leases | None = None,
        on_event: Callable[[LaunchEvent], None] = lambda _: None,
        patience: Patience = PATIENCE,
    ) -> None:
        self.home = home
        self.patience = patience
        self.catalog = catalog
        self.planner = planner
        self.store = store
        self.leases = leases
        self.on_event = on_event

    def plan(self, run: Run, deployment: Deployment, changes: Changes) -> None:
        """Puts a plan into ``run``.

        Raises:
            Refusal: there is none, or devices are held by others.
        """
        with refusing(run, deployment):
            run.decided = self.planner(deployment, changes)

    def prepare(self, run: Run, deployment: Deployment) -> None:
        """Weights and environment.

        Raises:
            Refusal: what could not be had.
        """
        assert run.decided is not None, "planned before"  # noqa: S101 - the machine's order
        with refusing(run, deployment):
            run.prepared = prepare(
                run.decided.plan,
                catalog=self.catalog,
                options=self._options(run, deployment),
                on_event=self.on_event,
                candidate=run.decided.candidate,
                cancelled=run.cancelled,
            )

    def launch(self, run: Run, deployment: Deployment, on_started: Callable[[], None]) -> float:
        """Starts the engine, says so by ``on_started``, and waits for a token; returns the seconds it took.

        After an error of a process that was started it may still be there: ``end`` ends it. A port that is not the
        user's choice is changed for another where somebody else took it meanwhile.

        Raises:
            Refusal: no process was started, or it is no use.
        """
        assert run.prepared is not None, "prepared before"  # noqa: S101 - the machine's order
        from autolaunch.daemon.device_memory import free_memory

        with refusing(run, deployment):
            if self.leases is not None:
                run.lease = self.leases.take(deployment.key, run.devices)
            tries = PORTS_TRIED if deployment.port is None else 1
            try:
                run.free_before = free_memory(run.devices)
                while True:
                    try:
                        return self._first_token(run, run.prepared, deployment, on_started)
                    except (PortTaken, EngineStartError) as error:
                        if (
                            not (tries := tries - 1)
                            or run.cancelled.is_set()
                            or fault_of(error).reason != "port in use"
                        ):
                            raise
                        if run.server is not None:
                            run.server.stop()
            except BaseException:
                if run.server is None:  # else its end gives them back
                    self._give_back(run)
                raise

    def _first_token(
        self, run: Run, prepared: Prepared, deployment: Deployment, on_started: Callable[[], None]
    ) -> float:
        run.server = start(prepared, options=self._options(run, deployment), on_event=self.on_event)
        on_started()
        if run.cancelled.is_set():  # asked to end while the process was made
            run.left = self.end(run, wait_for_memory=False)
        try:
            run.load_seconds = run.server.first_token()
        except EngineStartError as error:
            run.server.explain(error, run.server.process.exit_code)
            raise
        return run.load_seconds

    def end(self, run: Run, *, wait_for_memory: bool) -> Fault | None:
        """Ends everything of ``run`` and gives its devices back; what would not end, or is still held, is named."""
        run.cancelled.set()
        if run.server is None:
            return None
        process_ids = run.server.process.process_ids()
        try:
            run.server.stop()
            return (self._cleared(run) or self._memory(run, process_ids)) if wait_for_memory else run.left
        except EngineStartError as error:
            return Fault(reason="processes left", permanent=True, message=error.message, hint=error.hint)
        finally:
            self._give_back(run)

    def probe(self, run: Run) -> str | None:
        """Asks for a token; ``None`` when one came, else what happened instead."""
        from autolaunch.daemon.liveness import ask_for_token

        if run.server is None:
            return None
        return ask_for_token(run.server, quiet_seconds=self.patience.quiet_seconds)

    def ended(self, run: Run, *, serving: bool) -> Fault:
        """Why the engine of ``run`` has ended by itself."""
        from autolaunch.daemon.health import how_it_ended

        assert run.server is not None, "it was started"  # noqa: S101 - only an engine can end
        run.server.process.settle()
        told, code = run.server.diagnosis(), run.server.process.exit_code
        message = f"{run.server.engine.name} {how_it_ended(code)}"
        return of_diagnosis(
            message + (f": {told.sentence}" if told.sentence else ""), told, run.server.tail(), serving=serving
        )

    def worker_died(self, run: Run, pid: int) -> Fault:
        """A process of the engine without which it only seems to live."""
        assert run.server is not None, "it was started"  # noqa: S101 - only an engine has workers
        over_nodes = run.prepared is not None and run.prepared.place is not None
        told = run.server.diagnosis() if over_nodes else None  # of another node only the log tells
        return of_worker(pid, run.server.engine.name, told, run.server.tail())

    def next_changes(
        self, run: Run, deployment: Deployment, changes: Changes, fault: Fault, *, repeated: bool
    ) -> Changes | None:
        """The next step of the ladder (:func:`autolaunch.daemon.ladder.next_changes`)."""
        if run.decided is None or deployment.lock is not None:  # a lock is replayed as it is, or not at all
            return None
        from autolaunch.daemon.ladder import next_changes

        return next_changes(
            run.decided.candidate,
            fault,
            changes,
            deployment,
            report=run.decided.plan.hardware,
            known=self.catalog,
            plan=run.decided.plan,
            first=run.decided.first,
            repeated=repeated,
        )

    def remember(self, run: Run, deployment: Deployment, fault: Fault | None) -> str | None:
        """Keeps for later plans how the candidate of ``run`` did; what is to be said of that, if anything.

        What the user gave it says nothing of the plan: not a try with options, weights or an engine of their own.
        """
        if fault is None:
            self.look(run)
        if self.store is None or run.decided is None or _own(deployment):
            return None
        from autolaunch.daemon.store import where_of

        candidate = run.decided.candidate
        where = where_of(candidate, run.decided.plan.hardware)
        if fault is not None:
            return None if others_came(run) else self.store.failed(where, candidate, fault)
        # That it served says something only where something had failed.
        said = self.store.served(where, candidate) if self.store.tried(where) else self.store.trouble()
        return self.measure(run, deployment, run.started) or said

    def look(self, run: Run) -> None:
        """Looks at what the start showed, beside what the engine said of itself: what its processes hold."""
        from autolaunch.measured import of_start

        server = run.server
        if server is not None and run.load_seconds is not None:
            run.started = of_start(server.figures, resident_bytes=server.memory_bytes(), load_seconds=run.load_seconds)

    def measure(self, run: Run, deployment: Deployment, measured: Measured | None) -> str | None:
        """Keeps for later plans what the candidate of ``run`` showed; what is to be said of that, if anything."""
        if self.store is None or run.decided is None or measured is None or _own(deployment) or others_came(run):
            return None
        from autolaunch.daemon.store import where_of

        candidate = run.decided.candidate
        return self.store.measured(where_of(candidate, run.decided.plan.hardware), candidate, measured)

    def forget(self, deployment: Deployment) -> str | None:
        """Forgets what was remembered of this deployment's model; what is to be said of that, if anything."""
        if self.store is None:
            return None
        model = self.catalog.find_model(deployment.model).model
        return self.store.forget({each.repo for each in model.checkpoints})

    def _options(self, run: Run, deployment: Deployment) -> LaunchOptions:
        return LaunchOptions(
            home=self.home,
            host=deployment.host,
            port=deployment.port or 0,
            served_name=deployment.name,
            offline=deployment.offline,
            model_path=deployment.model_path,
            engine_path=deployment.engine_path,
            extra=deployment.engine_options,
            lock=None if run.decided is None else run.decided.lock,
            nodes=deployment.nodes,
            mark=run.mark,
            own_key=True,
            grace_seconds=self.patience.grace_seconds,
            stall_seconds=self.patience.stall_seconds,
        )

    def _cleared(self, run: Run) -> Fault | None:
        """Waits until nothing of it is left on other nodes: they are planned with next."""
        place = None if run.prepared is None else run.prepared.place
        if place is None:
            return None
        from autolaunch.cluster.placing import cleared, group_of

        left = cleared(place, group_of(run.mark))
        hint = "`ray list placement-groups` tells; the job that it belongs to ends with `ray job stop`, or its node"
        return None if left is None else Fault(reason="processes left", permanent=True, message=left, hint=hint)

    def _memory(self, run: Run, process_ids: frozenset[int]) -> Fault | None:
        if not run.devices:
            return None
        from autolaunch.daemon.device_memory import wait_for_memory

        held = wait_for_memory(run.devices, process_ids, free_before=run.free_before).held
        # What others took meanwhile is theirs, and the next plan's concern; what is ours should be back.
        ours = [each for each in held if any(one.pid in process_ids for one in each.processes)]
        if not ours:
            return None
        named = sorted({one.pid for each in ours for one in each.processes if one.pid in process_ids})
        return Fault(
            reason="processes left",
            permanent=True,
            message=f"device memory is still held by processes of the engine that has ended: {named}",
            hint="they are in the driver's hands; nvidia-smi shows them, a reset of the GPU or a reboot ends them",
        )

    def _give_back(self, run: Run) -> None:
        if run.lease is not None:
            run.lease.release()
            run.lease = None


def _own(deployment: Deployment) -> bool:  # what runs is in part what the user gave it
    return bool(deployment.engine_options or deployment.engine_path or deployment.model_path)


def others_came(run: Run) -> bool:
    """Whether others took memory of the devices between the plan and the start: what fails then fails of that."""
    if run.decided is None:
        return False
    devices = run.decided.plan.hardware.accelerators
    planned = {each.uuid: each.memory_free_bytes for each in devices if each.memory_free_bytes is not None}
    return any(free < _AS_PLANNED * planned.get(uuid, 0) for uuid, free in run.free_before.items())
