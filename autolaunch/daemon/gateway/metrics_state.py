"""Deployments and their engines, for Prometheus: a snapshot of them, made into metrics at each scrape.

What a plan predicted stands beside what the engine reported, under the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from autolaunch import __version__
from autolaunch.daemon import machine
from autolaunch.daemon.gateway.metrics_snapshot import PHASES, Engine, Numbers, ReplicaFacts, Snapshot

_PLACE: Final = ("model", "replica")


class StateMetrics(Collector):
    """The metrics of a snapshot; ``snapshot`` is called at each scrape, in whichever thread that runs."""

    def __init__(self, registry: CollectorRegistry, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics, as ``prometheus_client`` wants them."""
        now = self._snapshot()
        build = GaugeMetricFamily("autolaunch_build_info", "1; the version of autolaunch.", labels=("version",))
        build.add_metric((__version__,), 1)
        yield build
        if now.configuration_ok is not None:
            yield GaugeMetricFamily(
                "autolaunch_configuration_ok",
                "0 where the configuration was read again and is wrong: the old one holds.",
                value=now.configuration_ok,
            )
        yield from _states(now.replicas)
        yield from _counters(now.replicas)
        yield from _load(now.replicas)
        for kind, meaning, part in _NUMBERS:
            yield from _numbers(now.replicas, kind, meaning, part)


def _place(each: ReplicaFacts) -> tuple[str, str]:
    return each.model, str(each.replica)


def _states(replicas: tuple[ReplicaFacts, ...]) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "autolaunch_replica_phase", "1 for the phase that a replica is in, 0 for the others.", labels=(*_PLACE, "phase")
    )
    for each in replicas:
        for shown in PHASES:
            phase.add_metric((*_place(each), shown), shown == each.phase)
    yield phase
    gauges: tuple[tuple[str, str, Callable[[ReplicaFacts], float | None]], ...] = (
        ("phase_duration_seconds", "Time since a replica entered its phase.", lambda each: each.phase_seconds),
        ("ready", "1 where a replica is sent requests.", lambda each: each.ready),
        ("wanted", "1 where a replica is to run, 0 where somebody stopped it.", lambda each: each.wanted),
        (
            "recent_failures",
            f"Failures of the last {machine.LATCH_SECONDS / 60:g} minutes; at {machine.LATCH_FAILURES} it is given up.",
            lambda each: each.recent_failures,
        ),
        ("requests_running", "Requests that were sent to a replica and have not ended.", lambda each: each.running),
        (
            "max_sequences",
            "Requests that a replica's engine works at together; more wait in the engine.",
            lambda each: each.max_sequences,
        ),
    )
    for name, meaning, part in gauges:
        family = GaugeMetricFamily(f"autolaunch_replica_{name}", meaning, labels=_PLACE)
        for each in replicas:
            figure = part(each)
            if figure is not None:
                family.add_metric(_place(each), figure)
        yield family


def _counters(replicas: tuple[ReplicaFacts, ...]) -> Iterator[Metric]:
    failures = CounterMetricFamily(
        "autolaunch_replica_failures",
        "Failures of a replica's engine, or of getting one, since the daemon began.",
        labels=(*_PLACE, "reason"),
    )
    starts = CounterMetricFamily(
        "autolaunch_engine_starts", "Engines of a replica that came to serve since the daemon began.", labels=_PLACE
    )
    for each in replicas:
        starts.add_metric(_place(each), each.starts)
        for reason, count in each.failures:
            failures.add_metric((*_place(each), reason.replace(" ", "_")), count)
    yield failures
    yield starts


def _load(replicas: tuple[ReplicaFacts, ...]) -> Iterator[Metric]:
    load = GaugeMetricFamily(
        "autolaunch_load_progress_ratio",
        "How far a load is within its stage, 0 to 1; absent where nothing loads, or the engine does not tell.",
        labels=(*_PLACE, "stage"),
    )
    info = GaugeMetricFamily(
        "autolaunch_engine_info",
        "1; what serves a replica, or is about to.",
        labels=(*_PLACE, *Engine.__struct_fields__),
    )
    for each in replicas:
        if each.load_stage is not None and each.load_fraction is not None:
            load.add_metric((*_place(each), each.load_stage), each.load_fraction)
        if each.engine is not None:
            words = (str(getattr(each.engine, name)) for name in Engine.__struct_fields__)
            info.add_metric((*_place(each), *words), 1)
    yield load
    yield info


_NUMBERS: Final[tuple[tuple[str, str, Callable[[ReplicaFacts], Numbers | None]], ...]] = (
    ("predicted", "as the plan predicts", lambda each: each.predicted),
    ("measured", "as it was measured", lambda each: each.measured),
)
_PARTS: Final = ("weights", "kv_cache", "activations", "graphs")
_SINGLE: Final = (
    ("kv_cache_tokens", "Tokens that the KV cache of a replica holds"),
    ("context_tokens", "Tokens that one request may use, prompt and answer"),
    ("load_seconds", "Time from the start of an engine until a token came"),
    ("decode_tokens_per_second", "Tokens a second of one sequence alone"),
    ("time_to_first_token_seconds", "Time to the first token of one prompt alone"),
)


def _numbers(
    replicas: tuple[ReplicaFacts, ...], kind: str, how: str, part_of: Callable[[ReplicaFacts], Numbers | None]
) -> Iterator[Metric]:
    known = [(each, numbers) for each in replicas if (numbers := part_of(each)) is not None]
    memory = GaugeMetricFamily(
        f"autolaunch_{kind}_memory_bytes", f"Memory of the fullest device by use, {how}.", labels=(*_PLACE, "use")
    )
    for each, numbers in known:
        for use in _PARTS:
            held: int | None = getattr(numbers, f"{use}_bytes")
            if held is not None:
                memory.add_metric((*_place(each), use), held)
    yield memory
    for name, meaning in _SINGLE:
        if kind == "measured" and name in _UNMEASURED:
            continue
        family = GaugeMetricFamily(f"autolaunch_{kind}_{name}", f"{meaning}, {how}.", labels=_PLACE)
        for each, numbers in known:
            figure: float | None = getattr(numbers, name)
            if figure is not None:
                family.add_metric(_place(each), figure)
        yield family


#: Engines do not report them; what requests saw is in the histograms of requests.
_UNMEASURED: Final = frozenset({"decode_tokens_per_second", "time_to_first_token_seconds"})
