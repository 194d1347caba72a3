"""Deployments and their engines at one moment, as the metrics tell them.

:mod:`autolaunch.daemon.gateway.metrics_state` makes metrics of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, get_args
from weakref import WeakKeyDictionary

from autolaunch.daemon import machine
from autolaunch.daemon.control.contract import Phase
from autolaunch.daemon.shown import shown_phase
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.daemon.deployment import Reason
    from autolaunch.daemon.happenings import Tell
    from autolaunch.daemon.supervisor import Supervisor
    from engines.logs import Figures
    from selector.contract import Candidate

#: As labels have them.
PHASES: Final = tuple(each.replace(" ", "_") for each in get_args(Phase))
#: What the machine says where an engine has failed; the first of them of a run is counted.
_FAILURES: Final = frozenset({"engine.failed", "ladder.step", "deployment.failed"})


class Engine(Value, frozen=True, kw_only=True):
    """What serves, or is about to, in words. ``checkpoint`` is the hub's id."""

    engine: str
    version: str
    checkpoint: str
    quantization: str
    kv_cache_dtype: str
    tensor_parallel: int
    pipeline_parallel: int


class Numbers(Value, frozen=True, kw_only=True):
    """What a plan predicts, or an engine reported; ``None`` is not known.

    Bytes are of the fullest device, tokens of one replica; ``load_seconds`` from the start of the process until a
    token came, ``decode_tokens_per_second`` of one sequence alone.
    """

    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    activations_bytes: int | None = None
    graphs_bytes: int | None = None
    kv_cache_tokens: int | None = None
    context_tokens: int | None = None
    load_seconds: float | None = None
    decode_tokens_per_second: float | None = None
    time_to_first_token_seconds: float | None = None


class ReplicaFacts(Value, frozen=True, kw_only=True):
    """One replica of a deployment at one moment.

    Attributes:
        failures: how often it failed since the daemon began, by reason.
        recent_failures: those that count towards giving up (:data:`autolaunch.daemon.machine.LATCH_FAILURES`).
        starts: how often an engine of it came to serve.
        running: requests that were sent to it, where whoever routes them tells.
        max_sequences: so many its engine works at together; more wait in the engine.
        load_stage, load_fraction: where a load is; the fraction is of this stage, 0 to 1.
    """

    model: str
    replica: int
    phase: str
    phase_seconds: float
    wanted: bool
    failures: tuple[tuple[Reason, int], ...] = ()
    recent_failures: int = 0
    starts: int = 0
    running: int | None = None
    max_sequences: int | None = None
    load_stage: str | None = None
    load_fraction: float | None = None
    engine: Engine | None = None
    predicted: Numbers | None = None
    measured: Numbers | None = None

    @property
    def ready(self) -> bool:
        """It is sent requests."""
        return self.phase in ("ready", "degraded")


class Snapshot(Value, frozen=True, kw_only=True):
    """The daemon at one moment. ``configuration_ok``: the file is as it is in force; ``None`` where there is none."""

    replicas: tuple[ReplicaFacts, ...] = ()
    configuration_ok: bool | None = None


class _Heard:
    """What one supervisor has told."""

    __slots__ = ("failed_run", "failures", "load_seconds", "starts")

    def __init__(self) -> None:
        self.starts = 0
        self.load_seconds: float | None = None
        self.failures: dict[Reason, int] = {}
        self.failed_run: int | None = None


