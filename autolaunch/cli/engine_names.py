"""What ``autolaunch engines install`` and ``remove`` are told: which packages, what beside them, from which lock."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError, UsageError

if TYPE_CHECKING:
    from selector.catalog import Catalog

#: ``NAME`` or ``NAME==VERSION``. A version becomes a folder's name and one argument of uv's.
_NAMED = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9._-]*)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_]{0,60}))?")
#: One requirement, which becomes a line of uv's input.
_BESIDE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}(?:\[[a-z0-9,_-]{1,80}\])?==[A-Za-z0-9.+!_]{1,60}")
#: The longest lock that is known has a third of a MiB.
MOST_LOCK_BYTES = 8 << 20


class Named(NamedTuple):
    """What ``NAME[==VERSION]`` stands for. ``version`` is ``None`` where the tried one is meant."""

    packages: tuple[tuple[EngineFacts, Package], ...]
    version: str | None
    is_engine: bool


def named(word: str, known: Catalog, *, one_package: bool = False) -> Named:
    """The packages that a word of the command line names: all of an engine, or one (``one_package``: that alone).

    Raises:
        UsageError: it names none, or is no name.
    """
    match = _NAMED.fullmatch(word.strip())
    if match is None:
        raise UsageError(f"{word[:60]!r} is no NAME or NAME==VERSION", hint="as in mlx, mlx-vlm or vllm==0.33.0")
    name = match["name"].lower().replace("_", "-")
    facts = [known.engine(engine) for engine in known.engine_names()]
    every = [(each, package) for each in facts for package in each.packages]
    of_engine = () if one_package else tuple(each for each in every if each[0].name == name)
    found = of_engine or tuple(each for each in every if each[1].name == name)
    if not found:
        names = list(dict.fromkeys([each.name for each in facts] + [package.name for _, package in every]))
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
        raise UsageError(f"no engine is called {match['name'][:60]!r}", hint=hint)
    return Named(found, match["version"], bool(of_engine))


def serving(wanted: Named, devices: tuple[str, ...], word: str) -> tuple[tuple[EngineFacts, Package], ...]:
    """The packages to install, in their versions: of an engine those that serve the machine's ``devices``.

    Raises:
        UsageError: one version was given for packages that count theirs apart.
        EngineInstallError: none serves this machine, or the version is too old.
    """
    from engines.base import of_version
    from selector.legality import too_old

    packages = wanted.packages
    if wanted.is_engine:
        packages = tuple(each for each in packages if set(each[1].devices) & set(devices))
        if not packages:
            able = dict.fromkeys(kind for _, package in wanted.packages for kind in package.devices)
            raise EngineInstallError(
                f"{wanted.packages[0][0].name} has no environment for {' or '.join(devices)}, which is what is here: "
                f"it has one for {', '.join(able)}",
                hint=f"to make it for another machine: --device {next(iter(able))}",
            )
    if wanted.version is not None and len({package.version for _, package in packages}) > 1:
        listed = " or ".join(f"{package.name}=={wanted.version}" for _, package in packages)
        raise UsageError(f"{word} could be {listed}: their versions are their own", hint="name one of them")
    chosen = []
    for facts, package in packages:
        version = wanted.version or package.version or facts.version
        refusal = too_old(facts, package, version)
        if refusal is not None:
            raise EngineInstallError(refusal.message)
        chosen.append((msgspec.structs.replace(facts, version=version), of_version(facts, package, version)))
    return tuple(chosen)


def with_beside(package: Package, beside: tuple[str, ...]) -> Package:
    """The package with others in its environment, which makes it another one.

    Raises:
        UsageError: one is no exact version of a package.
    """
    from engines.environments.requirements import exact_version

    for each in beside:
        if exact_version(each) is None or not _BESIDE.fullmatch(each):
            raise UsageError(f"--with {each[:80]!r} is no NAME==VERSION", hint="as in ray[client]==2.60.0")
    return msgspec.structs.replace(package, requirements=(*package.requirements, *beside))


def lock_text(lock: Path) -> str:
    """The text of a lock; ``-`` is standard input.

    Raises:
        EngineInstallError: it cannot be read.
    """
    try:
        if str(lock) == "-":
            content = sys.stdin.buffer.read(MOST_LOCK_BYTES + 1)
        else:
            with lock.open("rb") as file:
                content = file.read(MOST_LOCK_BYTES + 1)
        if len(content) > MOST_LOCK_BYTES:
            raise EngineInstallError(f"--lock {lock} is longer than any lock")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineInstallError(f"{lock} cannot be read as a lock: {error}") from error
