"""The rules of the house that no tool holds by itself."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("autolaunch", "engines", "selector", "profiles")

#: The modules of ``selector`` that may touch the system. Every other one is held to be pure by import-linter.
READERS = {"selector.catalog", "selector.machines", "selector.measurements", "selector.probe"}


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def files() -> tuple[Path, ...]:
    """The files of the project: what git tracks or would track; without git (an sdist), what is there."""
    if (ROOT / ".git").exists():
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        found = [ROOT / name for name in names if name]
    else:
        found = [path for path in ROOT.rglob("*") if "__pycache__" not in path.parts and "build" not in path.parts]
    return tuple(sorted(path for path in found if path.is_file()))


def texts() -> dict[Path, str]:
    """Every file of the project that is text, but this one, which has to name what it forbids."""
    found = {}
    for path in files():
        content = path.read_bytes()
        if path != Path(__file__) and b"\0" not in content:
            found[path.relative_to(ROOT)] = content.decode()
    return found


def modules() -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES]


def pins(file: str) -> dict[NormalizedName, Requirement]:
    """The pins of a requirements file by normalised name; each of them must carry a hash."""
    found = {}
    for entry in (ROOT / "requirements" / file).read_text().replace("\\\n", " ").splitlines():
        line = entry.split(" #")[0].strip()
        if line and not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            assert hashes, f"{requirement} has no hash"
            parsed = Requirement(requirement)
            found[canonicalize_name(parsed.name)] = parsed
    return found


def test_the_four_packages_come_from_one_place() -> None:
    places = {Path(str(importlib.import_module(name).__file__)).parents[1] for name in PACKAGES}
    assert len(places) == 1


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_a_strangers_package_of_the_same_name_is_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('the stranger ran')")
    result = subprocess.run(
        [sys.executable, "-c", "import autolaunch"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert str(tmp_path / name) in result.stderr
    assert "the stranger ran" not in result.stderr


def test_a_module_has_at_most_400_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in modules()}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_every_module_of_selector_is_held_to_be_pure_or_is_a_named_reader() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]
    pure = {module for contract in contracts for module in contract.get("source_modules", ()) if "." in module}
    present = {f"selector.{path.stem}" for path in (ROOT / "selector").glob("*.py")} - {"selector.__init__"}
    present |= {f"selector.{path.parent.name}" for path in (ROOT / "selector").glob("*/__init__.py")}
    assert present - READERS == pure


def test_the_lock_of_uv_stays_out_of_the_repository() -> None:
    assert ROOT / "uv.lock" not in files()


def test_nothing_points_at_the_machine_it_was_written_on() -> None:
    places = (f"{ROOT}/", f"{Path.home()}/", "/".join(("..", "shared")))
    assert {str(path): place for path, text in texts().items() for place in places if place in text} == {}


def test_no_address_of_a_package_index_is_written_down() -> None:
    forbidden = re.compile(r"--(extra-)?index-url[ =]|--find-links[ =]|\w\.\w+(:\d+)?/simple\b")
    assert {str(path): found[0] for path, text in texts().items() if (found := forbidden.search(text))} == {}


@pytest.mark.parametrize("file", ["runtime.txt", "dev.txt"])
def test_every_dependency_is_pinned_with_a_hash_to_what_the_project_asks_for(file: str) -> None:
    wanted = list(project()["project"]["dependencies"])
    if file == "dev.txt":
        wanted += project()["dependency-groups"]["dev"]
    pinned = pins(file)
    for entry in wanted:
        requirement = Requirement(entry)
        (pin,) = pinned[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{entry} is pinned to {pin.version}: run scripts/pin"


def test_what_a_user_gets_is_what_the_checks_ran_with() -> None:
    checked = pins("dev.txt")
    assert {name: pin for name, pin in pins("runtime.txt").items() if checked[name].specifier != pin.specifier} == {}


def test_figures_lie_in_profiles_alone() -> None:
    strays = [path for path in files() if path.suffix == ".toml" and path.relative_to(ROOT).parts[0] in PACKAGES[:3]]
    assert strays == []