class Happened:
    """Counts what supervisors tell; ``tell`` is to be called from their loop with everything they say."""

    def __init__(self) -> None:
        self._heard: WeakKeyDictionary[Supervisor, _Heard] = WeakKeyDictionary()

    def __len__(self) -> int:
        """Of how many supervisors there is something; of one that is gone there is nothing."""
        return len(self._heard)

    def tell(self, one: Supervisor, tell: Tell) -> None:
        """Takes in what a supervisor says (its ``on_tell``)."""
        heard = self._heard.setdefault(one, _Heard())
        if tell.name == "engine.ready":
            heard.starts += 1
            heard.load_seconds = tell.seconds
        elif tell.name in _FAILURES and one.state.fault is not None and heard.failed_run != one.state.run:
            # One failure may be told twice: that something is changed because of it, and that it is tried again.
            heard.failed_run = one.state.run
            reason = one.state.fault.reason
            heard.failures[reason] = heard.failures.get(reason, 0) + 1

    def of(self, one: Supervisor) -> tuple[int, float | None, tuple[tuple[Reason, int], ...]]:
        """Starts, seconds of the last load, failures by reason."""
        heard = self._heard.get(one) or _Heard()
        return heard.starts, heard.load_seconds, tuple(sorted(heard.failures.copy().items()))


def snapshot_of(
    supervisors: Iterable[Supervisor],
    happened: Happened,
    *,
    now: float,
    running: Callable[[Supervisor], int | None] = lambda _: None,
    configuration_ok: bool | None = None,
) -> Snapshot:
    """What the supervisors are at ``now``, by their own clock.

    ``supervisors`` must be a copy when this runs beside the loop. ``running`` tells the requests of one.
    """
    replicas = tuple(_facts(one, happened, now, running(one)) for one in supervisors)
    return Snapshot(replicas=replicas, configuration_ok=configuration_ok)


def _facts(one: Supervisor, happened: Happened, now: float, running: int | None) -> ReplicaFacts:
    state, run = one.state, one.run  # each is replaced whole, so they may be read beside the loop
    server = run.server
    starts, load_seconds, failures = happened.of(one)
    progress = server.progress if server is not None and state.phase == "loading" else None
    candidate = state.candidate
    measured = None
    if candidate is not None and server is not None and state.phase in machine.SERVING:
        measured = _measured(server.figures, load_seconds)
    return ReplicaFacts(
        model=state.deployment.name,
        replica=state.deployment.replica or 1,
        phase=shown_phase(state).replace(" ", "_"),
        phase_seconds=max(0.0, now - state.since),
        wanted=state.wanted == "running",
        failures=failures,
        recent_failures=sum(now - each < machine.LATCH_SECONDS for each in state.failures),
        starts=starts,
        running=running,
        max_sequences=None if candidate is None else candidate.limits.max_sequences,
        load_stage=None if progress is None else progress.stage,
        load_fraction=None if progress is None else progress.fraction,
        engine=None if candidate is None else _engine(candidate),
        predicted=None if candidate is None else _predicted(candidate),
        measured=measured,
    )


def _engine(candidate: Candidate) -> Engine:
    return Engine(
        engine=candidate.engine.name,
        version=candidate.engine.version,
        checkpoint=candidate.checkpoint.repo,
        quantization=candidate.checkpoint.quantization,
        kv_cache_dtype=candidate.limits.kv_cache_dtype,
        tensor_parallel=candidate.parallel.tensor,
        pipeline_parallel=candidate.parallel.pipeline,
    )


def _predicted(candidate: Candidate) -> Numbers:
    device, speed = candidate.memory.per_device, candidate.speed
    return Numbers(
        weights_bytes=device.weights_bytes,
        kv_cache_bytes=device.kv_cache_bytes,
        activations_bytes=device.activations_bytes,
        graphs_bytes=device.graphs_bytes,
        kv_cache_tokens=candidate.memory.kv_cache_tokens,
        context_tokens=candidate.limits.context_tokens,
        load_seconds=speed.load_seconds,
        decode_tokens_per_second=speed.decode_tokens_per_second,
        time_to_first_token_seconds=speed.time_to_first_token_seconds,
    )


def _measured(figures: Figures, load_seconds: float | None) -> Numbers:
    return Numbers(
        weights_bytes=figures.weights_bytes,
        kv_cache_bytes=figures.kv_cache_bytes,
        activations_bytes=figures.activations_bytes,
        graphs_bytes=figures.graphs_bytes,
        kv_cache_tokens=figures.kv_cache_tokens,
        context_tokens=figures.context_tokens,
        load_seconds=load_seconds,
    )
