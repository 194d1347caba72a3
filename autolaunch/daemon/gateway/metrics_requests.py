"""What the gateway counts of requests, for Prometheus: how many, how they ended, and how long each part took.

Counted in plain numbers by the one thread that serves, and made into metrics when somebody asks
(:func:`autolaunch.daemon.gateway.metrics.render`, which may run in another thread). ``prometheus_client``'s own
counters take a lock for each figure, and write files where ``PROMETHEUS_MULTIPROC_DIR`` is set, as it is around some
inference servers.

Labels are bounded whatever clients send: models and keys are those that are known, everything else is a fixed set.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Final, Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from autolaunch.daemon.pace import Alone

Route = Literal[
    "chat.completions",
    "completions",
    "responses",
    "embeddings",
    "messages",
    "models",
    "health",
    "ready",
    "metrics",
    "other",
]

#: How a request ended: answered ("ok", whatever the engine's code below 500 was); its client left; the engine ended
#: midway, or before it answered and no other did; the engine answered with an error of its own (5xx) or with what is no
#: answer; nothing came for too long; no replica was ready; too many waited; the gateway refused it (a code 4xx but for
#: the next two); no key, or a wrong one; the daemon stops; a fault of ours.
Reason = Literal[
    "ok",
    "client_left",
    "engine_died",
    "engine_error",
    "timeout",
    "not_ready",
    "overloaded",
    "refused",
    "unauthorized",
    "stopping",
    "internal",
]

ROUTES: Final[frozenset[str]] = frozenset(get_args(Route))
REASONS: Final[frozenset[str]] = frozenset(get_args(Reason))
ERRORS: Final = tuple(sorted(REASONS - {"ok"}))
#: The model's label where the request named none that is known here.
UNKNOWN: Final = "unknown"
#: 499 is what is written of a client that left before there was a status (as nginx does).
CODES: Final[frozenset[int]] = frozenset({*map(int, HTTPStatus), 499})

DURATION_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)
QUEUE_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)
FIRST_TOKEN_SECONDS: Final = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
TOKEN_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
)


def code_label(status: int) -> str:
    """A status as a label: the code where it is a registered one, else its class (``5xx``)."""
    if status in CODES:
        return str(status)
    return f"{status // 100}xx" if 100 <= status <= 599 else UNKNOWN


class Distribution:
    """Counts of figures by upper bound, as Prometheus keeps a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, figure: float) -> None:
        """Counts one figure."""
        self.counts[bisect_left(self.bounds, figure)] += 1
        self.total += figure

    def buckets(self) -> list[tuple[str, float]]:
        """The counts up to each bound, the last one of all."""
        upto, found = 0, []
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), tuple(self.counts), strict=True):
            upto += count
            found.append((bound, float(upto)))
        return found


class Series:
    """What is counted of one model on one route."""

    __slots__ = (
        "answer_bytes",
        "body_bytes",
        "codes",
        "duration",
        "first_token",
        "generation_tokens",
        "prompt_tokens",
        "queue",
        "reasons",
        "running",
        "token",
        "waiting",
    )

    def __init__(self) -> None:
        # From the start at 0: a rate over a series that begins at 1 would miss the first.
        self.codes: dict[int, int] = {200: 0}
        self.reasons: dict[str, int] = dict.fromkeys(ERRORS, 0)
        self.waiting = 0
        self.running = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.body_bytes = 0
        self.answer_bytes = 0
        self.queue = Distribution(QUEUE_SECONDS)
        self.duration = Distribution(DURATION_SECONDS)
        self.first_token = Distribution(FIRST_TOKEN_SECONDS)
        self.token = Distribution(TOKEN_SECONDS)


