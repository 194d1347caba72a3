"""Engines live in environments of their own, one an engine, version and set of requirements, made by uv.

Their pins conflict with each other's and must not weigh on the tool. An environment is built in place
(its scripts hold absolute paths) under a lock, and counts only once its ``environment.json`` is
written: what an interrupted build left is removed and made anew.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError, NoRoomOnDisk
from selector.values import Value

if TYPE_CHECKING:
    from threading import Event

Stage = Literal["waiting", "resolving", "downloading", "installing", "compiling", "done"]

MANIFEST = "environment.json"
#: What is asked for beyond an environment's known size: uv's cache may lie on the same disk.
ROOM_MARGIN = 1.1
#: Interpreters that the engines' wheels are published for.
PYTHON_MINIMUM, PYTHON_BELOW, PYTHON_OTHERWISE = (3, 11), (3, 14), "3.12"

_SECRET_SUFFIXES = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "_PASS", "_KEY", "APIKEY", "_CREDENTIALS")
#: What leads to the user's token or other models, and what installers take credentials of package indices from.
_NOT_FOR_ENGINES = frozenset({"HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"})
_INSTALLERS = ("UV_", "PIP_")
_URL_WITH_USER = re.compile(r"://[^/\s@]+@")


class InstallProgress(Value, frozen=True, kw_only=True):
    """``packages`` is how many the environment has, known once they are resolved."""

    stage: Stage
    message: str
    packages: int | None = None
    seconds: float = 0.0


class Environment(Value, frozen=True, kw_only=True):
    """A finished environment. ``directory`` is absolute."""

    engine: str
    version: str
    package: str
    directory: Path

    @property
    def bin_directory(self) -> Path:
        return self.directory / "bin"


class Manifest(Value, frozen=True, kw_only=True):
    """``environment.json``, the last file written. An environment that was moved no longer matches it."""

    schema: Literal[1] = 1
    engine: str
    version: str
    package: str
    requirements: tuple[str, ...]
    python: str
    directory: str


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` less what looks like a credential (``HF_TOKEN``, ``…_API_KEY``).

    Credentials of package indices, which uv takes as ``UV_…``, stay.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("UV_") or not name.upper().endswith(_SECRET_SUFFIXES)
    }


def without_engine_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for an engine: without credentials of any kind, and without what leads to them.

    Settings of installers go whole, and so does every value that is an address with a user in it.
    """
    return {
        name: value
        for name, value in without_secrets(environment).items()
        if name not in _NOT_FOR_ENGINES and not name.startswith(_INSTALLERS) and not _URL_WITH_USER.search(value)
    }


