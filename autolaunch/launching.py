"""A launch: port, weights, environment (``prepare``), the engine's process (``start``); stop.

One engine, one replica, its own port. The supervisor (:mod:`autolaunch.daemon.supervisor`) builds on the same parts.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

import msgspec

from autolaunch.daemon.ports import Address, free_port
from autolaunch.daemon.process import GRACE_SECONDS, STALL_SECONDS, EngineProcess
from autolaunch.daemon.runs import log_place, run_folder
from autolaunch.given import served_name as checked_name
from autolaunch.given_environment import engine_environment, kept_from_ranks, private_sockets, way_into_cluster
from autolaunch.hubs.speed import Transfer
from autolaunch.server import LaunchEvent, Server, Stage
from autolaunch.startable import refuse_what_is_not_started, refuse_without_environment
from autolaunch.weights import local_checkpoint, weights_of
from engines import registry
from engines.base import Serving, first_replica, planned_package, visible_devices
from engines.environments import Environments
from engines.logs import LogReader
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import EngineFacts
from selector.errors import NoFeasiblePlan, Unsupported, UsageError
from selector.facts import ModelFacts
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.cluster.placing import Place
    from autolaunch.locked import Lock
    from engines.environments.installations import Installation

#: By this variable a daemon tells the processes of its engines from all others, after a restart too.
RUN_MARK = "AUTOLAUNCH_RUN"


class Catalogue(Protocol):
    """What a launch asks of :mod:`selector.catalog`."""

    def engine(self, name: str) -> EngineFacts: ...
    def model(self, model_id: str) -> ModelFacts: ...


class LaunchOptions(Value, frozen=True, kw_only=True):
    """How to launch. ``port`` 0 takes a free one; ``served_name`` is the plan's model by default.

    ``home`` holds engines, miniatures, logs and the run's own folder. ``engine_path`` is an engine that somebody else
    installed, used instead of an environment of ours. ``extra`` goes to the engine. With ``dummy_weights`` it makes
    them up (vLLM and SGLang), and ``model_path`` need hold none. With ``own_key`` an engine that checks a key gets one
    made for this launch (``Server.api_key``). ``mark`` stands in the environment of all that is
    started, as ``RUN_MARK``. With a ``lock`` the environment has exactly its packages, and the weights have to be its.
    ``nodes`` is the Ray cluster that the plan was made for, and on whose nodes it is started.
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
    own_key: bool = False
    mark: str | None = None
    lock: Lock | None = None
    nodes: str | None = None
    grace_seconds: float = GRACE_SECONDS
    stall_seconds: float = STALL_SECONDS


class Prepared(Value, frozen=True, kw_only=True):
    """Everything that a start needs is here: weights in ``folder``, programs in ``bin_directory``.

    ``place`` is where in a cluster it is started, and both are on all of its nodes.
    """

    plan: LaunchPlan
    candidate: Candidate
    model: ModelFacts
    served_name: str
    folder: Path
    bin_directory: Path
    installation: Installation | None = None
    place: Place | None = None


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
    began = time.monotonic()
    prepared = prepare(plan, catalog=catalog, options=options, on_event=on_event, candidate=candidate, began=began)
    return start(prepared, options=options, on_event=on_event, began=began)


