from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.packaging.conftest import Installed

ROOT = Path(__file__).parents[2]
PACKAGES = ("autolaunch", "engines", "selector", "profiles")

pytestmark = pytest.mark.timeout(300)  # the first of them builds and installs


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_four_packages_and_nothing_else(contents: set[str]) -> None:
    top = {name.split("/")[0] for name in contents}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_holds_every_profile(contents: set[str]) -> None:
    profiles = {
        str(path.relative_to(ROOT)) for path in (ROOT / "profiles").rglob("*.*") if path.suffix in (".toml", ".json")
    }
    assert {Path(name).suffix for name in profiles} == {".toml", ".json"}
    assert profiles <= contents


def test_the_wheel_is_typed_and_carries_its_licence(contents: set[str]) -> None:
    # Values of selector and engines are in the signatures of autolaunch: a type checker reads all of them.
    assert {f"{package}/py.typed" for package in PACKAGES} <= contents
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in contents)


def test_the_wheel_asks_for_nothing_but_the_runtime_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    required = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = [entry.replace(" ", "") for entry in required if "extra ==" not in entry]
    assert sorted(core) == sorted(entry.replace(" ", "") for entry in project["dependencies"])


def test_an_installed_command_gives_its_version(installed: Installed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in installed.run(installed.command, "--version").split()[-1]


def test_the_installed_packages_come_from_one_place(installed: Installed) -> None:
    code = "import autolaunch, engines, selector, profiles, json; print(json.dumps([m.__file__ for m in "
    places = json.loads(installed.run(installed.python, "-c", code + "(autolaunch, engines, selector, profiles)]))"))
    assert {Path(place).parents[1] for place in places} == {installed.site_packages}


def test_an_installed_command_plans_without_a_checkout(installed: Installed) -> None:
    plan = json.loads(installed.run(installed.command, "plan", "glm-4.6", "--hardware", "8xh200", "--json"))
    assert plan["schema"] == 1
    assert plan["feasible"] is True
    assert plan["chosen"]["command"]["argv"]


def test_planning_writes_nothing_into_the_home_of_its_user(installed: Installed) -> None:
    before = sorted(installed.home.rglob("*"))
    installed.run(installed.command, "plan", "glm-4.6", "--hardware", "8xh200", "--json")
    assert sorted(installed.home.rglob("*")) == before
