from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


def git(*arguments: str, cwd: Path) -> str:
    identity = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run([*identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone would hold if all that lies here now were committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: there is nothing to clone")
    folder = tmp_path_factory.mktemp("clone") / "autolaunch"
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git("init", "--quiet", cwd=folder)
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--message", "clone", cwd=folder)
    return folder


def test_a_fresh_clone_runs_with_uv_run_and_changes_no_tracked_file(uv: str, clone: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    argv = [uv, "run", "autolaunch", "--version"]
    result = subprocess.run(
        argv, cwd=clone, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("autolaunch")
    assert git("status", "--porcelain", cwd=clone) == ""


def test_what_a_person_runs_is_executable_in_the_clone(clone: Path) -> None:
    for name in ("scripts/check", "scripts/docs", "scripts/pin", ".ci/run"):
        mode = git("ls-files", "--stage", name, cwd=clone).split()[0]
        assert mode == "100755", name
