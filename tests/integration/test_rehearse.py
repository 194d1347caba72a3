"""Plans proven from the command line with the real engines: a stream, a parsed call, an image, and the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-c", "from autolaunch.__main__ import main; main()")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*MAIN, *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "AUTOLAUNCH_HOME": str(home)},
        timeout=580,
        check=False,
    )


def rehearsed(home: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the report, and what a person saw."""
    done = run(home, "--port", "0", "--json", *arguments)
    return done.returncode, json.loads(done.stdout), done.stderr


def steps(report: dict[str, Any]) -> dict[str, bool | None]:
    return {step["name"]: step["ok"] for step in report["steps"]}


def figure(report: dict[str, Any], name: str) -> tuple[float, float]:
    found = next(each for each in report["figures"] if each["name"] == name)
    return found["predicted"], found["measured"]


@pytest.mark.parametrize("engine", ["mlx", "llamacpp", "transformers", "vllm"])
def test_an_engine_streams_and_parses_a_call(engine: str, engines_home: Path) -> None:
    code, report, told = rehearsed(engines_home, "glm-tiny", "--engine", engine, "--rehearse")
    assert code == 0, told
    assert steps(report) == {"started": True, "streamed": True, "tool call": True, "image": None}
    assert report["ok"]
    assert report["failure"] is None
    if engine in ("llamacpp", "vllm"):  # the others do not tell the size of their cache
        predicted, measured = figure(report, "KV cache")
        assert measured == predicted
    predicted, measured = figure(report, "main memory in use")
    assert 0 < measured <= 1.25 * predicted


@pytest.mark.parametrize("engine", ["mlx", "vllm"])
def test_an_engine_sees_an_image(engine: str, engines_home: Path) -> None:
    code, report, told = rehearsed(engines_home, "glm-tiny-v", "--engine", engine, "--rehearse")
    assert code == 0, told
    assert steps(report) == {"started": True, "streamed": True, "tool call": True, "image": True}


def test_the_real_shapes_are_proven_without_their_weights(engines_home: Path) -> None:
    code, report, told = rehearsed(engines_home, "glm-tiny", "--engine", "vllm", "--rehearse=dummy")
    assert code == 0, told
    assert steps(report) == {"started": True, "streamed": True, "tool call": None, "image": None}
    predicted, measured = figure(report, "KV cache")
    assert measured == predicted
    assert not list((engines_home / "rehearsals").iterdir())


def test_glm_4_6_is_proven_on_a_miniature_of_its_own_architecture(engines_home: Path) -> None:
    """The engine and the flags of the plan; the model is cut down, but for the widths that kernels ask about."""
    line = ("glm-4.6", "--hardware", "cpu-1024gb", "--engine", "transformers", "--rehearse")
    code, report, told = rehearsed(engines_home, *line)
    assert code == 0, told
    assert steps(report) == {"started": True, "streamed": True, "tool call": True, "image": None}
    assert report["stands_in"]
    assert report["plan"]["checkpoint"]["repo"] == "zai-org/GLM-4.6"
    assert report["rehearsed"]["limits"]["context_tokens"] == report["plan"]["limits"]["context_tokens"]


def test_what_stops_an_engine_is_classified_in_the_report(engines_home: Path) -> None:
    """An option that this engine has and that cannot be: its own words, a cause, a hint, and exit code 5."""
    line = ("glm-tiny", "--engine", "transformers", "--rehearse", "--", "--attn-implementation", "no_such_attention")
    code, report, told = rehearsed(engines_home, *line)
    assert code == 5, told
    assert steps(report) == {"started": False}
    assert not report["ok"]
    assert report["failure"]["code"] == "engine.start"
    assert "no_such_attention" in report["failure"]["message"] + "".join(report["failure"]["lines"])
    assert report["failure"]["hint"]


def test_a_plan_for_devices_that_are_not_here_is_not_rehearsed_elsewhere(engines_home: Path) -> None:
    line = ("glm-4.6", "--hardware", "8xh200", "--engine", "vllm", "--data-parallel", "1", "--rehearse")
    done = run(engines_home, *line)
    assert done.returncode == 2
    assert "8 nvidia devices" in done.stderr
