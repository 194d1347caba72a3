"""A launch in the foreground: port, weights, environment, start; ready when a token came back; stop.

One engine, one replica, its own port. The daemon's supervisor and gateway build on the same parts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Protocol, Self

from autolaunch.daemon.health import STALL_SECONDS, wait_until_ready
from autolaunch.daemon.ports import Address, free_port
from autolaunch.daemon.process import GRACE_SECONDS, EngineProcess
from autolaunch.daemon.runs import log_place, run_folder
from autolaunch.weights import local_checkpoint
from engines import registry
from engines.base import Engine, Serving, first_replica, planned_package, visible_devices
from engines.environments import Environments, InstallProgress, without_engine_secrets
from engines.flags import refuse_unknown
from selector.contract import Candidate, Command, LaunchPlan
from selector.engine_facts import EngineFacts
from selector.errors import EngineStartError, NoFeasiblePlan, UsageError
from selector.facts import ModelFacts
from selector.values import Value

Stage = Literal["port", "weights", "environment", "starting", "loading", "ready", "stopping", "stopped"]

#: One part, or two as a hub's id has; nothing that is special to a file system, a shell or an engine.
SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")

#: What tells a process that systemd watches it; an engine is not that process.
_NOT_FOR_ENGINES = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")


class Catalogue(Protocol):
    """What a launch asks of :mod:`selector.catalog`."""

    def engine(self, name: str) -> EngineFacts: ...
    def model(self, model_id: str) -> ModelFacts: ...


class LaunchOptions(Value, frozen=True, kw_only=True):
    """How to launch. ``port`` 0 takes a free one; ``served_name`` is the plan's model by default.

    ``home`` holds engines, miniatures, logs and the run's own folder. ``extra`` goes to the engine.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str | None = None
    offline: bool = False
    model_path: Path | None = None
    extra: tuple[str, ...] = ()
    grace_seconds: float = GRACE_SECONDS
    stall_seconds: float = STALL_SECONDS


class LaunchEvent(Value, frozen=True, kw_only=True):
    """One thing that happened. ``seconds`` since the launch began; ``fraction`` 0 to 1 where it is known."""

    stage: Stage
    message: str
    fraction: float | None = None
    seconds: float = 0.0


class Server:
    """A launched engine. As a context manager it stops when left.

    Attributes:
        base_url: what an OpenAI client takes, such as ``http://127.0.0.1:8000/v1``.
        served_name: the model's name in requests.
        command: what runs.
        log_path: everything the engine prints (bounded).
    """

    def __init__(
        self,
        *,
        process: EngineProcess,
        address: Address,
        served_name: str,
        engine: Engine,
        command: Command,
        log_path: Path,
        run_directory: Path,
        run_lock: int,
        extra: tuple[str, ...],
        stall_seconds: float,
        say: Callable[[Stage, str, float | None], None],
    ) -> None:
        self.address = address
        self.base_url = address.base_url
        self.served_name = served_name
        self.engine = engine
        self.command = command
        self.log_path = log_path
        self._process = process
        self._run_directory = run_directory
        self._run_lock = run_lock
        self._extra = extra
        self._stall_seconds = stall_seconds
        self._say = say
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The engine's process; it leads its own session."""
        return self._process.pid

    def poll(self) -> int | None:
        """``None`` while it runs, then its exit code (negative: a signal)."""
        return self._process.poll()

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last lines the engine printed."""
        return self._process.tail(count)

    def wait_ready(self, timeout: float | None = None) -> float:
        """Waits until a one-token completion came back; returns the seconds it took.

        Without ``timeout`` (seconds) only a stall ends the waiting. On an error everything is stopped.

        Raises:
            EngineStartError: it exited, stalled, or refuses; its last lines are the error's notes.
            PortTaken: another program answers on the port.
        """
        try:
            seconds = wait_until_ready(
                self._process,
                address=self.address,
                model=self.served_name,
                engine=self.engine.name,
                stall_seconds=self._stall_seconds,
                timeout_seconds=timeout,
                on_progress=lambda _seconds, line: self._say("loading", line or "loading", None),
            )
        except BaseException as error:
            code = self.stop()
            if not isinstance(error, EngineStartError):
                raise
            if self._extra and (code == 0 or "bad argument" in error.message):
                self._blame_options(error, code)
            error.hint = error.hint or f"its output is in {self.log_path}"
            raise
        self._say("ready", f"{self.served_name} answers at {self.base_url}", 1.0)
        return seconds

    def _blame_options(self, error: EngineStartError, code: int | None) -> None:
        """Whoever passes options on to an engine wants to hear that it ended on them, not that it failed to load."""
        passed = " ".join(self._extra)
        if code == 0:  # as on --help
            error.message = f"{self.engine.name} ended on the options passed to it after --: {passed}"
        error.hint = f"{self.engine.name} was given, after --: {passed}; all it printed is in {self.log_path}"
        error.args = (error.message,)

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the engine ends (``None``: as long as it takes); its exit code, or ``None``."""
        if timeout is not None:
            return self._process.wait(timeout)
        while (code := self._process.wait(3600.0)) is None:
            pass
        return code

    def stop(self) -> int | None:
        """Ends the engine and all it started, within the grace time and a bound; then its traces go.

        Raises:
            EngineStartError: processes are left that would not end; they are named.
        """
        if self._stopped:
            return self._process.poll()
        self._say("stopping", f"stopping {self.engine.name}", None)
        try:
            code = self._process.stop()
        finally:
            self._stopped = True
            shutil.rmtree(self._run_directory, ignore_errors=True)
            os.close(self._run_lock)
        self._say("stopped", f"{self.engine.name} has ended", None)
        return code


