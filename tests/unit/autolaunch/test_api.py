"""The Python API beside the planner: places, and commands in plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import pytest

import autolaunch
import profiles
from autolaunch import api
from selector.catalog import Catalog
from selector.errors import UnknownHardware, UsageError
from selector.machines import report_from_spec
from selector.request import Pins


def test_the_home_is_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOLAUNCH_HOME", "/a")
    assert api.home() == Path("/a")


@pytest.mark.parametrize("data", [None, "", "/d", "relative"])
def test_else_it_is_the_users_data_folder(data: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOLAUNCH_HOME", raising=False)
    if data is None:
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_DATA_HOME", data)
    assert api.home() == Path(platformdirs.user_data_dir("autolaunch", appauthor=False))


def test_on_a_mac_it_is_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOLAUNCH_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert api.home() == Path.home() / "Library" / "Application Support" / "autolaunch"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number nobody has given a name."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AUTOLAUNCH_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UsageError, match="no home folder") as told:
        api.home()
    assert told.value.hint is not None
    assert "AUTOLAUNCH_HOME" in told.value.hint


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


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (Pins(speculative="eagle"), "speculative"),  # type: ignore[arg-type]  # what a script may hand over
        (Pins(engine="foo"), "engine"),  # type: ignore[arg-type]
        (Pins(gpus=(0, 1), gpu_count=3), "at once"),
        (Pins(engine="vllm", engine_version=""), "empty"),
    ],
)
def test_a_pin_that_cannot_be_is_refused_and_not_dropped(catalog: Catalog, pins: Pins, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        api.plan("glm-4.6", hardware="8xh200", known=catalog, pins=pins)


def test_a_figure_that_is_no_whole_number_is_refused(catalog: Catalog) -> None:
    wrong: Any = 2.5, float("nan")  # a script that nobody type-checks
    with pytest.raises(UsageError, match="whole number"):
        api.plan("glm-4.6", hardware="8xh200", known=catalog, concurrency=wrong[0])
    with pytest.raises(UsageError, match="whole number"):
        api.plan("glm-4.6", hardware="8xh200", known=catalog, context_tokens=wrong[1])


def test_a_report_of_a_script_is_held_to_what_a_machine_can_be(catalog: Catalog) -> None:
    report = report_from_spec("4xh100", catalog)
    twins = tuple(msgspec.structs.replace(each, index=0) for each in report.accelerators)
    for wrong in (msgspec.structs.replace(report, accelerators=twins), msgspec.structs.replace(report, nodes=0)):
        with pytest.raises(UnknownHardware, match="hardware report"):
            api.plan("glm-4.6", hardware=wrong, known=catalog)