class Seen:
    """One request under way. Every method may be called late, twice or never, but for ``ended``, which has to be."""

    __slots__ = ("_clock", "_counted", "_ended", "_first", "_last", "_prompt", "_routed", "_sent", "_series", "_since")

    def __init__(self, series: Series, since: float, clock: Callable[[], float]) -> None:
        self._series = series
        self._since = since
        self._clock = clock
        self._routed: float | None = None
        self._sent = since
        self._ended = False
        self._first: float | None = None
        self._last = since
        self._counted = 0
        self._prompt = 0
        series.waiting += 1

    def routed(self) -> None:
        """It has left the queue: it is sent to an engine; again, to another."""
        if self._ended:
            return
        self._sent = now = self._clock()
        if self._routed is not None:
            return
        self._routed = now
        series = self._series
        series.waiting -= 1
        series.running += 1
        series.queue.observe(now - self._since)

    def first_token(self) -> None:
        """The first token of a streamed answer came (it is counted by ``tokens``)."""
        if self._first is None:
            self._first = self._last = self._clock()
            self._series.first_token.observe(self._first - self._since)

    def tokens(self, count: int = 1) -> None:
        """So many more tokens of the answer came, as far as can be told before ``usage``."""
        if self._first is None:
            self.first_token()
        else:
            self._last = self._clock()
        self._counted += count
        self._series.generation_tokens += count

    def usage(self, *, prompt: int | None = None, completion: int | None = None) -> None:
        """What the engine says it was, in all; may come more than once, growing."""
        if prompt is not None and prompt > self._prompt:
            self._series.prompt_tokens += prompt - self._prompt
            self._prompt = prompt
        if completion is not None and completion > self._counted:
            self._series.generation_tokens += completion - self._counted
            self._counted = completion

    def alone(self) -> Alone | None:
        """How long its parts took, from when it was sent to the engine that answered; ``None`` where no token came."""
        if self._first is None or self._routed is None:
            return None
        return Alone(self._first - self._sent, self._last - self._first, self._prompt, self._counted)

    def ended(self, *, status: int, reason: Reason, body_bytes: int = 0, answer_bytes: int = 0) -> None:
        """It is over; the first call counts.

        Args:
            status: what the client was sent, or 499 where it left before.
            reason: why it ended.
            body_bytes, answer_bytes: of the bodies, as they went over the client's connection.
        """
        if self._ended:
            return
        self._ended = True
        series = self._series
        if self._routed is not None:
            series.running -= 1
        else:
            series.waiting -= 1
        series.codes[status] = series.codes.get(status, 0) + 1
        if reason != "ok":
            series.reasons[reason] += 1
        series.duration.observe(self._clock() - self._since)
        if self._first is not None and self._counted > 1:
            series.token.observe((self._last - self._first) / (self._counted - 1))
        series.body_bytes += body_bytes
        series.answer_bytes += answer_bytes


class RequestMetrics(Collector):
    """Everything that is counted of requests. One thread counts; ``collect`` may be called from any.

    Attributes:
        connections: clients that are connected, and ``accepted`` how many have been.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        models: Iterable[str] = (),
        keys: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``models`` and ``keys`` as for ``known``; ``clock`` gives seconds that only grow."""
        self._clock = clock
        self._series: dict[tuple[str, str], Series] = {}
        self._keys: dict[str, int] = {}
        self._models: frozenset[str] = frozenset()
        self.connections = 0
        self.accepted = 0
        self.known(models=models, keys=keys)
        registry.register(self)

    def known(self, *, models: Iterable[str], keys: Iterable[str] = ()) -> None:
        """Which deployments and keys (by name) there are, from here on; what was counted of others goes."""
        self._models = frozenset(models)
        kept = {UNKNOWN, *self._models}
        self._series = {place: series for place, series in self._series.items() if place[0] in kept}
        for model in self._models:
            self._series.setdefault((model, "chat.completions"), Series())
        self._keys = {key: self._keys.get(key, 0) for key in keys}

    def begun(self, *, model: str | None, route: Route, key: str | None = None, since: float | None = None) -> Seen:
        """A request has come.

        Args:
            model: the deployment it is for; ``None``, or one that is not known, where it is for none.
            route: which of the interfaces.
            key: the name of its key.
            since: when its head was read, by this clock (default: now).
        """
        place = (model if model in self._models else UNKNOWN, route if route in ROUTES else "other")
        series = self._series.get(place)
        if series is None:
            series = self._series[place] = Series()
        if key is not None and key in self._keys:
            self._keys[key] += 1
        return Seen(series, self._clock() if since is None else since, self._clock)

    def connected(self) -> None:
        """A client has connected."""
        self.connections += 1
        self.accepted += 1

    def disconnected(self) -> None:
        """A client's connection has ended."""
        self.connections -= 1

    def collect(self) -> Iterator[Metric]:
        """The metrics, as ``prometheus_client`` wants them."""
        series = tuple(sorted(self._series.copy().items()))
        yield from _counted(series)
        yield from _under_way(series)
        for name, meaning, part in _DISTRIBUTIONS:
            family = HistogramMetricFamily(name, meaning, labels=("model", "route"))
            for place, each in series:
                distribution: Distribution = part(each)
                buckets = distribution.buckets()
                # Empty where nothing of the kind happens (a list of models has no tokens): a tenth of the lines.
                if buckets[-1][1]:
                    family.add_metric(place, buckets, distribution.total)
            yield family
        by_key = CounterMetricFamily("autolaunch_key_requests", "Requests by the name of their key.", labels=("key",))
        for key, count in sorted(self._keys.copy().items()):
            by_key.add_metric((key,), count)
        yield by_key
        yield GaugeMetricFamily("autolaunch_connections_open", "Clients that are connected.", value=self.connections)
        yield CounterMetricFamily("autolaunch_connections", "Clients that have connected.", value=self.accepted)