def launch(
    plan: LaunchPlan,
    *,
    catalog: Catalogue,
    options: LaunchOptions,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    candidate: Candidate | None = None,
) -> Server:
    """Prepares and starts ``candidate`` (the plan's chosen one) and returns at once; see ``Server.wait_ready``.

    Raises:
        NoFeasiblePlan: nothing was chosen.
        PortTaken, UsageError: found before anything heavy.
        DownloadError, EngineInstallError, EngineStartError: what failed.
    """
    candidate = candidate or plan.chosen
    if candidate is None:
        raise NoFeasiblePlan(
            f"no plan for {plan.model} fits this machine", hint=f"autolaunch plan {plan.model} says what would"
        )
    started = time.monotonic()

    def say(stage: Stage, message: str, fraction: float | None = None) -> None:
        on_event(LaunchEvent(stage=stage, message=message, fraction=fraction, seconds=time.monotonic() - started))

    engine = registry.engine(candidate.engine.name)
    _refuse_what_is_not_started(engine, candidate)
    served_name = _served_name(options.served_name or plan.model)
    facts, model = catalog.engine(candidate.engine.name), catalog.model(plan.model)
    if model.generated and candidate.checkpoint.revision is not None and options.model_path is None:
        raise UsageError(f"{model.id} is generated on this machine: it has no revisions", hint="leave --revision out")
    facts, package = planned_package(facts, candidate.engine)

    address = Address(host=options.host, port=free_port(options.host, options.port))
    say("port", f"port {address.port} is free")
    # Refused before the download: options that are ours, and those that the engine does not have.
    engine.command(candidate, model, Serving(model=served_name, served_name=served_name, extra=options.extra))
    refuse_unknown(options.extra, candidate.engine.package, candidate.engine.version)
    folder = local_checkpoint(
        candidate,
        model,
        home=options.home,
        model_path=options.model_path,
        offline=options.offline,
        on_progress=lambda message, fraction: say("weights", message, fraction),
    )
    say("weights", f"weights are in {folder}", 1.0)

    def installing(progress: InstallProgress) -> None:
        say("environment", progress.message)

    environment = Environments(options.home / "engines").ensure(facts, package, on_progress=installing)
    say("environment", f"{package.name} is in {environment.directory}", 1.0)

    run_directory, run_lock = run_folder(options.home / "run", served_name, folder)
    try:
        devices = first_replica(plan.hardware, candidate)
        by_name = engine.behaviour.names_itself_by_path
        serving = Serving(
            model=served_name if by_name else str(folder),
            served_name=served_name,
            host=address.host,
            port=address.port,
            executable_directory=str(environment.bin_directory),
            devices=devices,
            visible=visible_devices(plan.hardware, devices, launched=True),
            extra=options.extra,
        )
        command = engine.command(candidate, model, serving)
        log_path = log_place(options.home / "logs", engine.name, run_directory)
        say("starting", f"starting {engine.name} {facts.version}")
        process = EngineProcess(
            command.argv,
            environment=engine_environment(os.environ, command, environment.bin_directory, run_directory)
            | engine.secrets(serving),
            working_directory=run_directory,
            log_path=log_path,
            grace_seconds=options.grace_seconds,
        )
    except BaseException:
        shutil.rmtree(run_directory, ignore_errors=True)
        os.close(run_lock)
        raise
    return Server(
        process=process,
        address=address,
        served_name=served_name,
        engine=engine,
        command=command,
        log_path=log_path,
        run_directory=run_directory,
        run_lock=run_lock,
        extra=options.extra,
        stall_seconds=options.stall_seconds,
        say=say,
    )


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise ``SystemExit(128 + number)``, so that what runs is stopped in order.

    For the main thread of a program. Without it the guard stops the engine all the same, a moment after
    the launcher has gone.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def engine_environment(
    environ: Mapping[str, str], command: Command, bin_directory: Path, run_directory: Path
) -> dict[str, str]:
    """All that the engine gets: the caller's environment less credentials and what is not for it.

    Its hub cache is an empty folder of the run: it serves a local folder, offline, and must neither find
    other models nor the user's token.
    """
    environment = {
        name: value for name, value in without_engine_secrets(environ).items() if not name.startswith(_NOT_FOR_ENGINES)
    }
    environment |= {
        "PATH": os.pathsep.join((str(bin_directory), environ.get("PATH", os.defpath))),
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": str(run_directory / ".cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**environment, **command.env}


def _refuse_what_is_not_started(engine: Engine, candidate: Candidate) -> None:
    argv = " ".join(candidate.command.argv) if candidate.command is not None else None
    hint = f"the command it would run: {argv}" if argv else None
    if not engine.starts:
        raise EngineStartError(
            f"this release plans for {engine.name} and does not start it; it starts mlx and transformers", hint=hint
        )
    if candidate.parallel.data > 1 or candidate.parallel.nodes > 1:
        raise EngineStartError("this release starts one replica on one machine", hint=hint)


def _served_name(name: str) -> str:
    if SERVED_NAME.fullmatch(name) is None or ".." in name:
        raise UsageError(
            f"{name!r} cannot be a served name",
            hint="letters, digits, '.', '_' and '-', as in glm-4.6 or zai-org/GLM-4.6",
        )
    return name
