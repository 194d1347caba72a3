"""Engines live in environments of their own, one an engine, version and set of requirements, made by uv.

Their pins conflict with each other's and must not weigh on the tool. An environment is built in place
(its scripts hold absolute paths) under a lock, and counts only once its ``environment.json`` is
written: what an interrupted build left is removed and made anew (:mod:`engines.environments.builds`).
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from engines.beside import shared_place
from selector.engine_facts import EngineFacts, Package
from selector.values import Value, readable

if TYPE_CHECKING:
    from threading import Event

Stage = Literal["waiting", "resolving", "downloading", "installing", "compiling", "done"]

MANIFEST, LOCK = "environment.json", "requirements.lock"
#: Interpreters that the engines' wheels are published for.
PYTHON_MINIMUM, PYTHON_BELOW, PYTHON_OTHERWISE = (3, 11), (3, 14), "3.12"
PYTHONS = tuple(f"3.{minor}" for minor in range(PYTHON_MINIMUM[1], PYTHON_BELOW[1]))

_SECRET_SUFFIXES = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "_PASS", "_KEY", "APIKEY", "_CREDENTIALS")
#: What leads to the user's token or other models, and what installers take credentials of package indices from.
_NOT_FOR_ENGINES = frozenset(
    {"CREDENTIALS_DIRECTORY", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"}
)
_INSTALLERS = ("UV_", "PIP_")
_URL_WITH_USER = re.compile(r"://[^/\s@]+@")


class InstallProgress(Value, frozen=True, kw_only=True):
    """``packages`` is how many the environment has, known once they are resolved."""

    stage: Stage
    message: str
    packages: int | None = None
    seconds: float = 0.0
    fraction: float | None = None


class Environment(Value, frozen=True, kw_only=True):
    """A finished environment. ``directory`` is absolute; ``shared`` is whether all users of the host have it."""

    engine: str
    version: str
    package: str
    directory: Path
    shared: bool = False

    @property
    def bin_directory(self) -> Path:
        return self.directory / "bin"


class Manifest(Value, frozen=True, kw_only=True):
    """``environment.json``, the last file written: what the environment is, and what it takes to make it again.

    One that was moved no longer matches it. ``torch_backend`` is the build of PyTorch that was taken (``cu130``,
    ``cpu``), ``None`` for the default index's; ``lock_sha256`` is of ``requirements.lock`` beside it.
    """

    schema: Literal[1] = 1
    engine: str
    version: str
    package: str
    requirements: tuple[str, ...]
    excludes: tuple[str, ...]
    python: str
    python_version: str | None
    torch_backend: str | None
    lock_sha256: str
    packages: int
    bytes_on_disk: int
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
    """The environments under ``root`` and, where there are any, those that root made for all users of the host.

    Both folders hold nothing else. What another unprivileged user could change does not count.
    """

    def __init__(self, root: Path, *, shared: Path | None = None, shared_first: bool = False) -> None:
        self.root = root.resolve()  # the same folder by another way is the same environments
        self.shared = None if shared is None else shared.resolve()
        both = (self.root,) if self.shared is None or self.shared == self.root else (self.root, self.shared)
        self.places: tuple[Path, ...] = both[::-1] if shared_first else both

    @classmethod
    def of(cls, home: Path, environ: Mapping[str, str] | None = None) -> Environments:
        """Those of a home, and the host's. A home that the user named (``AUTOLAUNCH_HOME``) is looked into first."""
        environ = os.environ if environ is None else environ
        return cls(home / "engines", shared=shared_place(environ), shared_first="AUTOLAUNCH_HOME" not in environ)

    def find(self, engine_name: str, version: str, package: Package) -> Environment | None:
        """The finished environment, or ``None``. Reads one small file.

        The last place that is looked into is autolaunch's own environment.
        """
        for place in self.places:
            if place.is_dir() and (found := self.find_in(place, engine_name, version, package)) is not None:
                return found
        from engines import beside

        if not beside.holds(package):
            return None
        return Environment(engine=engine_name, version=version, package=package.name, directory=Path(sys.prefix))

    def find_in(self, place: Path, engine_name: str, version: str, package: Package) -> Environment | None:
        """The finished environment below one of ``places``, whichever Python of the host it has."""
        for python in (python_request(), *PYTHONS):
            directory = place / folder_name(engine_name, version, package, python)
            manifest = read_manifest(directory)
            if manifest is not None and self.why_not(directory, manifest) is None:
                return self._environment(engine_name, version, package, directory)
        return None

    def why_not(self, directory: Path, manifest: Manifest) -> str | None:
        """Why an environment does not count although it is finished; ``None`` where it does."""
        if Path(manifest.directory).resolve() != directory.resolve():
            return "it was moved"
        if not (directory / "bin" / "python").exists():
            return "the Python that it was made with is gone"
        from engines.environments import trust

        place = directory.parent
        above = (place, *(place.parents if place == self.shared else ()))
        paths = (*trust.environment_paths(directory, manifest.python), directory / MANIFEST)
        return trust.complaint(above, above=True) or trust.complaint(paths)

    def _environment(self, engine_name: str, version: str, package: Package, directory: Path) -> Environment:
        return Environment(
            engine=engine_name,
            version=version,
            package=package.name,
            directory=directory,
            shared=directory.parent == self.shared,
        )

    def ensure(
        self,
        engine: EngineFacts,
        package: Package,
        *,
        lock: str | None = None,
        at: Path | None = None,
        share: bool = False,
        on_progress: Callable[[InstallProgress], None] = lambda _: None,
        cancelled: Event | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Environment:
        """The environment of ``package``, made if there is none. Two callers never build the same one.

        ``lock`` is the ``requirements.lock`` of another such environment: it is installed as it says. ``at`` is the
        folder that it then has to be, or nothing is made: another host's, say, whose paths have to hold here. ``share``
        makes it for all users of the host, as root may. ``environ`` is the caller's environment (the process's by
        default); uv's own settings in it (mirrors, find-links, caches) hold.

        Raises:
            NoRoomOnDisk: seen before anything is fetched, or by uv.
            EngineInstallError: uv is missing, or failed, or ``cancelled`` was set; ``lock`` is none for this package;
                it would not come to lie ``at`` that place, or another lies there; another user could change what
                lies there.
        """
        if lock is None and not share:
            found = self.find(engine.name, engine.version, package)
            if found is not None:
                return found
        from engines.environments.builds import Build, interpreter  # only a build needs it

        place = self.shared if share and self.shared is not None else self.root
        build = Build(
            environments=self,
            engine=engine,
            package=package,
            place=place,
            python=interpreter(for_all=place == self.shared),
            lock=lock,
            at=None if lock is None else at,
            on_progress=on_progress,
            cancelled=cancelled,
            environ=without_secrets(os.environ if environ is None else environ),
        )
        return build.run()


def folder_name(engine_name: str, version: str, package: Package, python: str, *, lock_sha256: str = "") -> str:
    """``mlx-0.32.2-mlx-lm-e5c0f49f``: the last part is of all that makes two environments different."""
    from hashlib import sha256

    facts = (*package.requirements, python, platform.machine(), sys.platform)
    excluded = tuple(f"without {each}" for each in package.excludes)
    digest = sha256("\n".join((*facts, *excluded, *filter(None, (lock_sha256,)))).encode()).hexdigest()[:8]
    return f"{engine_name}-{version}-{package.name}-{digest}"


def read_manifest(directory: Path) -> Manifest | None:
    """What a folder says that it is; ``None`` where nothing finished lies there."""
    try:
        return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=readable(Manifest))
    except (OSError, msgspec.MsgspecError):
        return None


def python_request() -> str:
    """The Python that engines get: this one's version where they have wheels for it, as uv takes it."""
    if PYTHON_MINIMUM <= sys.version_info[:2] < PYTHON_BELOW:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    return PYTHON_OTHERWISE
