"""``autolaunch advise``: what fits now in a line, what would do more, the smallest machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import msgspec
import pytest

from autolaunch import api
from autolaunch.cli.app import run
from autolaunch.cli.render_advice import render_advice
from autolaunch.cli.terminal import Terminal
from selector.contract import Advice, Advised, LaunchPlan
from selector.hardware import Finding, HardwareReport


def drawn(plan: LaunchPlan) -> str:
    return click.unstyle(render_advice(plan, Terminal(width_columns=80)))


def with_advice(plan: LaunchPlan) -> LaunchPlan:
    advice = (
        Advice(
            kind="kv_cache", message="a KV cache in fp8 would do", command="autolaunch glm-4.6 --kv-cache-dtype fp8"
        ),
        Advice(
            kind="hardware", message="4xh100: GLM-4.6-AWQ Int4", command="autolaunch plan glm-4.6 --hardware 4xh100"
        ),
    )
    return msgspec.structs.replace(plan, advice=advice)


def test_what_fits_now_comes_first_and_then_what_would_do_more(plan: LaunchPlan) -> None:
    text = drawn(with_advice(plan))
    places = [
        text.index(part)
        for part in (
            "glm-4.6 on 2 × NVIDIA Test 80GB",
            "fits now: some-org/GLM-4.6-FP8 (FP8) with vllm",
            "What would do more here",
            "a KV cache in fp8 would do",
            "autolaunch glm-4.6 --kv-cache-dtype fp8",
            "The smallest machines that serve it",
            "4xh100: GLM-4.6-AWQ Int4",
            "autolaunch plan glm-4.6 --hardware 4xh100",
        )
    ]
    assert places == sorted(places)
    assert "Refused" not in text


def test_where_nothing_would_do_more_that_is_said(plan: LaunchPlan) -> None:
    assert "Nothing that could be changed here would do more." in drawn(plan)


def test_what_does_not_fit_is_told_what_would(infeasible: LaunchPlan) -> None:
    text = drawn(infeasible)
    assert text.startswith("No plan for glm-4.6 fits this machine.")
    assert "What comes nearest" in text
    assert "What would make it fit here" in text
    assert "autolaunch glm-4.6 --context 8192" in text
    assert "4xh100: FP8 on vllm" in text


@pytest.mark.parametrize("line", ["glm-4.6 --hardware 2xh100", "glm-4.6 --hardware 8xh200", "glm-4.5v --hardware gb10"])
def test_the_advice_fits_80_columns_and_exits_0(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run(["advise", *line.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [each for each in lines if not each.startswith("      autolaunch ")]  # commands are pasted whole
    assert max(map(len, told)) <= 80
    assert "The smallest machines that serve it" in lines


def test_json_is_the_advice_with_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["advise", "glm-4.6", "--hardware", "1xh100", "--objective", "latency", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    told = json.loads(out)
    assert list(told) == ["schema", "model", "feasible", "request", "chosen", "advice"]
    assert (told["schema"], told["model"], told["feasible"], told["chosen"]) == (1, "glm-4.6", False, None)
    assert told["request"]["objective"] == "latency"
    advised = msgspec.json.decode(out, type=Advised)
    assert "hardware" in {each.kind for each in advised.advice}


def test_wishes_and_pins_of_a_plan_are_those_of_advice(
    monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def answer(model: str, **given: Any) -> LaunchPlan:
        seen.update(given, model=model)
        return plan

    monkeypatch.setattr(api, "plan", answer)
    assert (
        run(["advise", "glm-4.6", "--context", "32k", "--concurrency", "4", "--engine", "vllm", "--hardware", "8xh200"])
        == 0
    )
    assert (seen["context_tokens"], seen["concurrency"], seen["hardware"]) == (32768, 4, "8xh200")
    assert seen["pins"].engine == "vllm"
    assert seen["thorough"] is True


def test_nothing_that_fits_and_nothing_to_advise_exits_3(
    monkeypatch: pytest.MonkeyPatch, infeasible: LaunchPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "plan", lambda *_, **__: msgspec.structs.replace(infeasible, advice=()))
    assert run(["advise", "glm-4.6"]) == 3
    assert "What comes nearest" in capsys.readouterr().out
    monkeypatch.setattr(api, "plan", lambda *_, **__: infeasible)
    assert run(["advise", "glm-4.6"]) == 0


def test_gpus_that_could_not_be_asked_are_no_reason_to_sell_a_machine(
    monkeypatch: pytest.MonkeyPatch,
    infeasible: LaunchPlan,
    report_of: Callable[..., HardwareReport],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = Finding(probe="nvidia", outcome="failed", reason="the driver is not loaded")
    report = msgspec.structs.replace(report_of(0), findings=(failed,))
    monkeypatch.setattr(api, "plan", lambda *_, **__: msgspec.structs.replace(infeasible, hardware=report))
    assert run(["advise", "glm-4.6"]) == 4
    assert "4xh100" not in capsys.readouterr().out


def test_an_option_of_a_plan_that_advice_lacks_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["advise", "glm-4.6", "--all"]) == 2
