"""The environments that are there: listed, looked at, removed."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engines.environments import trust
from engines.environments.folders import locked, remove_tree, used_bytes
from engines.environments.requirements import entries
from engines.environments.store import LOCK, MANIFEST, Environments, Manifest, read_manifest
from selector.errors import EngineError, EngineInstallError
from selector.values import Value

_FOLDER = re.compile(r"(?P<engine>[a-z]+)-(?P<version>[^-]+)-(?P<package>.+)-[0-9a-f]{8}")
#: How long an environment's interpreter may take to list its packages; tens of milliseconds are usual.
_ASK_SECONDS = 30.0
_ASK = """
import sys
sys.path[:] = [each for each in sys.path if each]
from importlib.metadata import distributions
for each in distributions():
    print(each.metadata["Name"], each.version)
"""


class Made(Value, frozen=True, kw_only=True):
    """One folder of an environment. ``problem`` is why it does not count; ``None`` where it does."""

    engine: str
    version: str
    package: str
    directory: Path
    shared: bool
    problem: str | None = None
    manifest: Manifest | None = None


class Gone(NamedTuple):
    """What a removed environment took on the disk, and what of it uv's cache still holds."""

    bytes_on_disk: int
    still_cached_bytes: int


def made(environments: Environments) -> tuple[Made, ...]:
    """Every environment below the places, and what an interrupted build or removal left there."""
    found = []
    for place in environments.places:
        try:
            directories = sorted(each for each in place.iterdir() if each.is_dir())
        except OSError:
            continue
        for directory in directories:
            parts = _FOLDER.fullmatch(directory.name)
            if parts is None:
                continue
            manifest = read_manifest(directory)
            problem = "it is not finished" if manifest is None else environments.why_not(directory, manifest)
            found.append(
                Made(
                    engine=parts["engine"],
                    version=parts["version"],
                    package=parts["package"],
                    directory=directory,
                    shared=place == environments.shared,
                    problem=problem,
                    manifest=manifest,
                )
            )
    return tuple(found)


def damage(directory: Path) -> str | None:
    """What is wrong with a finished environment, by its lock and by what its own Python finds; ``None``: nothing.

    One that an earlier release made has no lock: only its Python is tried.
    """
    import subprocess

    from engines.environments.requirements import digest, normal

    manifest = read_manifest(directory)
    if manifest is None:
        return "it is not finished"
    try:
        answer = subprocess.run(
            (str(directory / "bin" / "python"), "-I", "-c", _ASK),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
            cwd=directory,
        )
    except subprocess.TimeoutExpired:
        return "its Python does not answer"
    except OSError as error:
        return f"its Python does not run: {error.strerror}"
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines()
        return f"its Python does not run: {lines[-1] if lines else f'exit code {answer.returncode}'}"
    try:
        text = (directory / LOCK).read_text()
        held = entries(text)
    except (OSError, EngineInstallError):
        return "its lock is gone"
    if digest(text) != manifest.lock_sha256:
        return "its lock is not the one that it was made from"
    here = dict(line.split(" ", 1) for line in answer.stdout.splitlines() if " " in line)
    found = {normal(name): version for name, version in here.items()}
    lost = [f"{each.name} {each.version}" for each in held if found.get(each.name) != each.version]
    if lost:
        return f"{lost[0]} is missing in it"
    gone = _lost_file(trust.site_packages(directory, manifest.python))
    return None if gone is None else f"{gone} is missing in it"


def _lost_file(packages: Path) -> str | None:
    """The first file that a package says it installed and that is not there. (Compiled ones are made again.)"""
    for record in packages.glob("*.dist-info/RECORD"):
        with suppress(OSError):  # its reader has said so already
            for line in record.read_text(errors="replace").splitlines():
                name = line.split(",", 1)[0].strip('"')
                if name.endswith(".py") and not (packages / name).exists():
                    return name
    return None


def users(directory: Path) -> tuple[int, ...]:
    """Processes that run from an environment, by their command lines and by what they have mapped."""
    import psutil

    place = str(directory.resolve()) + os.sep
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if any(each.startswith(place) for each in line[:3]) or _has_mapped(process.pid, place):
            found.append(process.pid)
    return tuple(found)


def _has_mapped(pid: int, place: str) -> bool:
    """Engines give their workers other names; what is loaded from a folder still tells (on Linux, of one's own)."""
    try:
        return place.encode() in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return False


def remove(one: Made) -> Gone:
    """Removes an environment.

    Raises:
        EngineError: something runs from it, or it is not ours to remove.
    """
    if not os.access(one.directory.parent, os.W_OK):
        raise EngineError(
            f"{one.directory} is not yours to remove", hint="its owner can; for all users' own that is root"
        )
    wait = one.directory.with_name(one.directory.name + ".lock")
    with locked(wait, lambda: None, None):
        running = users(one.directory)
        if running:
            told = "process" if len(running) == 1 else "processes"
            listed = ", ".join(map(str, running))
            raise EngineError(f"{one.directory} is in use by {told} {listed}", hint="stop the engine first")
        total, alone = (0, 0) if one.directory.is_symlink() else used_bytes(one.directory)
        remove_tree(one.directory, MANIFEST)
        if one.directory.exists():
            raise EngineError(f"{one.directory} could not be removed whole", hint="remove the rest by hand")
    return Gone(total, total - alone)
