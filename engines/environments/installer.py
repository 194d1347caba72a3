"""One build by uv: a virtual environment, its lock, exactly the packages of that; and how far it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, NamedTuple

from engines.environments.requirements import entries, without_options
from engines.environments.store import LOCK, Stage
from engines.environments.torch_build import locked_torch_arguments, nvidia_driver_is_there, torch_arguments
from engines.environments.uv_failures import Unreachable, failure, missing_package, offline
from engines.leash import on_leash
from selector.engine_facts import Package
from selector.errors import EngineInstallError

#: uv's last lines that an error shows, and how much of a line is kept.
KEPT_LINES, KEPT_CHARACTERS = 40, 500
#: How many packages are named that could not be fetched.
MOST_MISSING = 12

#: Variables that would turn uv towards another environment than the one being made.
_NOT_FOR_UV = frozenset(
    {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "UV_NO_VERIFY_HASHES"}
)
#: How uv 0.8 to 0.13 says, without a terminal, what it has done; and what that means: the last message of a stage says
#: what came of it.
_SIGNS: tuple[tuple[re.Pattern[str], tuple[tuple[Stage, str], ...]], ...] = (
    (re.compile(r"^\s*Downloading (?P<what>\S+) \((?P<size>[^)]+)\)"), (("downloading", "fetching {what} ({size})"),)),
    (re.compile(r"^\s*Downloaded (?P<what>\S+)"), (("downloading", "fetched {what}"),)),
    (re.compile(r"^\s*Building (?P<what>\S+)"), (("downloading", "building {what}"),)),
    (
        re.compile(r"^Prepared (?P<count>\d+) packages?"),
        (("downloading", "{packages}, {count} of them fetched"), ("installing", "installing {packages}")),
    ),
    (
        re.compile(r"^Installed (?P<count>\d+) packages?"),
        (("installing", "{packages}"), ("compiling", "compiling {packages}")),
    ),
    (re.compile(r"^Bytecode compiled (?P<files>\d+) files?"), (("compiling", "{files} files"),)),
)
_RESOLVED = re.compile(r"^Resolved (?P<count>\d+) packages?")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def find_uv(environ: Mapping[str, str]) -> str:
    """The uv program: the one that runs us (``UV``), the one installed beside us, the one on PATH.

    Raises:
        EngineInstallError: there is none.
    """
    running = environ.get("UV")
    if running and os.access(running, os.X_OK):
        return running
    try:
        from uv import find_uv_bin  # type: ignore[import-not-found,unused-ignore]  # installed beside us, or not

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        pass
    found = shutil.which("uv", path=environ.get("PATH"))
    if found is None:
        raise EngineInstallError("uv, which makes the engines' environments, is not installed", hint="pip install uv")
    return found


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What uv runs with: the caller's settings, plain output, and pip's find-links where uv has none."""
    environment = {name: value for name, value in environ.items() if name not in _NOT_FOR_UV}
    links = environment.get("PIP_FIND_LINKS")
    if links and "UV_FIND_LINKS" not in environment:
        environment["UV_FIND_LINKS"] = ",".join(links.split())
    environment["NO_COLOR"] = "1"
    # Messages are read; a translated errno would not be.
    environment["LC_ALL"] = "C"
    return environment


class Interpreter(NamedTuple):
    """The Python that an environment gets: its version as ``3.11``, and what uv is told (a path, or the version)."""

    version: str
    wanted: str


class Installed(NamedTuple):
    """What was installed: the lock, and what uv was told of PyTorch's builds (``--torch-backend`` and its value)."""

    lock: str
    torch: tuple[str, ...]


