"""--rehearse on the command line: what it goes with, and the report. (The rehearsal itself: integration.)"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

import autolaunch.rehearsing
from autolaunch import api
from autolaunch.cli.app import run
from autolaunch.cli.rehearse import render_rehearsal
from autolaunch.cli.terminal import Terminal
from autolaunch.comparison import Comparison
from autolaunch.proof import Step
from autolaunch.rehearsing import Failure, Rehearsal
from selector.contract import LaunchPlan
from tests.unit.cli.conftest import make_candidate

GIB = 1024**3


def rehearsal(**changes: Any) -> Rehearsal:
    found = Rehearsal(
        model="glm-4.6",
        mode="miniature",
        ok=True,
        plan=make_candidate(),
        rehearsed=make_candidate(),
        steps=(
            Step(name="started", ok=True, message="a token came back", seconds=41.0),
            Step(name="streamed", ok=True, message="32 tokens", seconds=0.5),
            Step(name="tool call", ok=True, message="get_weather(city='Paris')", seconds=0.4),
            Step(name="image", ok=None, message="the model takes none"),
        ),
        figures=(
            Comparison(name="weights a device", unit="bytes", predicted=2.0 * GIB, measured=2.1 * GIB),
            Comparison(name="KV cache", unit="tokens", predicted=120_000, measured=119_000),
            Comparison(name="one request", unit="tokens/s", predicted=40.0, measured=60.0),
        ),
        log_path="/logs/vllm.log",
    )
    return msgspec.structs.replace(found, **changes)


FAILED = rehearsal(
    ok=False,
    steps=(Step(name="started", ok=False, message="vllm exited with code 1 while loading", seconds=12.0),),
    figures=(),
    failure=Failure(
        code="engine.start",
        message="vllm exited with code 1 while loading: out of memory",
        hint="lower --context",
        lines=("CUDA out of memory",),
    ),
)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan) -> list[dict[str, Any]]:
    """What the rehearsal was called with; it comes to ``results`` in turn."""
    seen: list[dict[str, Any]] = []

    def rehearse(_plan: LaunchPlan, **given: Any) -> Rehearsal:
        seen.append(given)
        return rehearsal() if given["mode"] == "miniature" else FAILED

    monkeypatch.setattr(api, "plan", lambda *_, **__: plan)
    monkeypatch.setattr(autolaunch.rehearsing, "rehearse", rehearse)
    monkeypatch.setattr("autolaunch.cli.rehearse.rehearse", rehearse)
    return seen


def test_the_report_tells_what_was_proven_and_the_figures_beside_each_other() -> None:
    text = render_rehearsal(rehearsal(), Terminal(width_columns=80, color=False, unicode=True))
    assert "Proven: glm-4.6 as planned" in text
    assert "✓ tool call" in text
    assert "– image" in text
    line = next(line for line in text.splitlines() if "KV cache" in line)
    assert line.split()[-5:] == ["120,000", "tokens", "119,000", "tokens", "0.99×"]
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_failed_rehearsal_tells_the_cause_what_to_do_and_where_the_output_is() -> None:
    text = render_rehearsal(FAILED, Terminal(width_columns=80, color=False, unicode=True))
    assert "Not proven" in text
    assert "out of memory" in text
    assert "lower --context" in text
    assert "/logs/vllm.log" in text


def test_the_bare_option_rehearses_a_miniature_and_takes_no_model_for_its_mode(
    played: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--rehearse", "glm-4.6"]) == 0
    assert played[0]["mode"] == "miniature"
    assert "Proven" in capsys.readouterr().out


def test_a_rehearsal_that_failed_exits_5_with_its_report(
    played: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["glm-4.6", "--rehearse=dummy", "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["ok"], document["failure"]["code"]) == (1, False, "engine.start")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ask", "hi"], "--rehearse asks questions of its own"),
        (["--dry-run"], "--dry-run starts nothing"),
        (["--model-path", "/m"], "makes its weights itself"),
        (["--image", __file__], "--image goes with --ask"),
    ],
)
def test_what_contradicts_a_rehearsal_is_refused_before_anything_is_planned(
    played: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert run(["glm-4.6", "--rehearse", *more]) == 2
    assert said in capsys.readouterr().err
    assert not played


def test_a_mode_that_is_none_is_refused(played: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["glm-4.6", "--rehearse=full"]) == 2
    assert "miniature" in capsys.readouterr().err
