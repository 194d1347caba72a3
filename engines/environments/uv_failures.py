"""What uv's last lines mean, as one sentence that names the package. The wordings are those of uv 0.8 to 0.13."""

from __future__ import annotations

import platform
import re
import sys

from engines.environments.requirements import exact_version, name_of
from selector.engine_facts import Package
from selector.errors import EngineInstallError, NoRoomOnDisk

_SPEC = r"`?(?P<what>[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])?(?:==[A-Za-z0-9.+!_-]+)?)`?"
_NO_VERSION = re.compile(rf"there (?:is|are) no versions? of {_SPEC}")
_NO_PACKAGE = re.compile(rf"{_SPEC} was not found in (?:the package registry|the provided package locations)")
_NO_WHEEL = re.compile(rf"{_SPEC} has no (?:usable )?(?:wheels|source distribution)")
_NOT_CACHED = re.compile(rf"{_SPEC} was not found in the cache")
_NOT_FETCHED = re.compile(rf"Failed to (?:download|fetch)(?: and build)?:? {_SPEC}(?=[\s]|$)")
_OTHER_PYTHON = re.compile(
    rf"Python\S* .{{0,80}}?(?:does not satisfy|doesn't satisfy) Python(?P<wanted>\S+).*?{_SPEC} depends"
)
_NOT_BUILT = re.compile(rf"Failed to build {_SPEC}")
_HASHES = re.compile(rf"Hash mismatch for {_SPEC}")
#: The first clause of uv's reasoning, which is the one that tells.
_BECAUSE = re.compile(r"Because (?P<why>.+?), we can conclude")
_LONGEST = 300
_UNREACHABLE = ("dns error", "error sending request", "failed to fetch", "connection", "timed out", "request failed")
_OFFLINE = ("network was disabled", "network connectivity is disabled")


class Unreachable(EngineInstallError):
    """The package index did not answer, or was not to be asked (``UV_OFFLINE``)."""


def missing_package(tail: tuple[str, ...]) -> str | None:
    """``numpy 2.4.6``: the package that uv says it could not fetch, or has not in its cache."""
    text = " ".join(tail)
    found = _NOT_CACHED.search(text) or _NOT_FETCHED.search(text)
    return None if found is None else _spelled(found["what"])


def failure(package: Package, tail: tuple[str, ...], python: str) -> EngineInstallError | NoRoomOnDisk:
    """The error for uv's last lines, which go along as the error's notes. ``python`` is as ``3.11``."""
    error = _failure(package, tail, python)
    for line in tail:
        error.add_note(line)
    return error


def _failure(package: Package, tail: tuple[str, ...], python: str) -> EngineInstallError | NoRoomOnDisk:
    text = " ".join(line.strip() for line in tail)
    lowered = text.lower()
    if "no space left" in lowered or "os error 28" in lowered:
        return NoRoomOnDisk(f"the disk became full while {package.name} was installed", hint="free some room")
    if any(sign in lowered for sign in _OFFLINE):
        return offline(package, tuple(filter(None, (missing_package(tail),))))
    if (found := _HASHES.search(text)) is not None:
        return EngineInstallError(
            f"the file of {_spelled(found['what'])} is not the one that the lock names: its hash differs",
            hint="a mirror serves another file, or a cache is damaged: uv cache clean",
        )
    here = f"Python {python} on {sys.platform} {platform.machine()}"
    if (found := _NO_WHEEL.search(text)) is not None:
        return EngineInstallError(
            f"{package.name} cannot be installed: {_spelled(found['what'])} has no wheel for {here}",
            hint="another engine may be published for this machine: autolaunch engines",
        )
    if (found := _OTHER_PYTHON.search(text)) is not None:
        return EngineInstallError(
            f"{package.name} cannot be installed: {_spelled(found['what'])} wants Python {found['wanted']}, "
            f"and this is {python}"
        )
    if (found := _NO_VERSION.search(text)) is not None and "==" in found["what"]:
        return _no_version(package, found["what"])
    if (found := _NO_PACKAGE.search(text)) is not None:
        return EngineInstallError(
            f"{package.name} cannot be installed: the package index has no {_spelled(found['what'])}",
            hint="is a mirror in use (UV_DEFAULT_INDEX) that does not hold all of PyPI?",
        )
    reason = _reason(tail)
    if any(sign in lowered for sign in _UNREACHABLE):
        return Unreachable(
            f"{package.name} could not be fetched: {reason}",
            hint="is there a network? behind a mirror, set UV_DEFAULT_INDEX (and UV_FIND_LINKS for wheels at hand)",
        )
    if (found := _NOT_BUILT.search(text)) is not None:
        return EngineInstallError(
            f"{package.name} cannot be installed: {_spelled(found['what'])} has no wheel for {here}, "
            "and could not be built",
            hint="what its build said is shown with --verbose",
        )
    if (found := _BECAUSE.search(text)) is not None:
        return EngineInstallError(
            f"{package.name} cannot be installed on {here}: {found['why'][:_LONGEST]}",
            hint="a mirror (UV_DEFAULT_INDEX) or a date (UV_EXCLUDE_NEWER) may be behind; --verbose shows all of it",
        )
    return EngineInstallError(f"uv could not install {package.name}: {reason}")


def offline(package: Package, missing: tuple[str, ...], *, more: bool = False) -> Unreachable:
    """The error for packages that are neither in uv's cache nor to be fetched."""
    listed = ", ".join(missing) if missing else "a package that it needs"
    told = f"{listed} and others are" if more else f"{listed} {'is' if len(missing) < 2 else 'are'}"
    return Unreachable(
        f"{package.name} cannot be installed without a network: {told} not in uv's cache",
        hint="install it once with a network, or give folders of wheels in UV_FIND_LINKS",
    )


def _no_version(package: Package, what: str) -> EngineInstallError:
    wanted = package.requirements[0]
    if name_of(what) == name_of(wanted) and exact_version(what) == exact_version(wanted):
        return EngineInstallError(
            f"there is no {_spelled(what)} to install",
            hint=f"without a version {package.name} is the one that autolaunch was tried with",
        )
    return EngineInstallError(
        f"{package.name} cannot be installed: there is no {_spelled(what)}, which it needs",
        hint="is a mirror in use (UV_DEFAULT_INDEX) that is behind?",
    )


def _spelled(what: str) -> str:
    return what.replace("==", " ")


def _reason(tail: tuple[str, ...]) -> str:
    """The line that says why: that which could not be fetched, else uv's first error, else its last line."""
    lines = [re.sub(r"^(?:error|cause|Caused by): *", "", line.strip()) for line in tail if line.strip()]
    fetched = next((line for line in lines if line.startswith("Failed to ")), None)
    errors = (line.strip() for line in tail if line.lower().startswith("error"))
    return fetched or next(errors, None) or (lines[-1] if lines else "no output")
