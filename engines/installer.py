"""One run of uv: makes a virtual environment, installs a package's requirements, tells how far it is."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from engines.environments import Stage, python_request
from engines.leash import on_leash
from selector.engine_facts import Package
from selector.errors import EngineInstallError, NoRoomOnDisk

#: uv's last lines that an error shows, and how much of a line is kept.
KEPT_LINES, KEPT_CHARACTERS = 40, 500

#: Variables that would turn uv towards another environment than the one being made.
_NOT_FOR_UV = frozenset({"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"})
#: How uv 0.8 to 0.13 says, without a terminal, what it has done.
_SIGNS: tuple[tuple[re.Pattern[str], Stage, str], ...] = (
    (re.compile(r"^Resolved (?P<count>\d+) packages?"), "downloading", "fetching {count} packages"),
    (re.compile(r"^\s*Downloading (?P<what>\S+) \((?P<size>[^)]+)\)"), "downloading", "fetching {what} ({size})"),
    (re.compile(r"^\s*Downloaded (?P<what>\S+)"), "downloading", "fetched {what}"),
    (re.compile(r"^\s*Building (?P<what>\S+)"), "downloading", "building {what}"),
    (re.compile(r"^Prepared (?P<count>\d+) packages?"), "installing", "installing {count} packages"),
    (re.compile(r"^Installed (?P<count>\d+) packages?"), "compiling", "compiling {count} packages"),
)
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
        from uv import find_uv_bin  # type: ignore[import-not-found,unused-ignore]

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


def torch_arguments(package: Package, environment: Mapping[str, str], *, nvidia: bool) -> tuple[str, ...]:
    """What chooses PyTorch's build.

    The user's own choice (``UV_TORCH_BACKEND``) holds. With wheels at hand (find-links) uv's index for
    PyTorch is left alone, it may be out of reach; without an NVIDIA GPU a CPU wheel among them is named,
    or a newer CUDA build of several gigabytes on PyPI could win. Otherwise uv looks at the driver.
    """
    if not package.torch_backend or "UV_TORCH_BACKEND" in environment:
        return ()
    links = environment.get("UV_FIND_LINKS")
    if not links:
        return ("--torch-backend", "auto")
    if nvidia:
        return ()
    wheels = _cpu_wheels(links)
    return (f"torch=={wheels[-1]}",) if wheels else ()


def _cpu_wheels(links: str) -> list[str]:
    """Versions of PyTorch's CPU wheels for this machine in local find-links folders, oldest first."""
    tag = "cp" + python_request().replace(".", "")
    name = re.compile(rf"torch-(?P<version>\d+(?:\.\d+)*\+cpu)-{tag}-.*{re.escape(platform.machine())}\.whl")
    versions = []
    for link in links.split(","):
        folder = Path(link.removeprefix("file://"))
        if folder.is_dir():
            matches = (name.fullmatch(wheel.name) for wheel in folder.glob("torch-*.whl"))
            versions += [match["version"] for match in matches if match]
    return sorted(versions, key=lambda version: [int(part) for part in version.removesuffix("+cpu").split(".")])


class Installer:
    """Builds one environment. Interrupted, it ends uv and its children before it lets go."""

    def __init__(
        self,
        *,
        directory: Path,
        package: Package,
        environ: Mapping[str, str],
        lock: int,
        say: Callable[[Stage, str, int | None], None],
        cancelled: threading.Event | None,
    ) -> None:
        self._directory = directory
        self._package = package
        self._uv = find_uv(environ)
        self._environment = uv_environment(environ)
        self._lock = lock
        self._say = say
        self._cancelled = cancelled
        self._packages: int | None = None

    def run(self) -> None:
        self._say("resolving", f"preparing the environment of {self._package.name}", None)
        python = python_request()
        # The interpreter that runs us is surely there; uv would otherwise look for one, or fetch one.
        wanted = sys.executable if sys.version_info[:2] == tuple(map(int, python.split("."))) else python
        self._checked(("venv", "--no-project", "--python", wanted, str(self._directory)))
        torch = torch_arguments(self._package, self._environment, nvidia=nvidia_driver_is_there())
        try:
            self._checked(self._install(torch))
        except EngineInstallError as error:
            if torch != ("--torch-backend", "auto") or "pytorch.org" not in "".join(getattr(error, "__notes__", ())):
                raise
            # A closed mirror serves PyPI's packages and not PyTorch's own index.
            self._say("resolving", "PyTorch's own index is out of reach: taking the default index's build", None)
            self._checked(self._install(()))

    def _install(self, torch: tuple[str, ...]) -> tuple[str, ...]:
        python = str(self._directory / "bin" / "python")
        return ("pip", "install", "--compile-bytecode", "--python", python, *torch, *self._package.requirements)

    def _checked(self, arguments: tuple[str, ...]) -> None:
        tail: deque[str] = deque(maxlen=KEPT_LINES)
        with on_leash(
            (self._uv, *arguments),
            environment=self._environment,
            stdout=subprocess.DEVNULL,
            # uv reads the settings of the project it is called in; the user's own file still counts.
            working_directory=self._directory.parent,
            pass_fds=(self._lock,),
        ) as process:
            code = self._follow(process, tail)
        if code != 0:
            raise _failure(self._package, tuple(tail))

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
        for sign, stage, message in _SIGNS:
            match = sign.match(line)
            if match:
                found = match.groupdict()
                if "count" in found:
                    self._packages = int(found["count"])
                self._say(stage, message.format(**found), self._packages)
                return


def nvidia_driver_is_there() -> bool:
    """Whether this machine has an NVIDIA driver loaded. Only decides which build of PyTorch to take."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists()


def _read(pipe: IO[bytes], lines: SimpleQueue[str]) -> None:
    while chunk := pipe.readline(65_536):
        lines.put(_ESCAPES.sub("", chunk.decode(errors="replace"))[:KEPT_CHARACTERS].rstrip())


def _failure(package: Package, tail: tuple[str, ...]) -> EngineInstallError | NoRoomOnDisk:
    """The error for uv's last lines, which go along as the error's notes."""
    text = "\n".join(tail)
    lowered = text.lower()
    error: EngineInstallError | NoRoomOnDisk
    reason = next(
        (line.strip() for line in tail if line.lower().startswith("error")), tail[-1] if tail else "no output"
    )
    if "no space left" in lowered or "os error 28" in lowered:
        error = NoRoomOnDisk(f"the disk became full while {package.name} was installed", hint="free some room")
    elif any(
        sign in lowered for sign in ("dns error", "error sending request", "failed to fetch", "connection", "timed out")
    ):
        error = EngineInstallError(
            f"{package.name} could not be fetched: {reason}",
            hint="is there a network? behind a mirror, set UV_DEFAULT_INDEX (and UV_FIND_LINKS for wheels at hand)",
        )
    elif "no solution found" in lowered or "no wheels" in lowered or "requirements are unsatisfiable" in lowered:
        error = EngineInstallError(
            f"{package.name} has no packages for Python {python_request()} on {sys.platform} {platform.machine()}",
            hint="another engine may be published for this machine: autolaunch engines",
        )
    else:
        error = EngineInstallError(f"uv could not install {package.name}: {reason}")
    for line in tail:
        error.add_note(line)
    return error
