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
from typing import TYPE_CHECKING, Literal, Protocol, Self

import msgspec

from autolaunch.daemon.health import CAUSE_LINES, STALL_SECONDS, wait_until_ready
from autolaunch.daemon.ports import Address, free_port
from autolaunch.daemon.process import GRACE_SECONDS, EngineProcess
from autolaunch.daemon.runs import log_place, run_folder
from autolaunch.weights import local_checkpoint, weights_of
from engines import registry
from engines.base import Engine, Serving, first_replica, planned_package, visible_devices
from engines.environments import Environments, without_engine_secrets
from engines.flags import refuse_unknown
from engines.logs import Diagnosis, Figures, LogReader
from selector.contract import Candidate, Command, LaunchPlan
from selector.engine_facts import EngineFacts
from selector.errors import EngineInstallError, EngineStartError, NoFeasiblePlan, UsageError
from selector.facts import ModelFacts
from selector.hardware import HardwareReport
from selector.values import Value

if TYPE_CHECKING:
    from engines.installations import Installation

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

    ``home`` holds engines, miniatures, logs and the run's own folder. ``engine_path`` is an engine that somebody else
    installed, used instead of an environment of ours. ``extra`` goes to the engine. With ``dummy_weights`` it makes
    them up (vLLM and SGLang), and ``model_path`` need hold none.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str | None = None
    offline: bool = False
    model_path: Path | None = None
    engine_path: Path | None = None
    extra: tuple[str, ...] = ()
    dummy_weights: bool = False
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
        api_key: what a request has to carry, or ``None``.
        command: what runs.
        log_path: everything the engine prints (bounded).
    """

    def __init__(
        self,
        *,
        process: EngineProcess,
        reader: LogReader,
        address: Address,
        served_name: str,
        engine: Engine,
        command: Command,
        log_path: Path,
        run_directory: Path,
        run_lock: int,
        extra: tuple[str, ...],
        devices: frozenset[str],
        api_key: str | None,
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
        self._reader = reader
        self._run_directory = run_directory
        self._run_lock = run_lock
        self._extra = extra
        self._devices = devices
        self.api_key = api_key
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

    def memory_bytes(self) -> int | None:
        """What its processes hold: of the fullest of its devices, or of main memory where it has none.

        ``None`` where the driver does not tell (in a container it may know processes by other ids).
        """
        if not self._devices:
            return self._process.resident_bytes()
        from selector.probe import probe

        ours = self._process.process_ids()
        held = [
            sum(each.used_bytes or 0 for each in device.processes if each.pid in ours)
            for device in probe().accelerators
            if device.uuid in self._devices
        ]
        return max(held, default=0) or None

    @property
    def figures(self) -> Figures:
        """What the engine has reported of itself so far: its weights, its KV cache, its times."""
        return self._reader.figures

    def diagnosis(self) -> Diagnosis:
        """Why it ended, from its last lines and its exit code."""
        return self._reader.diagnose(self._process.tail(CAUSE_LINES), self._process.poll())

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
                on_progress=self._tell_progress,
                reader=self._reader,
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

    def _tell_progress(self, _seconds: float, line: str | None) -> None:
        progress = self._reader.progress
        if progress is None:
            self._say("loading", line or "loading", None)
        else:
            self._say("loading", progress.message, progress.fraction)

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
    _refuse_what_is_not_started(candidate)
    served_name = _served_name(options.served_name or plan.model)
    facts, model = catalog.engine(candidate.engine.name), catalog.model(plan.model)
    if model.generated and candidate.checkpoint.revision is not None and options.model_path is None:
        raise UsageError(f"{model.id} is generated on this machine: it has no revisions", hint="leave --revision out")
    installation = None if options.engine_path is None else _installation(options.engine_path, candidate, facts, model)
    if installation is None:
        _refuse_without_environment(candidate, facts, plan.hardware)

    address = Address(host=options.host, port=free_port(options.host, options.port))
    say("port", f"port {address.port} is free")
    # Refused before the download: options that are ours or that it has not, programs that are not there.
    trial = Serving(model=served_name, served_name=served_name, extra=options.extra)
    if installation is not None:
        trial = msgspec.structs.replace(trial, executable_directory=str(installation.bin_directory))
        installation.runs(engine.command(candidate, model, trial))
    else:
        engine.command(candidate, model, trial)
    refuse_unknown(options.extra, candidate.engine.package, candidate.engine.version)
    folder = _weights(candidate, model, options, say)
    say("weights", f"weights are in {folder}", 1.0)
    bin_directory = _programs(candidate, facts, installation, options, say)

    run_directory, run_lock = run_folder(options.home / "run", served_name, folder)
    try:
        devices = first_replica(plan.hardware, candidate)
        by_name = engine.behaviour.names_itself_by_path
        serving = Serving(
            model=served_name if by_name else str(weights_of(folder, candidate.checkpoint)),
            served_name=served_name,
            host=address.host,
            port=address.port,
            executable_directory=str(bin_directory),
            devices=devices,
            visible=visible_devices(plan.hardware, devices, launched=True),
            extra=options.extra,
        )
        command = engine.command(candidate, model, serving)
        if installation is not None:
            command = installation.runs(command)
        log_path = log_place(options.home / "logs", engine.name, run_directory)
        say("starting", f"starting {engine.name} {candidate.engine.version}")
        reader = LogReader(engine.name, candidate.engine.version)
        process = EngineProcess(
            command.argv,
            environment=engine_environment(os.environ, command, bin_directory, run_directory) | engine.secrets(serving),
            working_directory=run_directory,
            log_path=log_path,
            grace_seconds=options.grace_seconds,
            on_line=reader.feed,
        )
    except BaseException:
        shutil.rmtree(run_directory, ignore_errors=True)
        os.close(run_lock)
        raise
    return Server(
        process=process,
        reader=reader,
        address=address,
        served_name=served_name,
        engine=engine,
        command=command,
        log_path=log_path,
        run_directory=run_directory,
        run_lock=run_lock,
        extra=options.extra,
        devices=frozenset(device.uuid for device in devices if device.uuid is not None),
        api_key=None,
        stall_seconds=options.stall_seconds,
        say=say,
    )


def _programs(
    candidate: Candidate,
    facts: EngineFacts,
    installation: Installation | None,
    options: LaunchOptions,
    say: Callable[[Stage, str, float | None], None],
) -> Path:
    """Where the engine's programs are: in the installation that the user named, or in an environment of ours."""
    if installation is not None:
        say("environment", f"{candidate.engine.name} {candidate.engine.version} is in {installation.place}", 1.0)
        return installation.bin_directory
    facts, package = planned_package(facts, candidate.engine)
    environment = Environments.of(options.home).ensure(
        facts, package, on_progress=lambda progress: say("environment", progress.message, None)
    )
    say("environment", f"{package.name} is in {environment.directory}", 1.0)
    return environment.bin_directory