class Installer:
    """Builds one environment. Interrupted, it ends uv and its children before it lets go."""

    def __init__(
        self,
        *,
        directory: Path,
        package: Package,
        environ: Mapping[str, str],
        python: Interpreter,
        lock: int,
        say: Callable[[Stage, str, int | None], None],
        cancelled: threading.Event | None,
    ) -> None:
        self._directory = directory
        self._package = package
        self._uv = find_uv(environ)
        self._environment = uv_environment(environ)
        self._python = python
        self._lock = lock
        self._say = say
        self._cancelled = cancelled
        self._packages: int | None = None
        self._resolving = True

    def run(self, locked: str | None = None) -> Installed:
        """Makes the environment, resolves, and installs exactly what was resolved; or what ``locked`` says.

        Raises:
            EngineInstallError: uv failed.
            NoRoomOnDisk: the disk became full.
        """
        self._say("resolving", f"preparing the environment of {self._package.name}", None)
        self._uv_runs(("venv", "--no-project", "--python", self._python.wanted, str(self._directory)))
        if locked is None:
            locked, torch = self._resolved()
        else:
            torch = locked_torch_arguments(locked, self._package, self._environment)
        self._packages = len(entries(locked))
        place = self._directory / LOCK
        place.write_text(locked)
        self._resolving = False
        self._say("downloading", plural(self._packages), self._packages)
        return Installed(locked, self._installed(place, torch))

    def _resolved(self) -> tuple[str, tuple[str, ...]]:
        """The lock, and the options that chose PyTorch's build."""
        torch = torch_arguments(self._package, self._environment, nvidia=nvidia_driver_is_there())
        options = tuple(each for each in torch if torch[0].startswith("-"))
        wanted = self._directory / "requirements.in"
        wanted.write_text("".join(f"{each}\n" for each in (*self._package.requirements, *torch[len(options) :])))
        # An override with a marker that never holds takes a distribution out, whoever asks for it.
        excluded = self._directory / "excludes.txt"
        excluded.write_text("".join(f"{each} ; python_version < '0'\n" for each in self._package.excludes))
        result = self._directory / LOCK
        arguments = (
            *("pip", "compile", "--python", self._interpreter(), "--generate-hashes", "--no-header", "--no-annotate"),
            *(("--overrides", str(excluded)) if self._package.excludes else ()),
            *("--output-file", str(result), str(wanted)),
        )
        options = self._with_torch(arguments, options)
        return without_options(result.read_text()), options

    def _installed(self, lock: Path, torch: tuple[str, ...]) -> tuple[str, ...]:
        arguments = (
            *("pip", "install", "--compile-bytecode", "--python", self._interpreter()),
            *("--no-deps", "--require-hashes", "--requirements", str(lock)),
        )
        try:
            return self._with_torch(arguments, torch)
        except Unreachable:
            missing, more = self._missing(lock.read_text(), torch)
            if not missing:
                raise
            raise offline(self._package, missing, more=more) from None

    def _with_torch(self, arguments: tuple[str, ...], torch: tuple[str, ...]) -> tuple[str, ...]:
        """Runs uv, with PyTorch's own index where it answers; the options that it ran with at last."""
        try:
            self._or_from_cache((*arguments, *torch))
        except EngineInstallError as error:
            if not torch or "pytorch.org" not in "".join(getattr(error, "__notes__", ())):
                raise
            # A closed mirror serves PyPI's packages and not PyTorch's own index.
            stage: Stage = "resolving" if self._resolving else "downloading"
            self._say(stage, "PyTorch's own index is out of reach: taking the default index's build", None)
            self._or_from_cache(arguments)
            return ()
        return torch

    def _or_from_cache(self, arguments: tuple[str, ...]) -> None:
        """Runs uv; where no index answers, again with what its cache holds. It may hold everything."""
        try:
            self._uv_runs(arguments)
        except Unreachable as error:
            try:
                self._uv_runs((*arguments, "--offline"))
            except EngineInstallError:
                raise error from None

    def _missing(self, lock: str, torch: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
        """The packages of a lock that are not in uv's cache, as far as a list is worth reading; whether there are more.

        uv names one at a time: what it names is left out, until the rest can be installed. (The environment is given
        up anyway.)
        """
        rest = {f"{each.name} {each.version}": each.text for each in entries(lock)}
        place = self._directory / "present.txt"
        missing: list[str] = []
        while rest:
            place.write_text("\n".join(rest.values()))
            try:
                self._uv_runs(
                    (
                        *("pip", "install", "--offline", "--python", self._interpreter()),
                        *("--no-deps", "--require-hashes", "--requirements", str(place), *torch),
                    )
                )
            except Unreachable as error:
                told = missing_package(tuple(getattr(error, "__notes__", ())))
                key = next((each for each in rest if told in (each, each.partition(" ")[0])), None)
                if key is None or len(missing) == MOST_MISSING:
                    return tuple(missing), True
                del rest[key]
                missing.append(key)
            except EngineInstallError:
                return tuple(missing), bool(missing)
            else:
                break
        return tuple(missing), False

    def _interpreter(self) -> str:
        return str(self._directory / "bin" / "python")

    def _uv_runs(self, arguments: tuple[str, ...]) -> None:
        tail: deque[str] = deque(maxlen=KEPT_LINES)
        with on_leash(
            (self._uv, *arguments),
            environment=self._environment,
            stdout=subprocess.DEVNULL,
            # uv reads the settings of the project it is called in; the user's own file still counts.
            working_directory=self._directory.parent,
            pass_fds=(self._lock,),
            # What others of a group could write nobody would trust.
            umask=0o022,
        ) as process:
            code = self._follow(process, tail)
        if code != 0:
            raise failure(self._package, tuple(tail), self._python.version)

    def _follow(self, process: subprocess.Popen[bytes], tail: deque[str]) -> int:
        lines: SimpleQueue[str] = SimpleQueue()
        assert process.stderr is not None  # noqa: S101 - asked for above; tells the type checker
        reader = threading.Thread(target=_read, args=(process.stderr, lines), name="uv-output", daemon=True)
        reader.start()
        while True:
            if self._cancelled is not None and self._cancelled.is_set():
                raise EngineInstallError("the installation was cancelled")
            try:
                self._take(lines.get(timeout=0.1), tail)
            except Empty:
                code = process.poll()
                if code is None:
                    continue
                # A child of uv's may hold the pipe open: the end of the file is not waited for.
                reader.join(timeout=1.0)
                while not lines.empty():
                    self._take(lines.get_nowait(), tail)
                return code

    def _take(self, line: str, tail: deque[str]) -> None:
        tail.append(line)
        if self._resolving:
            if (resolved := _RESOLVED.match(line)) is not None:
                self._say("resolving", plural(int(resolved["count"])), int(resolved["count"]))
            return
        for sign, messages in _SIGNS:
            match = sign.match(line)
            if match:
                found = match.groupdict()
                every = plural(self._packages or int(found.get("count", 0)))
                for stage, message in messages:
                    self._say(stage, message.format(**found, packages=every), self._packages)
                return


def plural(packages: int) -> str:
    return f"{packages} package{'s' if packages != 1 else ''}"


def _read(pipe: IO[bytes], lines: SimpleQueue[str]) -> None:
    while chunk := pipe.readline(65_536):
        lines.put(_ESCAPES.sub("", chunk.decode(errors="replace"))[:KEPT_CHARACTERS].rstrip())
