"""The wheel, and an empty environment that holds it and what it pins: no checkout, no editable install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, cwd: Path, environment: Mapping[str, str], check: bool = True) -> str:
    """Run a program to its end and give what it printed; a failure shows what it said."""
    result = subprocess.run(
        [str(part) for part in argv],
        cwd=cwd,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0 or not check, f"{argv} exited {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def clean_environment() -> dict[str, str]:
    """This process's environment without what ties Python or uv to the environment that the tests run in."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and name not in {"VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT"}
    }


@dataclass(frozen=True)
class Installed:
    """An environment in which the wheel is installed."""

    folder: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.folder / "bin" / "autolaunch"

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """A stranger's environment: an empty home, and no path but this environment's and the system's."""
        return {"HOME": str(self.home), "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.defpath}", "LANG": "C.UTF-8"}

    def run(self, *argv: str | Path) -> str:
        return run(*argv, cwd=self.home, environment=self.environment)


@pytest.fixture(scope="session")
def uv() -> str:
    found = shutil.which("uv")
    assert found is not None, "these tests need uv on PATH: pip install uv"
    return found


@pytest.fixture(scope="session")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # hatchling comes from the pinned tools that the tests run with, not from wherever an index is today.
    options = ("--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder)
    run(uv, "build", *options, cwd=ROOT, environment=clean_environment())
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("installed")
    made = Installed(folder=base / "environment", home=base / "home")
    made.home.mkdir()

    def pip(command: str, *arguments: str | Path) -> None:
        run(uv, "pip", command, "--python", made.python, *arguments, cwd=base, environment=clean_environment())

    run(uv, "venv", "--python", sys.executable, made.folder, cwd=base, environment=clean_environment())
    pip("install", "--compile-bytecode", "--require-hashes", "--requirements", ROOT / "requirements" / "runtime.txt")
    pip("install", "--compile-bytecode", "--no-deps", wheel)
    pip("check")
    return made
