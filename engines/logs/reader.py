"""An engine's output as it comes, a line at a time: how far it is, and what it measured.

``feed`` is called by the thread that drains the engine's pipe, so it never waits and never raises: a line that says
nothing costs a few searches for words. Everything else may be asked from any thread.
"""

from __future__ import annotations

import threading
from collections import deque

import msgspec

from engines.logs.cause import Diagnosis, classify, is_suspect
from engines.logs.patterns import LINE_CHARACTERS, Figure, Gauge, LoadStage, Unit, known
from selector.values import Value, readable

#: Lines that told a failure and may have left the engine's last lines by the time it ends: so many are kept.
SUSPECTS = 32
#: Who prints at most: ranks, or the devices of one machine. A hostile log makes no more of them.
RANKS = 256
#: A figure of more characters is none, nor is one that is larger or below zero (vLLM has told of graphs that took
#: -0.02 GiB).
CHARACTERS, LARGEST = 18, 2.0**62

_IN: dict[Unit, float] = {"bytes": 1, "MiB": 2**20, "GiB": 2**30, "seconds": 1, "tokens": 1, "times": 1}
_WHOLE: frozenset[Unit] = frozenset({"bytes", "MiB", "GiB", "tokens"})
#: What holds for every rank is the least of them; of memory and time the fullest and the slowest count.
_LEAST: frozenset[Figure] = frozenset({"kv_cache_tokens", "context_tokens", "max_concurrency"})
_TITLES: dict[LoadStage, str] = {
    "start": "starting",
    "weights": "loading the weights",
    "profile": "measuring its memory",
    "compile": "compiling",
    "graphs": "capturing graphs",
    "warmup": "warming up",
    "ready": "listening",
}


class LoadProgress(Value, frozen=True, kw_only=True):
    """Where a load is. ``fraction`` is 0 to 1 of this stage alone, ``done`` and ``total`` what it counts."""

    stage: LoadStage
    fraction: float | None = None
    done: int | None = None
    total: int | None = None

    @property
    def message(self) -> str:
        """``loading the weights, 10 of 22``."""
        title = _TITLES[self.stage]
        return title if self.done is None or self.total is None else f"{title}, {self.done} of {self.total}"


class Figures(Value, frozen=True, kw_only=True):
    """What an engine said of itself; ``None`` is what it has not said.

    Bytes are the fullest device's. ``host_…`` lie in the host's memory. ``kv_cache_bytes`` is what the KV cache may
    take, ``kv_cache_tokens`` what it holds, over one replica; ``max_concurrency`` how many requests of the whole
    ``context_tokens`` fit in it. ``activations_bytes`` is the peak of a profiled step. Seconds: reading the weights,
    compiling, capturing graphs, and the engine's own start without the weights.
    """

    weights_bytes: int | None = None
    host_weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    host_kv_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    context_tokens: int | None = None
    graphs_bytes: int | None = None
    activations_bytes: int | None = None
    load_seconds: float | None = None
    compile_seconds: float | None = None
    graphs_seconds: float | None = None
    start_seconds: float | None = None
    max_concurrency: float | None = None


class LogReader:
    """Reads one run of one engine.

    Args:
        engine: the engine's name; of one without patterns only failures common to all are known.
        version: its version; ``None`` takes the patterns of all.

    Raises:
        ProfileError: a file of patterns is wrong.
    """

    def __init__(self, engine: str, version: str | None = None) -> None:
        self.engine = engine
        self.version = version
        self._known = known(engine, version)
        self._lock = threading.Lock()
        self._progress: LoadProgress | None = None
        self._figures: dict[Figure, dict[str, float]] = {}
        self._suspects: deque[str] = deque(maxlen=SUSPECTS)
        self._serving = False

    def feed(self, line: str) -> None:
        """Takes in one line, without its end; what is longer than ``LINE_CHARACTERS`` is cut."""
        line = line[:LINE_CHARACTERS]
        lowered = line.lower()
        words = self._known.failure_words if self._serving else self._known.words
        if not any(word in lowered for word in words):
            return
        if not self._serving:
            self._look_for_progress(line, lowered)
            self._look_for_figures(line, lowered)
        if is_suspect(line, lowered, self._known):
            with self._lock:
                self._suspects.append(line)

    @property
    def progress(self) -> LoadProgress | None:
        """The last that was heard of the load; ``None`` before the first."""
        return self._progress

    @property
    def figures(self) -> Figures:
        """What was reported so far."""
        with self._lock:
            figures = {name: dict(ranks) for name, ranks in self._figures.items()}
        told = {name: (min if name in _LEAST else max)(ranks.values()) for name, ranks in figures.items()}
        whole = {name: int(value) if value.is_integer() else value for name, value in told.items()}
        return msgspec.convert(whole, readable(Figures))

    def by_rank(self, figure: Figure) -> dict[str, float]:
        """One figure as each rank (or device) told it, under the name that the engine's lines give it."""
        with self._lock:
            return dict(self._figures.get(figure, {}))

    def serves(self) -> None:
        """A token came: from here on only failures are looked for."""
        self._serving = True

    def diagnose(self, lines: tuple[str, ...], exit_code: int | None = None) -> Diagnosis:
        """Why it failed. ``lines`` are its last, oldest first; what this reader has seen before them counts as well."""
        with self._lock:
            suspects = tuple(self._suspects)
        return classify(
            lines,
            engine=self.engine,
            version=self.version,
            exit_code=exit_code,
            stage=None if self._progress is None else self._progress.stage,
            serving=self._serving,
            suspects=suspects,
        )

    def _look_for_progress(self, line: str, lowered: str) -> None:
        for sign, mark in self._known.stages:
            groups = sign.found(line, lowered)
            if groups is not None:
                done, total, percent = (_whole(groups.get(name)) for name in ("done", "total", "percent"))
                fraction = None if percent is None else percent / 100
                if done is not None and total:
                    fraction = done / total
                self._progress = LoadProgress(
                    stage=mark.stage,
                    fraction=None if fraction is None else min(1.0, fraction),
                    done=done,
                    total=total,
                )
                return

    def _look_for_figures(self, line: str, lowered: str) -> None:
        for sign, gauge in self._known.figures:
            groups = sign.found(line, lowered)
            value = None if groups is None else _number(groups.get("value"))
            if groups is not None and value is not None:
                self._keep(gauge, groups.get("rank") or self._known.who(line), value)

    def _keep(self, gauge: Gauge, rank: str, value: float) -> None:
        value *= _IN[gauge.unit]
        if gauge.unit in _WHOLE:
            value = float(round(value))
        if not 0 <= value < LARGEST:
            return
        with self._lock:
            ranks = self._figures.setdefault(gauge.figure, {})
            if rank in ranks or len(ranks) < RANKS:
                ranks[rank] = ranks.get(rank, 0.0) + value if gauge.adds else value


def _number(text: str | None) -> float | None:
    if text is None or len(text) > CHARACTERS:
        return None
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and len(text) <= CHARACTERS and text.isdecimal() else None
