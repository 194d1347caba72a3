"""Environments of clients that no one here wrote: one for each file of ``requirements/clients``, kept between runs.

guidellm, which ``autolaunch bench`` runs, is pinned where that finds it: ``profiles/tools``.

python -m tests.clients NAME    makes it where it is not there yet, and prints its folder of programs
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import platformdirs

from engines.environments.installer import uv_environment
from engines.environments.store import without_secrets

ROOT = Path(__file__).parents[1]
#: Made once a machine, beside the environments of the engines.
HOME = Path(os.environ.get("AUTOLAUNCH_TEST_HOME") or platformdirs.user_cache_dir("autolaunch-tests", appauthor=False))
#: The slowest of them takes less than a minute with a network that works.
INSTALL_SECONDS = 600.0
PINS = (ROOT / "requirements" / "clients", ROOT / "profiles" / "tools")


class NotInstalled(AssertionError):
    """uv could not; what it said."""


def programs(name: str) -> Path:
    """The folder of programs of the environment that ``NAME.txt`` pins, made whole or not at all.

    Raises:
        NotInstalled: uv could not.
    """
    pins = next(path for folder in PINS if (path := folder / f"{name}.txt").exists())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    folder = HOME / "clients" / f"{name}-{version}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it just now
        if not (folder / "whole").exists():
            uv("venv", "--clear", "--python", sys.executable, str(folder))
            uv("pip", "sync", "--require-hashes", "--compile-bytecode", "--python", str(folder), str(pins))
            (folder / "whole").touch()
    return folder / "bin"


def uv(*arguments: str) -> None:
    done = subprocess.run(
        (shutil.which("uv") or "uv", *arguments),
        env=uv_environment(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise NotInstalled(f"uv {' '.join(arguments)}: {done.stderr[-4000:]}")


def ran(name: str, script: str, *arguments: str, key: str = "none", seconds: float = 60.0) -> Any:
    """What ``script`` prints as JSON in its last line, run in the environment ``name``; ``key`` is its client's."""
    python = programs(name) / "python"
    environ = without_secrets(os.environ) | {
        "OPENAI_API_KEY": key,
        "ANTHROPIC_API_KEY": key,
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        (str(python), "-c", script, *arguments),
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.stdout.write(f"{programs(sys.argv[1])}\n")
