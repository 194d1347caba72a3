"""The environment of guidellm: its own, made by uv from pins with hashes (``profiles/tools/guidellm.txt``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import profiles
from engines.environments.folders import locked, remove_tree
from engines.environments.requirements import digest, entries
from engines.environments.store import InstallProgress, Stage, without_secrets
from selector.engine_facts import Package
from selector.errors import EngineInstallError
from selector.values import Value

PINS = profiles.DIRECTORY / "tools" / "guidellm.txt"
NAME = "guidellm"
#: Written last: an environment without it is not whole.
_WHOLE = "autolaunch-whole"


class Tool(Value, frozen=True, kw_only=True):
    """guidellm as it is here. ``program`` is started with arguments alone."""

    program: Path
    version: str


def guidellm(
    home: Path,
    *,
    on_progress: Callable[[InstallProgress], None] = lambda _: None,
    environ: Mapping[str, str] | None = None,
) -> Tool:
    """guidellm: the one beside autolaunch (``glm-autolaunch[bench]``), or the one in an environment below ``home``.

    The environment is made where there is none. Two callers never make the same one, and one that is not finished does
    not count.

    Raises:
        EngineInstallError: uv is missing, or failed.
        NoRoomOnDisk: by uv.
    """
    environ = os.environ if environ is None else environ
    text = PINS.read_text(encoding="utf-8")
    version = next(each.version for each in entries(text) if each.name == NAME)
    if (beside := _beside(version)) is not None:
        return beside
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    directory = home / "tools" / f"{NAME}-{version}-{python}-{digest(text)[:8]}"
    tool = Tool(program=directory / "bin" / NAME, version=version)
    if not (directory / _WHOLE).exists():
        try:
            _make(directory, text, version, on_progress, environ)
        except OSError as error:
            raise EngineInstallError(f"{directory} cannot be made: {error.strerror or error}") from error
    return tool


def _make(
    directory: Path,
    text: str,
    version: str,
    on_progress: Callable[[InstallProgress], None],
    environ: Mapping[str, str],
) -> None:
    from engines.environments.builds import interpreter
    from engines.environments.installer import Installer

    def say(stage: Stage, message: str, packages: int | None = None) -> None:
        on_progress(InstallProgress(stage=stage, message=message, packages=packages))

    package = Package(
        name=NAME,
        requirements=(f"{NAME}=={version}",),
        architectures=(),
        devices=(),
        bytes_on_disk=700_000_000,
        source="seen: 0.7 GB, byte-compiled, of guidellm 0.3.1",
    )
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    waiting = directory.with_name(f"{directory.name}.lock")
    with locked(waiting, lambda: say("waiting", "another autolaunch is making guidellm's environment"), None) as held:
        if (directory / _WHOLE).exists():
            return
        remove_tree(directory, _WHOLE)
        try:
            Installer(
                directory=directory,
                package=package,
                environ=without_secrets(environ),
                python=interpreter(for_all=False),
                lock=held,
                say=say,
                cancelled=None,
            ).run(text)
            (directory / _WHOLE).touch()
        except BaseException:
            remove_tree(directory, _WHOLE)
            raise
        say("done", f"guidellm {version} is installed")


def _beside(pinned: str) -> Tool | None:
    """guidellm in autolaunch's own environment, of the line that is pinned: another writes other reports."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version(NAME)
    except PackageNotFoundError:
        return None
    program = Path(sys.executable).parent / NAME
    same_line = found.split(".")[:2] == pinned.split(".")[:2]
    return Tool(program=program, version=found) if same_line and os.access(program, os.X_OK) else None