_Many = tuple[tuple[tuple[str, str], Series], ...]

_DISTRIBUTIONS: Final[tuple[tuple[str, str, Callable[[Series], Distribution]], ...]] = (
    (
        "autolaunch_request_queue_time_seconds",
        "Time from a request's arrival until it was sent to an engine.",
        lambda series: series.queue,
    ),
    (
        "autolaunch_request_duration_seconds",
        "Time from a request's arrival to its end, queue and streaming included.",
        lambda series: series.duration,
    ),
    (
        "autolaunch_time_to_first_token_seconds",
        "Time from a request's arrival to the first token of a streamed answer.",
        lambda series: series.first_token,
    ),
    (
        "autolaunch_request_time_per_output_token_seconds",
        "Mean time between the tokens of a streamed answer after the first one, one figure a request.",
        lambda series: series.token,
    ),
)


def _counted(series: _Many) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "autolaunch_requests", "Requests that have ended, by the status sent.", labels=("model", "route", "code")
    )
    errors = CounterMetricFamily(
        "autolaunch_request_errors", "Requests that were not answered, by reason.", labels=("model", "route", "reason")
    )
    for place, each in series:
        by_label: dict[str, int] = {}
        for code, count in each.codes.copy().items():
            by_label[code_label(code)] = by_label.get(code_label(code), 0) + count
        for label, count in sorted(by_label.items()):
            requests.add_metric((*place, label), count)
        for reason, count in each.reasons.items():
            errors.add_metric((*place, reason), count)
    yield requests
    yield errors
    totals: tuple[tuple[str, str, Callable[[Series], int]], ...] = (
        ("prompt_tokens", "Tokens of prompts, as engines report them.", lambda each: each.prompt_tokens),
        ("generation_tokens", "Tokens that engines have generated for clients.", lambda each: each.generation_tokens),
        ("request_body_bytes", "Bytes of the bodies of requests.", lambda each: each.body_bytes),
        ("response_body_bytes", "Bytes of the bodies of answers.", lambda each: each.answer_bytes),
    )
    for name, meaning, part in totals:
        family = CounterMetricFamily(f"autolaunch_{name}", meaning, labels=("model", "route"))
        for place, each in series:
            family.add_metric(place, part(each))
        yield family


def _under_way(series: _Many) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "autolaunch_requests_waiting", "Requests that wait in the gateway for an engine.", labels=("model", "route")
    )
    running = GaugeMetricFamily(
        "autolaunch_requests_running",
        "Requests that were sent to an engine and have not ended.",
        labels=("model", "route"),
    )
    for place, each in series:
        waiting.add_metric(place, each.waiting)
        running.add_metric(place, each.running)
    yield waiting
    yield running
