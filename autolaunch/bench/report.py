"""guidellm's report (0.3), read with bounds: of every request its tokens and when they came; the rest is left."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
from msgspec import Meta

from selector.errors import EngineError
from selector.values import Value, readable

#: Every request stands in it with its prompt and its answer, three times.
REPORT_BYTES = 1 << 30
_TEXT_CHARACTERS = 500

_Tokens = Annotated[int, Meta(ge=0, le=2**31)]
_Time = Annotated[float, Meta(ge=0, le=1e11)]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Of what guidellm writes only some is read: what is not known is passed over."""


class _Request(_Part, frozen=True, kw_only=True):
    prompt_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    start_time: _Time | None = None
    end_time: _Time | None = None
    first_token_time: _Time | None = None
    last_token_time: _Time | None = None
    error: str | None = None


class _Requests(_Part, frozen=True, kw_only=True):
    successful: tuple[_Request, ...] = ()
    errored: tuple[_Request, ...] = ()
    incomplete: tuple[_Request, ...] = ()


class _Benchmark(_Part, frozen=True, kw_only=True):
    requests: _Requests


class _Report(_Part, frozen=True, kw_only=True):
    benchmarks: tuple[_Benchmark, ...]


class Stretch(Value, frozen=True, kw_only=True):
    """What a stretch of requests showed.

    Medians over requests, but for ``throughput_tokens_per_second``: the tokens of all answers over the time from the
    first request's start to the last one's end. Token counts are means. ``None`` is what it did not show.
    ``incomplete`` requests were under way when the time was over.
    """

    requests: int
    errors: int = 0
    incomplete: int = 0
    error: str | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    time_to_first_token_seconds: float | None = None
    decode_tokens_per_second: float | None = None
    throughput_tokens_per_second: float | None = None
    seconds: float | None = None


def read_report(path: Path) -> Stretch:
    """The one benchmark of a report.

    Raises:
        EngineError: there is none, or it is no report of guidellm's.
    """
    try:
        with path.open("rb") as file:
            content = file.read(REPORT_BYTES + 1)
    except OSError as error:
        raise EngineError(f"guidellm left no report: {error.strerror}") from error
    if len(content) > REPORT_BYTES:
        raise EngineError(
            "guidellm's report is larger than a gigabyte", hint="--requests lowers the number of requests"
        )
    try:
        report = msgspec.json.decode(content, type=readable(_Report))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"guidellm's report cannot be read: {error}") from error
    if len(report.benchmarks) != 1:
        raise EngineError(f"guidellm's report has {len(report.benchmarks)} benchmarks, and one was asked for")
    return _stretch(report.benchmarks[0].requests)


def _stretch(requests: _Requests) -> Stretch:
    whole = requests.successful
    told = next((each.error for each in requests.errored if each.error), None)
    starts = [each.start_time for each in whole if each.start_time is not None]
    ends = [each.end_time for each in whole if each.end_time is not None]
    seconds = max(ends) - min(starts) if starts and ends and max(ends) > min(starts) else None
    tokens = [each.output_tokens for each in whole if each.output_tokens]
    return Stretch(
        requests=len(whole),
        errors=len(requests.errored),
        incomplete=len(requests.incomplete),
        error=None if told is None else told[:_TEXT_CHARACTERS],
        input_tokens=_mean([each.prompt_tokens for each in whole if each.prompt_tokens]),
        output_tokens=_mean(tokens),
        time_to_first_token_seconds=_median(
            [each.first_token_time - each.start_time for each in whole if each.first_token_time and each.start_time]
        ),
        decode_tokens_per_second=_median(
            [
                (each.output_tokens - 1) / (each.last_token_time - each.first_token_time)
                for each in whole
                if each.output_tokens
                and each.first_token_time
                and each.last_token_time
                and each.last_token_time > each.first_token_time
            ]
        ),
        throughput_tokens_per_second=sum(tokens) / seconds if seconds and tokens else None,
        seconds=seconds,
    )


def _median(values: list[float]) -> float | None:
    """``None`` where there is none above zero: a clock that jumped measures nothing."""
    positive = [each for each in values if each > 0]
    return median(positive) if positive else None


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None
