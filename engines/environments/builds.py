"""Making an environment: the folder's lock, the room on its disk, uv's work, and the manifest as the last word."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engines.environments import trust
from engines.environments.folders import locked, open_to_all, remove_tree, used_bytes, writing
from engines.environments.installer import Installed, Installer, Interpreter
from engines.environments.requirements import checked_lock, digest, entries, torch_backend
from engines.environments.store import (
    LOCK,
    MANIFEST,
    PYTHONS,
    Environment,
    Environments,
    InstallProgress,
    Manifest,
    Stage,
    folder_name,
    python_request,
    read_manifest,
)
from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError, NoRoomOnDisk
from selector.values import Value

if TYPE_CHECKING:
    from threading import Event

#: What is asked for beyond an environment's known size: uv's cache may lie on the same disk.
ROOM_MARGIN = 1.1
#: Where a host keeps interpreters that all its users may run.
_SYSTEM_PYTHONS = (Path("/usr/bin"), Path("/usr/local/bin"))


def interpreter(*, for_all: bool) -> Interpreter:
    """The Python for an environment: the one that runs us where its version will do.

    ``for_all`` users of a host: one that they may run, which root's own under /root is not.

    Raises:
        EngineInstallError: there is none.
    """
    version = python_request()
    # The interpreter that runs us is surely there; uv would otherwise look for one, or fetch one.
    ours = sys.version_info[:2] == tuple(map(int, version.split(".")))
    if not for_all:
        return Interpreter(version, sys.executable if ours else version)
    if ours and trust.readable_by_all(Path(sys.executable)):
        return Interpreter(version, str(Path(sys.executable).resolve()))
    managed = os.environ.get("UV_PYTHON_INSTALL_DIR")
    for each in dict.fromkeys((version, *reversed(PYTHONS))):
        places = [folder / f"python{each}" for folder in _SYSTEM_PYTHONS]
        places += sorted(Path(managed).glob(f"cpython-{each}.*/bin/python{each}")) if managed else []
        for place in places:
            if trust.readable_by_all(place) and trust.complaint((place.resolve(),)) is None:
                return Interpreter(each, str(place))
    raise EngineInstallError(
        "this host has no Python that all its users may run, which an environment for all of them needs",
        hint=f"install python{version} with the system's packages, or set AUTOLAUNCH_HOME to keep it for one user",
    )


class Build(Value, frozen=True, kw_only=True):
    """One environment to be, below ``place``. ``lock`` is what to install, where that was resolved already.

    ``at`` is the very folder that it has to be, of those that it may be.
    """

    environments: Environments
    engine: EngineFacts
    package: Package
    place: Path
    python: Interpreter
    lock: str | None
    at: Path | None = None
    on_progress: Callable[[InstallProgress], None]
    cancelled: Event | None
    environ: Mapping[str, str]

    def run(self) -> Environment:
        """The environment, found or made."""
        self._refuse_elsewhere()
        found = self._found()
        if found is not None:
            return found
        started = time.monotonic()

        def say(stage: Stage, message: str, packages: int | None = None) -> None:
            self.on_progress(
                InstallProgress(stage=stage, message=message, packages=packages, seconds=time.monotonic() - started)
            )

        self._make_place()
        directory = self._directory()
        wait = directory.with_name(directory.name + ".lock")
        with locked(
            wait, lambda: say("waiting", "another autolaunch is making this environment"), self.cancelled
        ) as held:
            found = self._found()  # made by whom we waited for
            if found is not None:
                return found
            self._clear(directory)
            try:
                installed = Installer(
                    directory=directory,
                    package=self.package,
                    environ=self.environ,
                    python=self.python,
                    lock=held,
                    say=say,
                    cancelled=self.cancelled,
                ).run(self.lock)
                with writing(directory):
                    if self._for_all:
                        open_to_all(directory)
                    self._write_manifest(directory, installed)
            except BaseException:
                remove_tree(directory, MANIFEST)
                raise
            say("done", f"{self.package.name} is installed")
        return self._environment(directory)

    @property
    def _for_all(self) -> bool:
        return self.place == self.environments.shared

    def _found(self) -> Environment | None:
        """What is there already. With a lock it has to be of that very lock."""
        if self.lock is None:
            name, version, package = self.engine.name, self.engine.version, self.package
            if self._for_all:
                return self.environments.find_in(self.place, name, version, package)
            return self.environments.find(name, version, package)
        checked_lock(self.lock, self.package)
        for directory in self._directories():
            manifest = read_manifest(directory)
            if (
                manifest is not None
                and manifest.lock_sha256 == digest(self.lock)
                and self.environments.why_not(directory, manifest) is None
            ):
                return self._environment(directory)
        return None

    def _directories(self) -> tuple[Path, ...]:
        """Where it may lie: one of another lock can be there already, and stays."""
        usual = self.place / folder_name(self.engine.name, self.engine.version, self.package, self.python.version)
        if self.lock is None:
            return (usual,)
        apart = folder_name(
            self.engine.name, self.engine.version, self.package, self.python.version, lock_sha256=digest(self.lock)
        )
        both = (usual, self.place / apart)
        return tuple(each for each in both if self.at in (None, each))

    def _refuse_elsewhere(self) -> None:
        """Before anything is made: that it would come to lie somewhere else than it has to."""
        if self.at is None:
            return
        if not self._directories():
            apart = msgspec.structs.replace(self, at=None)._directories()  # noqa: SLF001 - of this very class
            why = f"with Python {self.python.version} it would be {apart[0].name}"
            if self.at.name in [each.name for each in apart]:
                why = f"here they lie in {self.place}"
            raise EngineInstallError(
                f"the environment of {self.package.name} cannot be made at {self.at}: {why}",
                hint="the same AUTOLAUNCH_HOME, version of Python and kind of machine come to the same folder",
            )
        taken = read_manifest(self.at)
        if taken is None or self.environments.why_not(self.at, taken) is not None:
            return
        if self.lock is not None and taken.lock_sha256 != digest(self.lock):
            raise EngineInstallError(
                f"{self.at} holds the packages of another lock",
                hint=f"autolaunch engines remove {self.package.name}=={self.engine.version} makes room for it",
            )

    def _directory(self) -> Path:
        if self.at is not None:
            return self.at
        usual, *apart = self._directories()
        taken = read_manifest(usual)
        return apart[0] if apart and taken is not None and self.environments.why_not(usual, taken) is None else usual

    def _environment(self, directory: Path) -> Environment:
        return Environment(
            engine=self.engine.name,
            version=self.engine.version,
            package=self.package.name,
            directory=directory,
            shared=self._for_all,
        )

    def _make_place(self) -> None:
        with writing(self.place):
            made = [each for each in (self.place, *self.place.parents) if not each.exists()]
            self.place.mkdir(parents=True, exist_ok=True)
            for each in made if self._for_all else ():
                each.chmod(0o755)
        above = (self.place, *(self.place.parents if self._for_all else ()))
        why = trust.complaint(above, above=True)
        if why is not None:
            raise EngineInstallError(
                f"{why}, and what is installed below it could be changed by others",
                hint="set AUTOLAUNCH_HOME to a folder of yours alone",
            )

    def _clear(self, directory: Path) -> None:
        """What an interrupted build left goes; there has to be room for a new one."""
        from shutil import disk_usage

        with writing(self.place):
            remove_tree(directory, MANIFEST)
            free_bytes = disk_usage(self.place).free
        needed_bytes = int(self.package.bytes_on_disk * ROOM_MARGIN)
        if free_bytes < needed_bytes:
            raise NoRoomOnDisk(
                f"the environment of {self.package.name} needs {_gb(needed_bytes)} in {self.place}, "
                f"{_gb(free_bytes)} are free",
                hint="free some room, or set AUTOLAUNCH_HOME to a folder on a larger disk",
            )
        if directory.exists():  # it was not ours to remove
            raise EngineInstallError(f"{directory} is in the way and cannot be removed", hint="remove it by hand")

    def _write_manifest(self, directory: Path, installed: Installed) -> None:
        held = entries(installed.lock)
        manifest = Manifest(
            engine=self.engine.name,
            version=self.engine.version,
            package=self.package.name,
            requirements=self.package.requirements,
            excludes=self.package.excludes,
            python=self.python.version,
            python_version=_python_version(directory),
            torch_backend=torch_backend(held),
            lock_sha256=digest((directory / LOCK).read_text()),
            packages=len(held),
            bytes_on_disk=used_bytes(directory)[0],
            directory=str(directory),
        )
        draft = directory / (MANIFEST + ".new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        draft.chmod(0o644)
        draft.replace(directory / MANIFEST)


def _python_version(directory: Path) -> str | None:
    """``3.11.7``, as uv wrote it into the environment's own settings."""
    try:
        lines = (directory / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return None
    settings = dict(line.split(" = ", 1) for line in lines if " = " in line)
    return settings.get("version_info")


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
