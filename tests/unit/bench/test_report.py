"""guidellm's reports: two that it wrote of a miniature (their headers, which hold the key, are taken out), and junk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autolaunch.bench.load import load_of
from autolaunch.bench.report import read_report
from autolaunch.bench.run import measured_of
from selector.errors import EngineError

RECORDED = Path(__file__).parents[2] / "data" / "bench"


def recorded(name: str) -> Path:
    return RECORDED / f"guidellm-0.3.1-{name}.json"


def written(path: Path, *requests: dict[str, Any], **others: Any) -> Path:
    path.write_text(json.dumps({"benchmarks": [{"requests": {"successful": requests, **others}}]}))
    return path


def test_a_recorded_report_of_one_request_at_a_time_is_read() -> None:
    found = read_report(recorded("synchronous"))
    assert (found.requests, found.errors, found.incomplete, found.error) == (4, 0, 0, None)
    assert (found.input_tokens, found.output_tokens) == (346.75, 16.0)
    assert found.time_to_first_token_seconds == pytest.approx(1.015, abs=0.05)
    assert found.decode_tokens_per_second == pytest.approx(128, abs=25)


def test_a_throughput_is_that_of_all_requests_from_the_first_to_the_last() -> None:
    found = read_report(recorded("concurrent"))
    assert (found.requests, found.output_tokens) == (16, 16.0)
    assert found.seconds is not None
    assert found.throughput_tokens_per_second == pytest.approx(256 / found.seconds)
    # guidellm's own figure, which weighs the same requests by time
    assert found.throughput_tokens_per_second == pytest.approx(13.1, rel=0.02)


def test_the_figures_are_those_of_the_requests(tmp_path: Path) -> None:
    one = {"prompt_tokens": 100, "output_tokens": 11, "start_time": 10.0, "end_time": 13.0}
    first = {**one, "first_token_time": 11.0, "last_token_time": 13.0}
    second = {**one, "start_time": 11.0, "end_time": 16.0, "first_token_time": 11.5, "last_token_time": 13.5}
    found = read_report(written(tmp_path / "report.json", first, second))
    assert (found.seconds, found.throughput_tokens_per_second) == (6.0, 22 / 6)
    assert (found.time_to_first_token_seconds, found.decode_tokens_per_second) == (0.75, 5.0)


def test_what_a_report_does_not_show_is_unknown(tmp_path: Path) -> None:
    found = read_report(written(tmp_path / "report.json", {"output_tokens": 1, "start_time": 1.0}))
    assert found.requests == 1
    assert (found.decode_tokens_per_second, found.throughput_tokens_per_second, found.seconds) == (None, None, None)
    backwards = {
        "output_tokens": 5,
        "start_time": 9.0,
        "end_time": 3.0,
        "first_token_time": 2.0,
        "last_token_time": 1.0,
    }
    found = read_report(written(tmp_path / "report.json", backwards))
    assert (found.time_to_first_token_seconds, found.decode_tokens_per_second, found.seconds) == (None, None, None)


def test_what_failed_is_counted_and_told_in_short(tmp_path: Path) -> None:
    found = read_report(written(tmp_path / "report.json", errored=[{"error": "x" * 9000}], incomplete=[{}, {}]))
    assert (found.requests, found.errors, found.incomplete, len(found.error or "")) == (0, 1, 2, 500)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"benchmarks": []}',
        '{"benchmarks": [{"requests": {}}, {"requests": {}}]}',
        '{"benchmarks": [{"requests": {"successful": [{"output_tokens": -1}]}}]}',
        '{"benchmarks": [{"requests": {"successful": [{"output_tokens": 1e300}]}}]}',
        '{"benchmarks": [{"requests": {"successful": [{"start_time": "now"}]}}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(EngineError, match="guidellm's report"):
        read_report(tmp_path / "report.json")


def test_a_report_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="left no report"):
        read_report(tmp_path / "report.json")


def test_what_is_kept_is_of_the_measurements() -> None:
    alone, together = read_report(recorded("synchronous")), read_report(recorded("concurrent"))
    load = load_of(input_tokens=350, output_tokens=16, concurrency=4)
    kept = measured_of(load, alone, together, at=1e9)
    assert (kept.source, kept.samples, kept.concurrency, kept.input_tokens, kept.output_tokens) == (
        "bench",
        20,
        4,
        351,
        16,
    )
    assert kept.decode_tokens_per_second == alone.decode_tokens_per_second
    assert kept.throughput_tokens_per_second == together.throughput_tokens_per_second
    assert kept.prefill_tokens_per_second is not None


def test_a_short_prompt_tells_nothing_of_how_fast_prompts_are_read(tmp_path: Path) -> None:
    short = {"prompt_tokens": 20, "start_time": 1.0, "first_token_time": 1.1, "output_tokens": 2}
    found = read_report(written(tmp_path / "report.json", short))
    load = load_of(input_tokens=20, output_tokens=16, concurrency=4)
    assert measured_of(load, found, found, at=1e9).prefill_tokens_per_second is None
