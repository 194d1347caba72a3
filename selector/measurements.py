"""The reader of ``profiles/measurements``: what others measured, and the configuration they measured it with.

One file a source. A *run* is a configuration as it was started, with ``results`` that were read from it. Nothing is
estimated here and no plan depends on it: ``scripts/validate`` sets the plan's figures beside these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from profiles import DIRECTORY
from selector.catalog import place_of, read_profile
from selector.errors import ProfileError
from selector.facts import EngineName
from selector.request import KvDtype
from selector.values import Value

FOLDER = DIRECTORY / "measurements"

#: What can be true or false of a configuration: its memory suffices, the engine runs it.
Verdict = Literal["fits", "runs"]
#: What is measured in bytes (of one device, where the name says so), tokens, tokens a second or seconds.
Figure = Literal[
    "checkpoint_bytes",
    "weights_bytes_per_device",
    "kv_cache_bytes_per_device",
    "kv_cache_tokens",
    "peak_bytes",
    "decode_tokens_per_second",
    "output_tokens_per_second",
    "prefill_tokens_per_second",
    "time_to_first_token_seconds",
    "time_per_token_seconds",
    "median_token_interval_seconds",
    "load_seconds",
    "power_watts",
]
Metric = Verdict | Figure
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
#: Figures that say nothing without the prompts that were sent; those of the second kind, without the answers.
OF_A_WORKLOAD: tuple[Figure, ...] = (
    "decode_tokens_per_second",
    "output_tokens_per_second",
    "prefill_tokens_per_second",
    "time_to_first_token_seconds",
    "time_per_token_seconds",
    "median_token_interval_seconds",
)
OF_ANSWERS: tuple[Figure, ...] = ("output_tokens_per_second", "time_per_token_seconds", "median_token_interval_seconds")
#: How sure it is that the figure belongs to the configuration; low where the unit or the machine is in doubt.
Trust = Literal["high", "medium", "low"]


class Result(Value, frozen=True, kw_only=True):
    """One figure.

    ``plus_minus`` is what rounding leaves open, in the unit of ``value``. ``input_tokens`` and ``output_tokens``
    are means a request, ``concurrency`` how many requests were under way at most (all that were sent, where all
    were sent at once), ``requests`` how many were sent. ``used`` tells figures that constants of the estimates were
    fitted to from those that only check them. ``excluded`` is why a figure cannot be compared.
    """

    id: str
    metric: Verdict | Figure
    value: bool | float
    plus_minus: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    concurrency: int | None = None
    requests: int | None = None
    used: Literal["fit", "check"]
    trust: Trust
    excluded: str | None = None
    note: str | None = None


class Run(Value, frozen=True, kw_only=True):
    """A configuration, in the terms of :class:`selector.request.Pins`; what is not said was the engine's default.

    ``machine`` is a name that ``--hardware`` takes and holds exactly the devices that were used. ``batched_tokens``
    is told, not pinned: no plan takes it. ``command`` is as published.
    """

    id: str
    model: str
    repo: str
    quantization: str | None = None
    engine: EngineName | None = None
    engine_version: str | None = None
    machine: str | None = None
    tensor: int | None = None
    pipeline: int | None = None
    expert: bool | None = None
    batched_tokens: int | None = None
    eager: bool = False
    speculative: Literal["mtp", "off"] = "off"
    memory_utilization: float | None = None
    max_sequences: int | None = None
    context_tokens: int | None = None
    kv_cache_dtype: KvDtype | None = None
    source: str
    command: str | None = None
    note: str | None = None
    results: tuple[Result, ...]


class Source(Value, frozen=True, kw_only=True):
    """A file: everything one author published. Rows of one source are correlated, so errors are told by source."""

    id: str
    title: str
    source: str
    runs: tuple[Run, ...]


class Measurement(NamedTuple):
    """A result with what it belongs to."""

    source: Source
    run: Run
    result: Result


def sources(folder: Path = FOLDER) -> tuple[Source, ...]:
    """Every file of a folder, in the order of their names.

    Raises:
        ProfileError: a file is wrong, or an id occurs twice.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise ProfileError(f"{place_of(folder)}: {error.strerror}") from error
    found = []
    where: dict[str, str] = {}
    for path in paths:
        one = read_profile(path, Source)
        for key, reason in _faults(path, one, where):
            raise ProfileError(f"{place_of(path)}: {key}: {reason}")
        found.append(one)
    return tuple(found)


def measurements(folder: Path = FOLDER) -> tuple[Measurement, ...]:
    """Every result of every file, in the order in which they are written.

    Raises:
        ProfileError: as :func:`sources`.
    """
    return tuple(
        Measurement(source, run, result) for source in sources(folder) for run in source.runs for result in run.results
    )


def _faults(path: Path, one: Source, where: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What types cannot say; ``where`` holds the ids of the files before and takes in this one's."""
    if one.id != path.stem:
        yield "id", f"is {one.id!r}, but the file's name says {path.stem!r}"
    runs: set[str] = set()
    for place, run in enumerate(one.runs):
        if run.id in runs:
            yield f"runs[{place}].id", f"{run.id!r} is that of another run already"
        runs.add(run.id)
        for index, result in enumerate(run.results):
            key = f"runs[{place}].results[{index}]"
            here = f"{path.name}: {key}"
            if (first := where.setdefault(result.id, here)) != here:
                yield f"{key}.id", f"{result.id!r} is that of {first} already"
            yield from ((f"{key}.{name}", reason) for name, reason in _result_faults(run, result))


def _result_faults(run: Run, result: Result) -> Iterator[tuple[str, str]]:
    if isinstance(result.value, bool) != (result.metric in VERDICTS):
        yield "value", f"{result.metric} is {'true or false' if result.metric in VERDICTS else 'a figure'}"
    elif not isinstance(result.value, bool) and not (0 < result.value < float("inf")):
        yield "value", f"cannot be {result.value}"
    if result.plus_minus < 0:
        yield "plus_minus", "cannot be less than 0"
    if result.excluded is not None:
        return
    if run.machine is None and result.metric != "checkpoint_bytes":
        yield "excluded", "say why: without a machine nothing can be planned"
    asked = (result.input_tokens, result.concurrency)
    if (result.metric in OF_A_WORKLOAD and None in asked) or (
        result.metric in OF_ANSWERS and result.output_tokens is None
    ):
        yield "excluded", "say why: without tokens and concurrency no speed can be planned"
