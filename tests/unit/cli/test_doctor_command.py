"""An examination as it is printed."""

from __future__ import annotations

from collections.abc import Callable

import click
import pytest

from autolaunch.cli.app import run
from autolaunch.cli.render_doctor import render_doctor
from autolaunch.cli.terminal import Terminal
from autolaunch.doctor.examine import Examination
from autolaunch.doctor.facts import Finding, Unknown
from selector.hardware import HardwareReport


@pytest.fixture
def found(report_of: Callable[..., HardwareReport]) -> Examination:
    long = "because of one thing and another, " * 4
    return Examination(
        healthy=False,
        exit_code=5,
        findings=(
            Finding(code="a.b", severity="stops", title="it is so", why=f"{long}\x1b[31m", command="do " + "x" * 90),
            Finding(code="c.d", severity="slows", title="and so", why="slow", numbers={"size_bytes": 5}),
        ),
        unknown=(Unknown(what="the clock", why="nobody says"),),
        hardware=report_of(2),
    )


def test_an_examination_fits_80_columns_but_for_commands_which_are_never_broken(found: Examination) -> None:
    lines = click.unstyle(render_doctor(found, Terminal())).splitlines()
    assert [line for line in lines if len(line) > 80] == ["      do " + "x" * 90]
    assert lines[0] == "2 × NVIDIA Test 80GB (80.0 GiB each)"
    assert lines[-1] == "1 thing would stop a launch (exit code 5)."
    assert "\x1b[31m" not in "\n".join(lines)


def test_the_worst_comes_first_and_what_is_not_known_last(found: Examination) -> None:
    text = render_doctor(found, Terminal())
    heads = [text.index(head) for head in ("stops a launch", "slows or may stop one", "not known")]
    assert heads == sorted(heads)
    assert "? the clock: nobody says" in text


def test_verbose_tells_codes_and_figures(found: Examination) -> None:
    assert "c.d size_bytes=5" not in render_doctor(found, Terminal())
    assert "c.d size_bytes=5" in render_doctor(found, Terminal(), verbose=True)


def test_an_unknown_model_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "glm-46"]) == 2
    assert "did you mean" in capsys.readouterr().err
