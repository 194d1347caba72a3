"""``requirements.lock``: what an environment holds, each package with its version and hashes, and no address.

Without addresses it can be taken to another host, whose mirrors may be others; the hashes say that the files are the
same. It holds for one Python and one kind of machine, as uv resolved it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

from selector.engine_facts import Package
from selector.errors import EngineInstallError

#: One package of a lock, its backslashes already joined.
_ENTRY = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(?P<version>[A-Za-z0-9.+!_-]+)(?: ?;[^#]*?)?"
    r"(?P<hashes>(?:\s+--hash=sha(?:256|384|512):[0-9a-f]+)+)"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])?==(?P<version>[A-Za-z0-9.+!_-]+)\s*(?:;.*)?")
_ONLY_ON = re.compile(r";\s*sys_platform\s*==\s*['\"](?P<platform>\w+)['\"]\s*$")


class Locked(NamedTuple):
    """One package of a lock. ``text`` is its whole entry."""

    name: str
    version: str
    text: str


def normal(name: str) -> str:
    """A distribution's name as indices compare it: ``MLX_LM`` is ``mlx-lm``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """``transformers`` of ``transformers[serving]==5.23.0``."""
    found = _NAME.match(requirement)
    return normal(found[0]) if found else requirement


def exact_version(requirement: str) -> str | None:
    """``5.23.0`` of ``transformers[serving]==5.23.0``; ``None`` where other versions would do."""
    found = _EXACT.fullmatch(requirement.strip())
    return None if found is None else found["version"]


def holds_on(requirement: str, platform: str) -> bool:
    """Whether a requirement is meant for ``platform`` (``sys.platform``). Other markers are not understood: they hold.

    Enough for the profiles' own requirements, without a parser of markers in every plan.
    """
    found = _ONLY_ON.search(requirement)
    return found is None or found["platform"] == platform


def entries(text: str) -> tuple[Locked, ...]:
    """The packages of a lock.

    Raises:
        EngineInstallError: a line that is no package with version and hashes; an address or an option, for instance.
    """
    found = []
    for entry in text.replace("\\\n", " ").splitlines():
        line = entry.strip()
        if not line or line.startswith("#"):
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise EngineInstallError(
                f"the lock is not one of ours: {line[:80]!r} is no package with a version and hashes",
                hint="a lock is the requirements.lock of an environment that autolaunch made",
            )
        found.append(Locked(normal(match["name"]), match["version"], line))
    if not found:
        raise EngineInstallError("the lock is empty")
    return tuple(found)


def without_options(text: str) -> str:
    """A lock as uv wrote it, less options that the user's settings may have put in: addresses above all."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("-"))


def checked_lock(text: str, package: Package) -> tuple[Locked, ...]:
    """The packages of a lock that is meant for ``package``.

    Raises:
        EngineInstallError: it is none, or one for something else.
    """
    found = entries(text)
    name, version = name_of(package.requirements[0]), exact_version(package.requirements[0])
    held = next((each.version for each in found if each.name == name), None)
    if held is None or (version is not None and held != version):
        wanted = f"{name} {version}" if version else name
        raise EngineInstallError(
            f"the lock holds {f'{name} {held}' if held else f'no {name}'}, and {wanted} was asked for"
        )
    if forbidden := [each.name for each in found if each.name in {normal(name) for name in package.excludes}]:
        raise EngineInstallError(f"the lock holds {', '.join(forbidden)}, which {package.name} must not have")
    return found


def torch_backend(locked: tuple[Locked, ...]) -> str | None:
    """Which of PyTorch's builds a lock names: ``cu130``, ``cpu``; ``None`` for the default index's."""
    version = next((each.version for each in locked if each.name == "torch"), "")
    return version.partition("+")[2] or None


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