class Environments:
    """The environments under ``root``, a folder that holds nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # the same folder by another way is the same environments

    def find(self, engine_name: str, version: str, package: Package) -> Environment | None:
        """The finished environment, or ``None``. Reads one small file."""
        if not self.root.is_dir():
            return None  # nothing was ever installed: most plans need no more of this module
        directory = self._directory(engine_name, version, package)
        try:
            manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            return None
        # The interpreter it links to may be gone.
        if Path(manifest.directory).resolve() != directory.resolve() or not (directory / "bin" / "python").exists():
            return None
        return Environment(engine=engine_name, version=version, package=package.name, directory=directory)

    def ensure(
        self,
        engine: EngineFacts,
        package: Package,
        *,
        on_progress: Callable[[InstallProgress], None] = lambda _: None,
        cancelled: Event | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Environment:
        """The environment of ``package``, made if there is none. Two callers never build the same one.

        ``environ`` is the caller's environment (the process's by default); uv's own settings in it
        (mirrors, find-links, caches) hold.

        Raises:
            NoRoomOnDisk: seen before anything is fetched, or by uv.
            EngineInstallError: uv is missing, or failed, or ``cancelled`` was set.
        """
        found = self.find(engine.name, engine.version, package)
        if found is not None:
            return found
        started = time.monotonic()

        def say(stage: Stage, message: str, packages: int | None = None) -> None:
            on_progress(
                InstallProgress(stage=stage, message=message, packages=packages, seconds=time.monotonic() - started)
            )

        directory = self._directory(engine.name, engine.version, package)
        with _writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(directory.name + ".lock"), say, cancelled) as lock:
            found = self.find(engine.name, engine.version, package)  # made by whom we waited for
            if found is not None:
                return found
            with _writing(self.root):
                _remove(directory)
                from shutil import disk_usage

                free_bytes = disk_usage(self.root).free
            needed_bytes = int(package.bytes_on_disk * ROOM_MARGIN)
            if free_bytes < needed_bytes:
                raise NoRoomOnDisk(
                    f"the environment of {package.name} needs {_gb(needed_bytes)} in {self.root}, "
                    f"{_gb(free_bytes)} are free",
                    hint="free some room, or set AUTOLAUNCH_HOME to a folder on a larger disk",
                )
            from engines.installer import Installer  # only a build needs it

            try:
                Installer(
                    directory=directory,
                    package=package,
                    environ=without_secrets(os.environ if environ is None else environ),
                    lock=lock,
                    say=say,
                    cancelled=cancelled,
                ).run()
                with _writing(directory):
                    self._write_manifest(directory, engine, package)
            except BaseException:
                _remove(directory)
                raise
            say("done", f"{package.name} is installed")
        return Environment(engine=engine.name, version=engine.version, package=package.name, directory=directory)

    def remove(self, engine_name: str, version: str, package: Package) -> bool:
        """Removes an environment; false where there was none."""
        directory = self._directory(engine_name, version, package)
        there = directory.exists()
        _remove(directory)
        return there

    def _directory(self, engine_name: str, version: str, package: Package) -> Path:
        facts = "\n".join((*package.requirements, python_request(), platform.machine(), sys.platform))
        from hashlib import sha256

        digest = sha256(facts.encode()).hexdigest()[:8]
        return self.root / f"{engine_name}-{version}-{package.name}-{digest}"

    def _write_manifest(self, directory: Path, engine: EngineFacts, package: Package) -> None:
        manifest = Manifest(
            engine=engine.name,
            version=engine.version,
            package=package.name,
            requirements=package.requirements,
            python=python_request(),
            directory=str(directory),
        )
        draft = directory / (MANIFEST + ".new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        draft.replace(directory / MANIFEST)


def python_request() -> str:
    """The Python that engines get: this one's version where they have wheels for it, as uv takes it."""
    if PYTHON_MINIMUM <= sys.version_info[:2] < PYTHON_BELOW:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    return PYTHON_OTHERWISE


@contextmanager
def _locked(path: Path, say: Callable[[Stage, str], None], cancelled: Event | None) -> Iterator[int]:
    """Holds the lock file; yields its descriptor.

    uv inherits the descriptor, so that the lock outlives us with a uv that outlives us: nobody builds
    into the same folder beside it.
    """
    import fcntl

    with _writing(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("waiting", "another autolaunch is making this environment")
                    told = True
                if cancelled is not None and cancelled.is_set():
                    raise EngineInstallError("the installation was cancelled") from None
                time.sleep(0.1)
            except OSError as error:
                raise EngineInstallError(
                    f"{path} cannot be locked: {error.strerror}", hint="set AUTOLAUNCH_HOME to a folder on a local disk"
                ) from error
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the system says against writing to ``folder`` becomes an error that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomOnDisk(
                f"the disk of {folder} is full", hint="free some room, or set AUTOLAUNCH_HOME to a folder elsewhere"
            ) from error
        raise EngineInstallError(
            f"{folder} cannot be written: {error.strerror}", hint="set AUTOLAUNCH_HOME to a folder of yours"
        ) from error


def _remove(directory: Path) -> None:
    if directory.is_symlink():  # somebody's own arrangement: what it points to is not ours to empty
        directory.unlink()
        return
    # The manifest goes first: what is half removed must not look finished.
    (directory / MANIFEST).unlink(missing_ok=True)
    from shutil import rmtree

    rmtree(directory, ignore_errors=True)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
