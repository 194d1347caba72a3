"""The daemon: the deployments of one configuration, each engine of theirs with a supervisor, on one loop.

It begins by ending what an earlier daemon left and by dealing the machine out; from then on it is ready, however long
the models take. SIGTERM and SIGINT end everything in order, SIGHUP reads the configuration again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from autolaunch.daemon import configuration, machine
from autolaunch.daemon.control.of_daemon import control_of
from autolaunch.daemon.deployed import Deployed
from autolaunch.daemon.deployment import Deployment, Kept, KeptDeployment, fingerprint
from autolaunch.daemon.devices import DeviceTrouble, DeviceWatch
from autolaunch.daemon.gateway.face import Face
from autolaunch.daemon.hands import PATIENCE, Hands, Patience
from autolaunch.daemon.happenings import Command, Replaced, Tell
from autolaunch.daemon.host import Host
from autolaunch.daemon.journal import Journal
from autolaunch.daemon.leases import Leases
from autolaunch.daemon.lock import DaemonLock
from autolaunch.daemon.loop import settle, take_files
from autolaunch.daemon.notify import Notifier
from autolaunch.daemon.replicas import kept_for
from autolaunch.daemon.report import Report, with_retry
from autolaunch.daemon.state_file import StateFile, boot_id
from autolaunch.daemon.store import Store
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.server import LaunchEvent
from selector.errors import AutolaunchError, ConfigurationError

if TYPE_CHECKING:
    from autolaunch.daemon.planning import Share
    from selector.catalog import Catalog
    from selector.hardware import HardwareReport

T = TypeVar("T")

#: Everything that may block at once: a few things a deployment.
THREADS = 32
#: How often the state is written at most, and a load's progress stands in the status anew.
WRITE_SECONDS, STATUS_SECONDS = 0.1, 1.0
#: What all engines, and then all other work, get to end in; of it an engine has its grace and its bound.
END_SECONDS = 45.0


class Daemon:
    """One daemon, from ``run`` until it returns."""

    def __init__(
        self,
        path: Path,
        *,
        home: Path,
        known: Catalog,
        probe: Callable[[], HardwareReport],
        notifier: Notifier,
        journal: Journal,
        patience: Patience = PATIENCE,
    ) -> None:
        """``path`` is the configuration's; ``home`` holds state, engines, logs and what was learned.

        Raises:
            ConfigurationError: the configuration or the file of keys is wrong, or ``home`` cannot be used.
            DaemonRunning: another daemon has this home.
        """
        self.path = path
        self.home = home
        self.known = known
        self.notifier = notifier
        self.report = Report(journal)
        self.patience = patience
        self.configuration = configuration.read(path, known)
        self.deployed = Deployed(home / "daemon" / "deployed.json", known)
        self.host = Host(known, probe)
        #: By the keys of their deployments: a deployment with replicas has one for each.
        self.supervisors: dict[str, Supervisor] = {}
        self.doing: dict[str, LaunchEvent] = {}
        self.face = Face(
            self.configuration.gateway,
            self.supervisors,
            on_fault=lambda error: self.report.fault_of_ours({"exception": error}),
            configuration_ok=lambda: self.report.wrong is None,
            on_host=self.report.host,
        )
        self._control = control_of(self)
        self._lock = DaemonLock(home / "daemon")
        self._file = StateFile(home / "daemon" / "state.json")
        self._boot_id = boot_id()
        self._store = Store(home / "learned.sqlite3")
        self._leases = Leases(home / "leases")
        self._watch = DeviceWatch(self._trouble)
        self._status_at = 0.0
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._write_timer: asyncio.TimerHandle | None = None
        #: One at a time, the start as well: each deals the machine out and adds deployments.
        self.reading = asyncio.Lock()
        self._begun = False

    async def run(self) -> None:
        """Serves until it is told to end; nothing of it runs any more when this returns."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.report.fault_of_ours(context))
        self._ended = asyncio.Event()
        self._hands_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hands")
        # One thread: what is written later is newer.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._set_signals()
        take_files()
        try:
            async with self.reading:
                await self._begin_unless_ended()
            await self._ended.wait()
        finally:
            await self._end()

    # --- begin and end ----------------------------------------------------------------------------------

    async def _begin_unless_ended(self) -> None:
        """A driver that hangs must not keep the daemon from ending; what was kept stays as it was then."""
        begin, ended = self._loop.create_task(self._begin()), self._loop.create_task(self._ended.wait())
        await asyncio.wait((begin, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        begin.cancel()  # nothing, where it is done
        with contextlib.suppress(asyncio.CancelledError):
            await begin

    async def _begin(self) -> None:
        kept, said = self._file.read(self._boot_id)
        if said is not None:
            self.report.say("warning", "state", said)
        self.notifier.status("looking for what an earlier daemon left")
        for said in await self._in_thread(self.deployed.read):
            self.report.say("warning", "deployed", said)
        if (name := self.deployed.taken(self.configuration)) is not None:
            self.report.say("warning", "deployed", "it is in the configuration now, which holds", name)
        from autolaunch.daemon.survivors import end_all

        def tell(name: str, said: str) -> None:
            self.report.say("warning", "engine.left", said, name)

        left = await self._in_thread(end_all, kept, tell)
        self.notifier.status("looking at the machine")
        # One whose engine is not there, for example, is no reason not to keep the others.
        wanted = self.deployed.beside(self.configuration)
        await self._in_thread(lambda: self.host.divide(wanted, {}, tolerant=True))
        if self._ended.is_set():  # told to end before anything was begun: what is kept stays as it is
            return
        # From here to READY nothing waits: whoever is answered finds all deployments.
        await self.face.start()
        await self._control.start()
        self._begun = True
        self._watch.start()
        for deployment in self.host.engines:
            known = left.get(deployment.key) or kept_for(deployment, kept.deployments)
            if known is not None and known.latched is not None:
                fault = known.latched
                self.report.say(
                    "error",
                    "deployment.failed",
                    fault.message,
                    deployment.key,
                    hint=with_retry(fault.hint, deployment.name),
                )
            self._add(deployment, known)
        for key, gone in left.items():
            if key not in self.supervisors and gone.latched is not None:
                self.report.say("error", "engine.left", gone.latched.message, key, hint=gone.latched.hint)
        self.face.route()
        settle()
        self._ping()
        self.notifier.ready(self._status())
        count = len(wanted)
        self.report.say("info", "daemon.ready", f"{count} deployments of {self.path} at {self.face.base_url}")

    async def _end(self) -> None:
        self.notifier.stopping("stopping")
        self.report.say("info", "daemon.stopping", "ending every engine")
        self._watch.close()
        self.face.ending()
        closing = [self._loop.create_task(each.close()) for each in self.supervisors.values()]
        for tasks in ((*closing, *self._leaving.values()), self._tasks):
            # What hangs in a driver or on a disk is not waited for: with the daemon go the guards, and all they have.
            pending = (await asyncio.wait(tasks, timeout=END_SECONDS))[1] if tasks else ()
            if pending:
                self.report.say("error", "daemon.hangs", f"{len(pending)} things did not end within {END_SECONDS:g} s")
        if self._write_timer is not None:
            self._write_timer.cancel()
        # After the engines: whose answers they break off are told so.
        await self.face.close()
        await self._control.close()
        if self._begun:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._write(), END_SECONDS)
        self.report.say("info", "daemon.stopped", "nothing runs any more")
        self._writer.shutdown(wait=False)
        self._hands_pool.shutdown(wait=False)
        self._lock.release()

    def _set_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ended.set)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))

    # --- deployments ------------------------------------------------------------------------------------

    def _add(self, deployment: Deployment, kept: KeptDeployment | None = None) -> None:
        hands = Hands(
            home=self.home,
            catalog=self.known,
            planner=self.host,
            store=self._store,
            leases=self._leases,
            on_event=lambda event: self._hear(deployment.key, event),
            patience=self.patience,
        )
        one = Supervisor(
            deployment,
            hands,
            kept=kept,
            executor=self._hands_pool,
            on_change=self._changed,
            on_tell=self._tell,
        )
        self.supervisors[deployment.key] = one
        one.begin()

    async def _remove(self, name: str) -> None:
        served = {each.name for each in self.host.engines}
        why = "the plan has fewer replicas" if name.partition("#")[0] in served else "it is not to be kept up any more"
        self.report.say("info", "deployment.removed", why, name)
        # It is kept until nothing of it runs: a daemon that is killed meanwhile leaves an engine to be found.
        await self.supervisors[name].close()
        del self.supervisors[name]

    async def reload(self) -> str | None:
        """Reads the configuration again; a wrong one is said, returned, and the old one holds."""
        async with self.reading:
            return "it is ending" if self._ended.is_set() else await self._reload()

    async def _reload(self) -> str | None:
        self.notifier.reloading()
        try:
            wanted = await self._in_thread(configuration.read, self.path, self.known)
            taken = self.deployed.taken(wanted)
            if taken is not None:
                raise ConfigurationError(f"{self.path}: {taken} was deployed while the daemon ran: undeploy it first")
            before = dict(self.host.shares)
            opened = self.face.opened(wanted.gateway)
            try:
                await self.divide(self.deployed.beside(wanted))
            except BaseException:
                opened.close()
                raise
            await self.face.reload(opened)
        except AutolaunchError as error:
            self.report.say(
                "error", "configuration.wrong", f"{error.message}; the old configuration holds", hint=error.hint
            )
            self.report.wrong = error.message
            self.notifier.ready(self._status())
            return error.message
        self.report.wrong = None
        self.configuration = wanted
        if not await self.take_over(before):
            return "it is ending"
        self.report.say("info", "configuration.read", f"{len(wanted.deployments)} deployments of {self.path}")
        self.notifier.ready(self._status())
        return None

    async def divide(self, wanted: tuple[Deployment, ...]) -> None:
        """Deals the machine out anew; raises ``AutolaunchError`` where wishes cannot be, and all is as before."""
        running = (one for one in self.supervisors.values() if one.state.phase in machine.BUSY)
        free = {uuid: free for one in running for uuid, free in one.run.free_before.items()}
        await self._in_thread(self.host.divide, wanted, free)

    async def take_over(self, before: Mapping[str, Share]) -> bool:
        """Has the engines be those that the machine was divided for; whether it did not end meanwhile."""
        keys = {each.key for each in self.host.engines}
        for name in [name for name in self.supervisors if name not in keys]:
            self._leaving[name] = asyncio.ensure_future(self._remove(name))
        if self._leaving:
            await asyncio.gather(*self._leaving.values())
            self._leaving.clear()
        if self._ended.is_set():  # meanwhile: nothing is begun any more
            return False
        for deployment in self.host.engines:
            one = self.supervisors.get(deployment.key)
            if one is None:
                now = {key: each.kept() for key, each in self.supervisors.items()}
                self._add(deployment, kept_for(deployment, now))
                continue
            one.post(Replaced(deployment=deployment))
            share = self.host.shares[deployment.key]
            if one.state.phase == "failed" and share != before.get(deployment.key):
                one.post(Command(verb="retry"))  # with another share of the machine it has failed of nothing yet
            candidate = one.state.candidate
            if candidate is None or share == before.get(deployment.key):
                continue
            if share.devices is not None and not share.devices.issuperset(candidate.parallel.devices):
                one.post(Command(verb="restart"))  # its devices are another's from now on
        self.face.route()
        return True

    @property
    def ending(self) -> bool:
        """Whether it was told to end."""
        return self._ended.is_set()

    # --- what is heard ----------------------------------------------------------------------------------

    def _tell(self, one: Supervisor, tell: Tell) -> None:
        self.report.tell(one, tell)
        self.face.tell(one, tell)

    def _changed(self, one: Supervisor) -> None:
        self.face.changed(one)
        if self._write_timer is None and not self._ended.is_set():
            self._write_timer = self._loop.call_later(WRITE_SECONDS, self._write_soon)
        self.notifier.status(self._status())

    def _hear(self, name: str, event: LaunchEvent) -> None:
        """What a launch says, from its thread."""
        now = time.monotonic()
        self.doing[name] = event
        if not self.report.hear(name, event) and now - self._status_at < STATUS_SECONDS:
            return
        self._status_at = now
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self.notifier.status(self._status()))

    def _trouble(self, trouble: DeviceTrouble) -> None:
        """A device is in trouble, from the thread that watches them."""
        self.face.trouble(trouble)
        self.report.say("error" if trouble.lost else "warning", "device", trouble.message, hint=trouble.hint)
        if trouble.lost and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lost, trouble)

    def _lost(self, trouble: DeviceTrouble) -> None:
        lost = tuple(each for each in (trouble.uuid, *trouble.slices) if each is not None)
        for one in self.supervisors.values():
            mine = tuple(each for each in lost if each in one.run.devices)
            if mine:
                one.lost(mine, trouble.message)

    # --- what is said and kept --------------------------------------------------------------------------

    def _status(self) -> str:
        return self.report.status(self.supervisors.values())

    def _write_soon(self) -> None:
        self._write_timer = None
        self._spawn(self._write())

    async def _write(self) -> None:
        deployments = {
            name: replace(one.kept(), of=fingerprint(one.state.deployment)) for name, one in self.supervisors.items()
        }
        kept = Kept(boot_id=self._boot_id, deployments=deployments)
        said = await self._loop.run_in_executor(self._writer, self._file.write, kept)
        if said is not None:
            self.report.say("warning", "state", said)

    def _ping(self) -> None:
        """This very loop turns: nothing else may say so."""
        if self.notifier.watchdog_seconds is not None:
            self.notifier.watchdog()
            self._loop.call_later(self.notifier.watchdog_seconds / 2, self._ping)

    # --- small things -----------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, object]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.report.fault_of_ours({"exception": error})

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._hands_pool, call, *arguments)
