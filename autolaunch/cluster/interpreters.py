"""Which Python here has Ray: autolaunch's own, or else the one behind the ``ray`` on PATH."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from selector.errors import NoRay

#: What the first lines of a script are read of.
_MOST_BYTES = 4096
INSTALL = "pip install 'glm-autolaunch[ray]'"


def interpreters(environ: Mapping[str, str], own: str = sys.executable) -> tuple[Path, ...]:
    """The Pythons that have Ray, in the order in which they are tried; Ray is not imported here.

    Raises:
        NoRay: there is none.
    """
    found = [Path(own)] if _has_ray() else []
    script = shutil.which("ray", path=environ.get("PATH"))
    behind = None if script is None else python_of(Path(script))
    if behind is not None and behind not in found:
        found.append(behind)
    if found:
        return tuple(found)
    if script is not None:
        raise NoRay(f"{script} names no Python that is here", hint=f"{INSTALL} puts Ray beside autolaunch")
    raise NoRay(
        "no Ray is here: neither beside autolaunch nor on PATH",
        hint=f"{INSTALL} puts it beside autolaunch; or have the folder of the cluster's own `ray` on PATH",
    )


def _has_ray() -> bool:
    spec = importlib.util.find_spec("ray")
    return spec is not None and spec.origin is not None  # a folder of that name is no package


def python_of(script: Path) -> Path | None:
    """The interpreter in the first lines of a script that a Python installer wrote."""
    try:
        with script.open("rb") as file:
            lines = file.read(_MOST_BYTES).split(b"\n")
    except OSError:
        return None
    words = os.fsdecode(lines[0]).removeprefix("#!").strip() if lines[0].startswith(b"#!") else ""
    if words.endswith("/sh") and len(lines) > 1:
        # A path too long for the kernel, or with a space: '''exec' /path/python "$0" "$@"
        told = os.fsdecode(lines[1]).strip().removeprefix("'''exec' ")
        words = told.partition(' "$0"')[0].strip('"')
    elif words.startswith("/usr/bin/env "):
        words = shutil.which(words.split()[-1]) or ""
    python = Path(words) if words.startswith("/") else script.parent / "python"
    return python if os.access(python, os.X_OK) and python.is_file() else None
