"""The patterns of ``profiles/logs``: read once an engine, compiled once a pattern, bounded in what they look at.

A flood of lines must cost next to nothing, so every pattern names words (``has``) of which one is in the line; the
regular expression is tried only there. Repetitions inside repetitions are refused by a test, and no more than
``LINE_CHARACTERS`` of a line are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import msgspec

from profiles import DIRECTORY
from selector.catalog import read_profile
from selector.errors import ProfileError
from selector.values import Value
from selector.versions import in_versions

FOLDER = DIRECTORY / "logs"
#: What every engine may say: Python, PyTorch, CUDA, NCCL, the system.
COMMON = "common"
#: No sentence of an engine that tells anything is longer.
LINE_CHARACTERS = 2_000

#: Why an engine failed. These names are a contract: messages, retries and what is learned go by them.
Cause = Literal[
    "out of memory",
    "out of host memory",
    "kv cache does not fit",
    "bad argument",
    "missing kernel",
    "import error",
    "bad weights",
    "model not supported",
    "port in use",
    "driver",
    "device lost",
    "device error",
    "communication",
    "graph capture",
    "worker died",
    "devices held",
    "disk full",
    "killed",
    "stopped",
    "unknown",
]
#: The parts of a load, in the order in which they come as a rule.
LoadStage = Literal["start", "weights", "profile", "compile", "graphs", "warmup", "ready"]
#: What an engine reports of itself (the fields of :class:`engines.logs.reader.Figures`).
Figure = Literal[
    "weights_bytes",
    "host_weights_bytes",
    "kv_cache_bytes",
    "host_kv_cache_bytes",
    "kv_cache_tokens",
    "context_tokens",
    "graphs_bytes",
    "activations_bytes",
    "load_seconds",
    "compile_seconds",
    "graphs_seconds",
    "start_seconds",
    "max_concurrency",
]
Unit = Literal["bytes", "MiB", "GiB", "seconds", "tokens", "times"]


class CauseFacts(Value, frozen=True, kw_only=True):
    """What is to be thought of a cause.

    ``permanent``: the same command on the same machine fails the same way, so it is not tried again unchanged;
    ``permanent_while_serving`` where that differs once tokens have come. ``in_stage``: what it is rather called in some
    part of the load.
    """

    name: Cause
    permanent: bool
    permanent_while_serving: bool | None = None
    hint: str | None = None
    in_stage: dict[LoadStage, Cause] = msgspec.field(default_factory=dict)


class Failure(Value, frozen=True, kw_only=True):
    """A line that tells a failure.

    A ``consequence`` is told by an engine about itself (a worker has died) and gives way to what is above it.
    ``pattern`` may name groups: ``fitting_context_tokens``, ``needed_gib``, ``available_gib``, ``device``; ``hint``
    may use those that are numbers of tokens, in braces. ``at_any_level``: it is told though its line's level is quiet.
    """

    has: tuple[str, ...]
    cause: Cause
    source: str
    pattern: str | None = None
    hint: str | None = None
    consequence: bool = False
    at_any_level: bool = False
    since: str | None = None
    before: str | None = None


class Mark(Value, frozen=True, kw_only=True):
    """A line that tells how far the load is: groups ``done`` and ``total``, or ``percent``."""

    has: tuple[str, ...]
    stage: LoadStage
    source: str
    pattern: str | None = None
    since: str | None = None
    before: str | None = None


class Gauge(Value, frozen=True, kw_only=True):
    """A line with a figure: group ``value``, and ``rank`` where the line names whose it is.

    ``adds``: a rank may print several that count together (buffers, a draft model), else its last one counts.
    """

    has: tuple[str, ...]
    figure: Figure
    pattern: str
    unit: Unit
    source: str
    adds: bool = False
    since: str | None = None
    before: str | None = None


class LogFacts(Value, frozen=True, kw_only=True):
    """One file of ``profiles/logs``.

    ``prefix`` is what a logger puts before a message; ``quiet`` matches the beginning of lines of a level that tells no
    failure; ``rank`` finds who prints.
    """

    schema: Literal[1]
    engine: str
    source: str
    prefix: str | None = None
    quiet: str | None = None
    rank: str | None = None
    causes: tuple[CauseFacts, ...] = ()
    failures: tuple[Failure, ...] = ()
    stages: tuple[Mark, ...] = ()
    figures: tuple[Gauge, ...] = ()


_Facts = TypeVar("_Facts", Failure, Mark, Gauge)


class Sign(NamedTuple):
    """A pattern ready for use. ``lowered`` is always the line in lower case."""

    words: tuple[str, ...]
    expression: re.Pattern[str] | None

    def found(self, line: str, lowered: str) -> dict[str, str] | None:
        """The named groups when it is in the line, else ``None``."""
        if not any(word in lowered for word in self.words):
            return None
        if self.expression is None:
            return {}
        match = self.expression.search(line)
        return None if match is None else {name: text for name, text in match.groupdict().items() if text is not None}


class Known(NamedTuple):
    """All that is known of one engine's output in one version, the engine's own patterns first."""

    causes: dict[Cause, CauseFacts]
    failures: tuple[tuple[Sign, Failure], ...]
    stages: tuple[tuple[Sign, Mark], ...]
    figures: tuple[tuple[Sign, Gauge], ...]
    prefix: re.Pattern[str] | None
    quiet: re.Pattern[str] | None
    rank: re.Pattern[str] | None
    #: Every word of a failure, and every word of anything: a line without one of them tells nothing.
    failure_words: tuple[str, ...]
    words: tuple[str, ...]

    def message(self, line: str) -> str:
        """A line without what its logger put before it."""
        return line if self.prefix is None else self.prefix.sub("", line, count=1)

    def is_quiet(self, line: str) -> bool:
        """Whether a line is of a level that tells no failure."""
        return self.quiet is not None and self.quiet.search(line) is not None

    def who(self, line: str) -> str:
        """The rank that printed a line, under the name that it gives itself; "" where it gives none."""
        match = None if self.rank is None else self.rank.search(line)
        return "" if match is None else match["rank"].strip()


@lru_cache(maxsize=16)
def known(engine: str, version: str | None = None) -> Known:
    """What is known of ``engine``; of one that nobody described, what every engine may say. No version: everything.

    Raises:
        ProfileError: a file is wrong.
    """
    common = _file(COMMON)
    own = _file(engine) if engine != COMMON and (FOLDER / f"{engine}.toml").is_file() else None
    files = (common,) if own is None else (own, common)
    failures = tuple(_signs((each for file in files for each in file.failures), version))
    stages = tuple(_signs((each for file in files for each in file.stages), version))
    figures = tuple(_signs((each for file in files for each in file.figures), version))
    failure_words = dict.fromkeys(word for sign, _ in failures for word in sign.words)
    other_words = dict.fromkeys(word for sign, _ in (*stages, *figures) for word in sign.words)
    return Known(
        causes={each.name: each for each in common.causes},
        failures=failures,
        stages=stages,
        figures=figures,
        prefix=_optional(None if own is None else own.prefix),
        quiet=_optional(None if own is None else own.quiet),
        rank=_optional(None if own is None else own.rank),
        failure_words=tuple(failure_words),
        words=tuple(failure_words | other_words),
    )


def engines() -> tuple[str, ...]:
    """Every file of patterns, by name."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


@lru_cache(maxsize=16)
def _file(name: str) -> LogFacts:
    path = FOLDER / f"{name}.toml"
    facts = read_profile(path, LogFacts)
    if facts.engine != name:
        raise ProfileError(f"profiles/logs/{path.name}: engine: is {facts.engine!r}, but the file's name says {name!r}")
    return facts


def _signs(facts: Iterable[_Facts], version: str | None) -> Iterable[tuple[Sign, _Facts]]:
    for each in facts:
        if version is None or in_versions(version, each.since, each.before):
            expression = None if each.pattern is None else _compiled(each.pattern)
            yield Sign(tuple(word.lower() for word in each.has), expression), each


def _optional(pattern: str | None) -> re.Pattern[str] | None:
    return None if pattern is None else _compiled(pattern)


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ProfileError(f"profiles/logs: {pattern!r} is no regular expression: {error}") from error
