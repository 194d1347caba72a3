"""Live speed is of requests that had the engine to themselves, of enough of them, and their middle."""

from __future__ import annotations

import pytest
from prometheus_client.registry import CollectorRegistry

from autolaunch.cli.render_measured import render_compared
from autolaunch.cli.terminal import Terminal
from autolaunch.comparison import Comparison
from autolaunch.daemon.gateway.metrics_requests import RequestMetrics
from autolaunch.daemon.pace import SAMPLES, Alone, Pace
from selector.calibration import LEAST_SAMPLES

ONE = Alone(first_token_seconds=0.5, rest_seconds=2.0, prompt_tokens=100, answer_tokens=41)


def test_too_few_say_nothing_and_the_middle_of_enough_does() -> None:
    pace = Pace()
    for _ in range(LEAST_SAMPLES - 1):
        pace.add(ONE)
    assert pace.measured() is None
    pace.add(ONE._replace(rest_seconds=2000.0))  # somebody compiled something meanwhile
    found = pace.measured()
    assert found is not None
    assert (found.source, found.samples) == ("served", LEAST_SAMPLES)
    assert found.decode_tokens_per_second == pytest.approx(20.0)
    assert (found.time_to_first_token_seconds, found.input_tokens, found.output_tokens) == (0.5, 100, 41)


def test_short_answers_and_those_without_a_time_tell_nothing() -> None:
    pace = Pace()
    for each in (ONE._replace(answer_tokens=3), ONE._replace(rest_seconds=0.0), ONE._replace(first_token_seconds=-1.0)):
        pace.add(each)
    assert pace.added == 0


def test_so_many_are_kept_and_another_engine_begins_anew() -> None:
    pace = Pace()
    for number in range(10 * SAMPLES):
        pace.add(ONE._replace(prompt_tokens=0, rest_seconds=1.0 + (number < 9 * SAMPLES)))
    found = pace.measured()
    assert found is not None
    assert (found.samples, found.input_tokens) == (SAMPLES, None)
    assert found.decode_tokens_per_second == pytest.approx(40.0)
    pace.clear()
    assert pace.measured() is None


def test_the_first_token_is_timed_from_when_the_engine_had_the_request() -> None:
    """A request that woke the engine waited for minutes, which says nothing of its speed."""
    now = [0.0]
    seen = RequestMetrics(CollectorRegistry(), models=("a",), clock=lambda: now[0]).begun(
        model="a", route="chat.completions"
    )
    assert seen.alone() is None
    now[0] = 300.0
    seen.routed()
    now[0] = 300.5
    seen.tokens()
    now[0] = 302.5
    seen.tokens(40)
    seen.usage(prompt=100, completion=41)
    seen.ended(status=200, reason="ok")
    assert seen.alone() == ONE


def test_a_page_has_a_row_a_figure_in_eighty_columns() -> None:
    figures = (
        Comparison(name="weights a device", unit="bytes", predicted=2**33, measured=2**32),
        Comparison(name="KV cache", unit="tokens", predicted=519_424, measured=503_840),
        Comparison(name="one request", unit="tokens/s", predicted=59.2, measured=47.4),
        Comparison(name="load", unit="seconds", predicted=0.0, measured=41.5),
    )
    page = render_compared(figures, Terminal())
    assert max(len(line) for line in page.splitlines()) <= 80
    for told in ("8.0 GiB", "4.0 GiB", "0.50×", "503,840 tokens", "tok/s", "42 s"):
        assert told in page
