"""Engines that somebody else installed: a virtual environment, a conda environment, a container's own vLLM, a program.

Their own Python is asked where it looks for packages, and the versions are read from the names of what is there: no
engine is imported (which takes vLLM ten seconds), and nothing is installed or written. One is used where the user
points at it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shutil import which
from typing import NamedTuple

import msgspec

from engines.environments.requirements import exact_version, holds_on, name_of, normal
from selector.contract import Command
from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineError, UsageError
from selector.facts import EngineName, ModelFacts
from selector.legality import too_old
from selector.values import Value, readable
from selector.versions import version_key

#: How long a program may take to tell its version. A Python on a cold network disk takes seconds.
_ASK_SECONDS = 30.0
#: What a Python is asked. It is run without the variables of others and without the folder that it is run in.
_QUESTION = """
import sys
places = sys.path[:] = [each for each in sys.path if each]
import json, os, sysconfig
found = {}
for place in places:
    try:
        names = sorted(os.listdir(place))
    except OSError:
        continue
    for name in names:
        stem, kind = os.path.splitext(name)
        if kind in (".dist-info", ".egg-info") and "-" in stem:
            whole = os.path.isfile(os.path.join(place, name, "METADATA")) or kind == ".egg-info"
            parts = stem.split("-")
            found.setdefault(parts[0], parts[1] if whole else "")
