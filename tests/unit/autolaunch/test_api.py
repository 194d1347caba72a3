"""The Python API beside the planner: places, and commands in plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autolaunch
import profiles
from autolaunch import api
from selector.catalog import Catalog


def test_the_home_is_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOLAUNCH_HOME", "/a")
    assert api.home() == Path("/a")
    monkeypatch.delenv("AUTOLAUNCH_HOME")
    assert api.home().name == "autolaunch"


def test_a_users_own_profile_adds_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path))
    own = tmp_path / "profiles" / "models" / "glm-mine.toml"
    own.parent.mkdir(parents=True)
    shipped = profiles.DIRECTORY / "models" / "glm-tiny.toml"
    own.write_text(shipped.read_text().replace('id = "glm-tiny"', 'id = "glm-mine"'))
    assert "glm-mine" in api.catalog().model_ids()
    assert api.plan("glm-mine", hardware="cpu-64gb").feasible


def test_names_of_the_package_are_there_and_others_are_not() -> None:
    for name in autolaunch.__all__:
        assert getattr(autolaunch, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = autolaunch.nothing_like_it


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, autolaunch; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"msgspec", "click", "rich", "psutil", "pynvml", "asyncio", "huggingface_hub"} & set(loaded)


def test_every_candidate_of_a_plan_has_its_command(catalog: Catalog) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog)
    assert plan.chosen is not None
    for each in (plan.chosen, *plan.alternatives):
        assert each.command is not None
        assert each.checkpoint.repo in " ".join(each.command.argv)
        assert each.command.env["CUDA_VISIBLE_DEVICES"].startswith("0,1,2,3")