def _weights(
    candidate: Candidate, model: ModelFacts, options: LaunchOptions, say: Callable[[Stage, str, float | None], None]
) -> Path:
    if options.dummy_weights and options.model_path is not None:
        return options.model_path.absolute()
    return local_checkpoint(
        candidate,
        model,
        home=options.home,
        model_path=options.model_path,
        offline=options.offline,
        on_progress=lambda message, fraction: say("weights", message, fraction),
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


def _installation(path: Path, candidate: Candidate, facts: EngineFacts, model: ModelFacts) -> Installation:
    """The engine at ``path``, which has to be the one that was planned with."""
    from engines import installations

    found = installations.chosen(path, (facts,), model)
    if found.version != candidate.engine.version:
        raise EngineStartError(
            f"{path} holds {found.engine} {found.version}, and {candidate.engine.version} was planned with"
        )
    return found


def _refuse_what_is_not_started(candidate: Candidate) -> None:
    argv = " ".join(candidate.command.argv) if candidate.command is not None else None
    hint = f"the command it would run: {argv}" if argv else None
    if candidate.parallel.nodes > 1:
        raise EngineStartError("this release starts engines on one machine", hint=hint)
    if candidate.parallel.data > 1:
        raise EngineStartError(
            f"this release starts one replica, and the plan has {candidate.parallel.data}",
            hint="--data-parallel 1 plans for one" + (f"; {hint}" if hint else ""),
        )


def _refuse_without_environment(candidate: Candidate, facts: EngineFacts, report: HardwareReport) -> None:
    """An environment made for other devices would leave the planned ones alone, and serve from the processor."""
    devices = first_replica(report, candidate)
    kind = devices[0].vendor if devices else "cpu"
    _, package = planned_package(facts, candidate.engine)
    if kind not in package.devices:
        raise EngineInstallError(
            f"no environment of {facts.name} for {kind} devices can be made: there is no published package of it",
            hint=f"install {facts.title} yourself and give its place with --engine-path, or choose another --engine",
        )


def _served_name(name: str) -> str:
    if SERVED_NAME.fullmatch(name) is None or ".." in name:
        raise UsageError(
            f"{name!r} cannot be a served name",
            hint="letters, digits, '.', '_' and '-', as in glm-4.6 or zai-org/GLM-4.6",
        )
    return name