print(json.dumps({"prefix": sys.prefix, "scripts": sysconfig.get_path("scripts"), "found": found}))
"""
LLAMA_SERVER = "llama-server"
#: Programs of engines that are looked for on PATH, and the Pythons of a container.
_PROGRAMS = ("vllm", "sglang", "transformers", "mlx_lm.server", "mlx_vlm.server", LLAMA_SERVER, "python3", "python")
#: ``version: 7400 (8b3c2f1)``, since 2026 ``version: 0.3.0-dev (build 10621, commit c1d0e7a00)``; a build of 0 or 1 was
#: made without git, and tells nothing (llama.cpp, common/build-info.cpp.in).
_LLAMA_VERSION = re.compile(r"^version: (?:\S+ \(build (?P<build>\d+),|(?P<number>\d+) \()", re.MULTILINE)
#: A script's first line, and the second one of those whose interpreter's path is too long for the first.
_SHEBANG = re.compile(
    r"\A#!\s*(?P<direct>/\S*python[\d.]*)\s*$|\A#!/bin/sh\n'''exec' ['\"]?(?P<long>/[^'\"\n]*?)['\"]? ", re.MULTILINE
)
_NOT_FOR_ASKED = ("PYTHON", "VIRTUAL_ENV", "CONDA_")


class Installation(Value, frozen=True, kw_only=True):
    """One engine that was found. ``place`` is an environment's folder or a program, ``how`` where it was looked for.

    ``package`` is that of the profile whose requirements are there, or ``llama-server`` for that program, which needs
    no ``python``; ``programs`` are the folders of programs.
    """

    engine: EngineName
    package: str
    version: str
    place: Path
    how: str
    python: Path | None
    programs: tuple[Path, ...]

    @property
    def bin_directory(self) -> Path:
        return self.programs[0]

    def program(self, name: str) -> Path:
        """The path of a program; where there is none, the one where it was to be."""
        if self.python is not None and re.fullmatch(r"python[\d.]*", name):
            return self.python
        places = [folder / name for folder in self.programs]
        return next((place for place in places if os.access(place, os.X_OK) and place.is_file()), places[0])

    def runs(self, command: Command) -> Command:
        """A command that was made for ``bin_directory``, with its program where it lies.

        Raises:
            EngineError: it is not there.
        """
        program = self.program(Path(command.argv[0]).name)
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise EngineError(f"{self.place} has {self.engine} {self.version} and no program {program}")
        return msgspec.structs.replace(command, argv=(str(program), *command.argv[1:]))


class Trouble(Value, frozen=True, kw_only=True):
    """A place that should hold an engine and could not be asked."""

    place: Path
    how: str
    message: str


class _Answer(Value, frozen=True, kw_only=True):
    prefix: str
    scripts: str
    found: dict[str, str]


class _Place(NamedTuple):
    """Where to ask: a Python, or a llama-server. ``folder`` is what a person calls it."""

    folder: Path
    how: str
    python: Path | None = None
    server: Path | None = None
    programs: Path | None = None


# --- what a user points at --------------------------------------------------------------------------


def chosen(
    path: Path,
    engines: Iterable[EngineFacts],
    model: ModelFacts,
    *,
    engine: EngineName | None = None,
    version: str | None = None,
) -> Installation:
    """The engine at ``path`` (a folder of an environment, its ``bin``, or a program) that serves a model.

    Of several the first in the order of ``engines``, unless ``engine`` names one.

    Raises:
        EngineError: there is none, it cannot be asked, or it is too old.
        UsageError: it is another than ``engine`` or ``version`` ask for.
    """
    known = tuple(engines)
    found = at(path, known)
    if not found:
        raise EngineError(
            f"{path} holds no engine", hint=f"known: {', '.join(facts.name for facts in known)}; autolaunch engines"
        )
    if engine is not None and all(each.engine != engine for each in found):
        raise UsageError(f"--engine {engine} was asked for, and {path} holds {_listed(found)}")
    packages = {(facts.name, package.name): package for facts in known for package in facts.packages}
    # A program of llama.cpp's own is none of ours; what our package of it serves it serves.
    packages |= {(facts.name, LLAMA_SERVER): facts.packages[0] for facts in known if facts.name == "llamacpp"}
    kind = model.architecture.model_type
    fitting = [
        each
        for each in found
        if engine in (None, each.engine) and kind in packages[each.engine, each.package].architectures
    ]
    if not fitting:
        able = sorted({name for (_, name), package in packages.items() if kind in package.architectures})
        raise EngineError(
            f"{path} holds {_listed(found)}, which does not serve {model.id}", hint=f"{', '.join(able)} would"
        )
    one = fitting[0]
    if version is not None and version_key(version) != version_key(one.version):
        raise UsageError(f"--engine-version {version} was asked for, and {path} holds {one.engine} {one.version}")
    facts = next(facts for facts in known if facts.name == one.engine)
    refusal = too_old(facts, packages[one.engine, one.package], one.version)
    if refusal is not None:
        raise EngineError(
            f"{path}: {refusal.message}", hint="a newer one is made by autolaunch: leave --engine-path out"
        )
    return one


def at(path: Path, engines: Iterable[EngineFacts]) -> tuple[Installation, ...]:
    """Every engine that is installed at ``path``.

    Raises:
        EngineError: nothing is there, or it could not be asked.
    """
    known = tuple(engines)
    found: list[Installation] = []
    for place in _places_at(Path(path).expanduser().absolute()):
        found += _asked(place, known)
    return tuple(found)


def _listed(found: Iterable[Installation]) -> str:
    return " and ".join(dict.fromkeys(f"{each.package} {each.version}" for each in found))


def _places_at(path: Path) -> Iterator[_Place]:
    if not path.exists():
        raise EngineError(
            f"{path} does not exist" + (f": it is a link to {path.readlink()}" if path.is_symlink() else "")
        )
    if path.is_file():
        yield _place_of_program(path, "asked for")
        return
    pythons = [path / folder / name for folder in ("bin", ".") for name in ("python", "python3")]
    python = next((each for each in pythons if each.exists()), None)
    broken = next((each for each in pythons if each.is_symlink() and not each.exists()), None)
    servers = [path / folder / LLAMA_SERVER for folder in (".", "bin", "build/bin")]
    server = next((each for each in servers if each.is_file()), None)
    if python is None and server is None:
        if broken is not None:
            raise EngineError(f"{path} is broken: its Python, {broken.readlink()}, is gone")
        raise EngineError(f"{path} is no environment and holds no {LLAMA_SERVER}: there is no bin/python in it")
    if python is not None:
        yield _Place(path, "asked for", python=python.parent.resolve() / python.name)
    if server is not None:
        yield _Place(server.resolve(), "asked for", server=server.resolve())


def _place_of_program(program: Path, how: str) -> _Place:
    """Where to ask about a program.

    Raises:
        EngineError: it is none that can be asked.
    """
    if re.fullmatch(r"python[\d.]*", program.name):
        return _Place(program, how, python=program)
    real = program.resolve()
    if LLAMA_SERVER in (real.name, program.name):
        return _Place(program, how, server=real)
    try:
        with real.open("rb") as file:
            opening = file.read(1024).decode(errors="replace")
    except OSError as error:
        raise EngineError(f"{program} cannot be read: {error.strerror}") from error
    found = _SHEBANG.search(opening)
    if found is None:
        raise EngineError(f"{program} is neither a Python program nor a {LLAMA_SERVER}")
    python = Path(found["direct"] or found["long"])
    if not python.exists():
        raise EngineError(f"{program} is broken: its Python, {python}, is gone")
    return _Place(program, how, python=python, programs=real.parent)


# --- what is on this machine ------------------------------------------------------------------------


def search(
    engines: Iterable[EngineFacts], environ: Mapping[str, str], *, ours: Iterable[Path] = ()
) -> tuple[tuple[Installation, ...], tuple[Trouble, ...]]:
    """Engines in the active environments, beside autolaunch and on PATH, and the places that could not be asked.

    What lies below ``ours`` is left out: those are autolaunch's own environments.
    """
    known = tuple(engines)
    own = tuple(folder.resolve() for folder in ours)
    found: dict[tuple[str, str, Path], Installation] = {}
    troubles: list[Trouble] = []
    asked: set[Path] = set()
    for place in _places_here(environ, troubles):
        point = place.python or place.server or place.folder
        # Two environments may lead to one interpreter: the way there tells them apart.
        key = point.parent.resolve() / point.name
        if key in asked or any(key.is_relative_to(folder) for folder in own):
            continue
        asked.add(key)
        try:
            for each in _asked(place, known):
                found.setdefault((each.engine, each.package, each.place.resolve()), each)
        except EngineError as error:
            troubles.append(Trouble(place=place.folder, how=place.how, message=error.message))
    return tuple(found.values()), tuple(troubles)


def _places_here(environ: Mapping[str, str], troubles: list[Trouble]) -> Iterator[_Place]:
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if environ.get(variable):
            folder = Path(environ[variable])
            try:
                for each in _places_at(folder):
                    yield each._replace(how=variable)
            except EngineError as error:
                troubles.append(Trouble(place=folder, how=variable, message=error.message))
    yield _Place(Path(sys.prefix), "beside autolaunch", python=Path(sys.executable))
    for name in _PROGRAMS:
        program = which(name, path=environ.get("PATH"))
        if program is None:
            continue
        try:
            yield _place_of_program(Path(program), "PATH")
        except EngineError as error:
            # A launcher in another language (pyenv's shims) is nobody's fault.
            if "is broken" in error.message:
                troubles.append(Trouble(place=Path(program), how="PATH", message=error.message))


# --- asking -----------------------------------------------------------------------------------------


def _asked(place: _Place, engines: tuple[EngineFacts, ...]) -> list[Installation]:
    if place.server is not None:
        return [_llama(place, place.server)]
    assert place.python is not None  # noqa: S101 - one of the two is always given; tells the type checker
    answer = _ask_python(place.folder, place.python)
    installed = {normal(name): version for name, version in answer.found.items()}
    folders = (place.programs, place.python.parent, Path(answer.scripts), Path(answer.prefix, "bin"))
    return [
        Installation(
            engine=facts.name,
            package=package.name,
            version=_version(facts, package, installed, place.folder),
            place=place.folder if place.how == "asked for" else Path(answer.prefix),
            how=place.how,
            python=place.python,
            programs=tuple(dict.fromkeys(folder for folder in folders if folder is not None)),
        )
        for facts in engines
        for package in facts.packages
        if all(name_of(each) in installed for each in package.requirements if holds_on(each, sys.platform))
    ]


def _version(facts: EngineFacts, package: Package, installed: Mapping[str, str], place: Path) -> str:
    """The engine's version: that of its distribution, or the last part of it where that is llama.cpp's build."""
    first = package.requirements[0]
    version = installed[name_of(first)]
    if not version_key(version):
        raise EngineError(f"{place} is broken: the metadata of {name_of(first)} is gone")
    known = package.version or facts.version
    if known == exact_version(first) or not known.startswith("b"):
        return version
    return f"b{version.rpartition('.')[2]}"


def _ask_python(folder: Path, python: Path) -> _Answer:
    out, told, code = _run(folder, (str(python), "-c", _QUESTION))
    try:
        return msgspec.json.decode(out, type=readable(_Answer))
    except msgspec.MsgspecError:
        why = f"its Python ended with exit code {code}" if code else "its Python does not answer"
        raise EngineError(f"{folder} is broken: {why}" + (f": {told}" if told else "")) from None


def _llama(place: _Place, server: Path) -> Installation:
    out, told, code = _run(place.folder, (str(server), "--version"))
    found = _LLAMA_VERSION.search(out.decode(errors="replace"))
    if found is None:
        why = f"it ended with exit code {code}" if code else "it does not tell its version"
        raise EngineError(f"{place.folder} does not run: {why}" + (f": {told}" if told else ""))
    build = int(found["build"] or found["number"])
    if build <= 1:
        raise EngineError(f"{place.folder} was built without its version, and could be of any age")
    return Installation(
        engine="llamacpp",
        package=LLAMA_SERVER,
        version=f"b{build}",
        place=place.folder,
        how=place.how,
        python=None,
        programs=(server.parent,),
    )


def _run(place: Path, argv: tuple[str, ...]) -> tuple[bytes, str, int]:
    """What a program says (its error output first), its last line of that, its exit code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_ASKED)}
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            cwd="/",
            timeout=_ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{place} is broken: {argv[0]} does not answer within {_ASK_SECONDS:.0f} s") from None
    except OSError as error:
        raise EngineError(f"{place} is broken: {argv[0]} does not run: {error.strerror}") from error
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    out = done.stdout if argv[1] == "-c" else done.stderr + done.stdout
    return out, lines[-1][:200] if lines else "", done.returncode
