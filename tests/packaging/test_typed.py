"""A user's own script against the installed package, under ``mypy --strict``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import docstrings

if TYPE_CHECKING:
    from tests.packaging.conftest import Installed

pytestmark = pytest.mark.timeout(300)  # the first of them builds and installs

SCRIPTS = (
    *sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.py")),
    Path(__file__).parents[1] / "data" / "typed" / "script.py",
)


def checked(installed: Installed, folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """What mypy says where nothing of the repository is on its path; of ``openai``, which is not there, nothing."""
    (folder / "mypy.ini").write_text("[mypy]\n[mypy-openai]\nignore_missing_imports = True\n")
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed.python))
    return subprocess.run(
        (*command, "--config-file", "mypy.ini", *map(str, paths)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_users_script_is_typed_through_and_through(installed: Installed, tmp_path: Path) -> None:
    done = checked(installed, tmp_path, *SCRIPTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no issues found in {len(SCRIPTS)} source files" in done.stdout


def test_the_examples_of_the_docstrings_are_typed_as_their_users_would_have_it(
    installed: Installed, tmp_path: Path
) -> None:
    names = (*docstrings.FUNCTIONS, *docstrings.CLASSES)
    for name in names:
        (tmp_path / f"example_of_{name}.py").write_text(docstrings.script(name))
    done = checked(installed, tmp_path, *sorted(tmp_path.glob("example_of_*.py")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no issues found in {len(names)} source files" in done.stdout


def test_a_slip_in_a_users_script_is_found(installed: Installed, tmp_path: Path) -> None:
    script = tmp_path / "slip.py"
    script.write_text(
        'import autolaunch\nserver = autolaunch.launch("glm-4.6", port="8000")\nprint(server.base_ulr.upper())\n'
    )
    done = checked(installed, tmp_path, script)
    assert done.returncode == 1
    assert 'incompatible type "str"; expected "int"' in done.stdout
    assert 'has no attribute "base_ulr"' in done.stdout
