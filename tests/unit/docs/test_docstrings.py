"""What the docstrings of the public API show and tell; ``tests/packaging/test_typed.py`` types their examples."""

from __future__ import annotations

import inspect

import pytest

import autolaunch
from tests import docstrings


@pytest.mark.parametrize("name", (*docstrings.FUNCTIONS, *docstrings.CLASSES))
def test_whatever_is_called_shows_how_in_code_that_compiles(name: str) -> None:
    assert docstrings.examples(name), name
    compile(docstrings.script(name), name, "exec")


@pytest.mark.parametrize("name", docstrings.FUNCTIONS)
def test_every_argument_what_comes_back_and_what_is_raised_is_told(name: str) -> None:
    text = docstrings.text_of(name)
    assert "\nReturns:\n" in text
    told = text.partition("\nArgs:\n")[2]
    for parameter in inspect.signature(getattr(autolaunch, name)).parameters:
        assert f"{parameter}:" in told or f"``{parameter}``:" in told, parameter
    assert "\nRaises:\n" in text or name == "probe"


@pytest.mark.parametrize("name", ["plan", "probe"])
def test_what_only_looks_runs_as_it_stands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for code in docstrings.examples(name):
        exec(compile(code, name, "exec"), {"autolaunch": autolaunch})  # noqa: S102 - the project's own text
    assert capsys.readouterr().out
