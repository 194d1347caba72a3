"""Which Python has Ray, found without importing it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autolaunch.cluster import interpreters
from selector.errors import NoRay


def script(folder: Path, text: str, name: str = "ray") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return script(tmp_path / "an env" / "bin", "", name="python3.11")


@pytest.fixture(autouse=True)
def no_ray_beside_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "_has_ray", lambda: False)


@pytest.mark.parametrize(
    "form",
    [
        "#!{python}\nimport sys\n",
        "#!{python}\r\nimport sys\r\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\n",
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\nimport sys\n",
    ],
)
def test_the_python_behind_a_console_script_is_the_one_it_names(form: str, python: Path, tmp_path: Path) -> None:
    ray = script(tmp_path / "bin", form.format(python=python))
    assert interpreters.interpreters({"PATH": str(ray.parent)}) == (python,)


def test_a_script_of_env_is_run_by_the_python_of_the_path(python: Path, tmp_path: Path) -> None:
    assert interpreters.python_of(script(tmp_path / "bin", "#!/usr/bin/env nothing-of-that-name\n")) is None
    beside = script(tmp_path / "bin", "", name="python")
    assert interpreters.python_of(script(tmp_path / "bin", "#!/usr/bin/env nothing-of-that-name\n")) == beside


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01", b"#!\n", b"#!/bin/sh\n", b"#!/nowhere/python\n", b"\xff" * 9000]
)
def test_a_ray_that_names_no_python_is_told_and_not_run(content: bytes, tmp_path: Path) -> None:
    ray = script(tmp_path / "bin", "")
    ray.write_bytes(content)
    with pytest.raises(NoRay, match="names no Python") as told:
        interpreters.interpreters({"PATH": str(ray.parent)})
    assert told.value.exit_code == 4


def test_without_any_ray_the_command_that_installs_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoRay, match="no Ray is here") as told:
        interpreters.interpreters({"PATH": str(tmp_path)})
    assert "pip install 'glm-autolaunch[ray]'" in (told.value.hint or "")


def test_our_own_python_is_tried_first_and_once(monkeypatch: pytest.MonkeyPatch, python: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(interpreters, "_has_ray", lambda: True)
    other = script(tmp_path / "bin", f"#!{python}\n")
    own = script(tmp_path / "own", f"#!{sys.executable}\n")
    assert interpreters.interpreters({"PATH": str(other.parent)}) == (Path(sys.executable), python)
    assert interpreters.interpreters({"PATH": str(own.parent)}) == (Path(sys.executable),)