def prepare(
    plan: LaunchPlan,
    *,
    catalog: Catalogue,
    options: LaunchOptions,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    candidate: Candidate | None = None,
    cancelled: threading.Event | None = None,
    began: float | None = None,
) -> Prepared:
    """Fetches, makes and checks what ``candidate`` needs. ``began`` is when the launch did (monotonic seconds).

    Set ``cancelled`` and it ends within a second or so, with the error of what it was at.

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
    say = _Teller(on_event, began)
    engine = registry.engine(candidate.engine.name)
    refuse_what_is_not_started(candidate, options.nodes)
    served_name = checked_name(options.served_name or plan.model)
    facts, model = catalog.engine(candidate.engine.name), catalog.model(plan.model)
    if model.generated and candidate.checkpoint.revision is not None and options.model_path is None:
        raise UsageError(f"{model.id} is generated on this machine: it has no revisions", hint="leave --revision out")
    installation = None if options.engine_path is None else _installation(options.engine_path, candidate, facts, model)
    if installation is None:
        refuse_without_environment(candidate, facts, plan.hardware)
    say("port", f"port {free_port(options.host, options.port)} is free", None)
    # Refused before the download: options that are ours or that it has not, programs that are not there.
    trial = Serving(model=served_name, served_name=served_name, extra=options.extra)
    if installation is not None:
        trial = msgspec.structs.replace(trial, executable_directory=str(installation.bin_directory))
        installation.runs(engine.command(candidate, model, trial))
    else:
        engine.command(candidate, model, trial)
    # A llama-server of the user's own knows more options than the wheel.
    if options.extra and (installation is None or candidate.engine.name != "llamacpp"):
        from engines.flags import refuse_unknown  # most launches pass nothing on

        refuse_unknown(options.extra, candidate.engine.package, candidate.engine.version)
    place = None
    if options.nodes is not None:
        from autolaunch.cluster.placing import place_in, refuse_other_python, with_ray  # most are launched on one host

        place = place_in(options.nodes, plan.hardware, candidate, os.environ, cancelled=cancelled)
        if installation is None:
            refuse_other_python(place)
        say("environment", f"{len(set(place.ranks))} nodes of the Ray cluster at {place.address}", None)
        facts = with_ray(facts, place)
    folder = _weights(plan, candidate, model, options, say, cancelled)
    if options.lock is not None:
        from autolaunch.replaying import check_weights

        say("weights", f"comparing {folder} with the lock", None)
        check_weights(options.lock, folder, options.home)
    say("weights", f"weights are in {folder}", 1.0)
    programs = _programs(candidate, facts, installation, options, say, cancelled)
    if place is not None:
        from autolaunch.cluster import Cluster
        from autolaunch.cluster.preparing import prepare_nodes

        with Cluster(place.address, cancelled=cancelled) as cluster:
            prepare_nodes(
                cluster,
                plan,
                candidate,
                model=model,
                environment=programs.parent,
                package=planned_package(facts, candidate.engine)[1],
                folder=folder,
                home=options.home,
                on_event=on_event,
                cancelled=cancelled,
                began=began,
            )
    return Prepared(
        plan=plan,
        candidate=candidate,
        model=model,
        served_name=served_name,
        folder=folder,
        bin_directory=programs,
        installation=installation,
        place=place,
    )


def start(
    prepared: Prepared,
    *,
    options: LaunchOptions,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    began: float | None = None,
) -> Server:
    """Starts the engine's process.

    Raises:
        PortTaken: somebody else listens there.
        EngineStartError: the process could not be made.
    """
    candidate, model, served_name = prepared.candidate, prepared.model, prepared.served_name
    engine = registry.engine(candidate.engine.name)
    say = _Teller(on_event, began)
    address = Address(host=options.host, port=free_port(options.host, options.port))
    run_directory, run_lock = run_folder(options.home / "run", served_name, prepared.folder)
    try:
        devices = first_replica(prepared.plan.hardware, candidate)
        by_name = engine.behaviour.names_itself_by_path
        serving = Serving(
            model=served_name if by_name else str(weights_of(prepared.folder, candidate.checkpoint)),
            served_name=served_name,
            host=address.host,
            port=address.port,
            executable_directory=str(prepared.bin_directory),
            devices=devices,
            visible=visible_devices(prepared.plan.hardware, devices, launched=True),
            extra=options.extra,
            dummy_weights=options.dummy_weights,
            api_key=os.urandom(32).hex() if options.own_key and engine.behaviour.key_variable else None,
            over=None if prepared.place is None else prepared.place.over(options.mark or os.urandom(16).hex()),
        )
        command = engine.command(candidate, model, serving)
        if prepared.installation is not None:
            command = prepared.installation.runs(command)
        log_path = log_place(options.home / "logs", engine.name, run_directory)
        say("starting", f"starting {engine.name} {candidate.engine.version}", None)
        reader = LogReader(engine.name, candidate.engine.version)
        environment = engine_environment(os.environ, command, prepared.bin_directory, run_directory)
        environment |= private_sockets(engine.behaviour, run_directory)
        if options.mark is not None:
            environment[RUN_MARK] = options.mark
            # A process that renames itself (workers of vLLM and SGLang do) would write its title over the mark.
            environment["SPT_NOENV"] = "1"
        if prepared.place is not None:
            environment |= way_into_cluster(os.environ)
            environment |= kept_from_ranks(environment, command, run_directory)
        process = EngineProcess(
            command.argv,
            environment=environment | engine.secrets(serving),
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
        api_key=serving.api_key,
        stall_seconds=options.stall_seconds,
        say=say,
    )


class _Teller:
    """Says what happens, with the seconds since the launch began."""

    def __init__(self, on_event: Callable[[LaunchEvent], None], began: float | None) -> None:
        self._on_event, self._began = on_event, time.monotonic() if began is None else began

    def __call__(
        self, stage: Stage, message: str, fraction: float | None = None, transfer: Transfer | None = None
    ) -> None:
        seconds = time.monotonic() - self._began
        event = LaunchEvent(stage=stage, message=message, fraction=fraction, seconds=seconds, transfer=transfer)
        self._on_event(event)


def _programs(
    candidate: Candidate,
    facts: EngineFacts,
    installation: Installation | None,
    options: LaunchOptions,
    say: _Teller,
    cancelled: threading.Event | None,
) -> Path:
    """Where the engine's programs are: in the installation that the user named, or in an environment of ours."""
    if installation is not None:
        say("environment", f"{candidate.engine.name} {candidate.engine.version} is in {installation.place}", 1.0)
        return installation.bin_directory
    facts, package = planned_package(facts, candidate.engine)
    environment = Environments.of(options.home).ensure(
        facts,
        package,
        lock=None if options.lock is None else options.lock.engine.requirements,
        on_progress=lambda progress: say("environment", progress.message, None),
        cancelled=cancelled,
    )
    say("environment", f"{package.name} is in {environment.directory}", 1.0)
    return environment.bin_directory


def _weights(
    plan: LaunchPlan,
    candidate: Candidate,
    model: ModelFacts,
    options: LaunchOptions,
    say: _Teller,
    cancelled: threading.Event | None,
) -> Path:
    if options.dummy_weights and options.model_path is not None:
        return options.model_path.absolute()
    return local_checkpoint(
        candidate,
        model,
        home=options.home,
        model_path=options.model_path,
        offline=options.offline,
        hub_pinned="hub" in plan.request.pinned,
        on_progress=lambda message, fraction, transfer: say("weights", message, fraction, transfer),
        cancelled=cancelled,
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


def _installation(path: Path, candidate: Candidate, facts: EngineFacts, model: ModelFacts) -> Installation:
    """The engine at ``path``, which has to be the one that was planned with."""
    from engines.environments import installations

    found = installations.chosen(path, (facts,), model)
    if found.version != candidate.engine.version:
        raise Unsupported(
            f"{path} holds {found.engine} {found.version}, and {candidate.engine.version} was planned with"
        )
    return found
