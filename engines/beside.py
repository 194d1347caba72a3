"""An engine in autolaunch's own environment: ``pip install glm-autolaunch[mlx]`` needs no second one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from selector.engine_facts import Package

_SUFFIX = ".dist-info"


def holds(package: Package, prefix: str = sys.prefix) -> bool:
    """Whether all that a package asks for is installed beside autolaunch, and what it pins in that very version."""
    names = _names(prefix)
    # A plan asks for every engine: what reads requirements is imported where there is something to read.
    first = package.requirements[0].replace("[", "=").partition("=")[0].replace("-", "_") + "-"
    if not any(name.startswith(first) for name in names):
        return False
    from engines.environments.requirements import exact_version, holds_on, name_of, normal

    pairs = (name.removesuffix(_SUFFIX).split("-", 1) for name in names)
    here = {normal(name): version for name, version in pairs}
    return all(
        (version := here.get(name_of(each))) is not None and exact_version(each) in (None, version)
        for each in package.requirements
        if holds_on(each, sys.platform)
    )


def shared_place(environ: Mapping[str, str]) -> Path | None:
    """Where root's environments lie for all users of a host; ``AUTOLAUNCH_SHARED`` names another place, or none."""
    named = environ.get("AUTOLAUNCH_SHARED")
    if named is not None:
        return Path(named) if Path(named).is_absolute() else None
    data = "/Library/Application Support/autolaunch" if sys.platform == "darwin" else "/var/lib/autolaunch"
    return Path(data, "engines")


def nothing(own: Path, packages: Iterable[Package], prefix: str = sys.prefix) -> bool:
    """Whether there is no environment of ours on this host, nor any engine beside autolaunch: most plans end here."""
    shared = shared_place(os.environ)
    if own.is_dir() or (shared is not None and shared.is_dir()):
        return False
    return not any(holds(package, prefix) for package in packages)


@lru_cache(maxsize=4)
def _names(prefix: str) -> tuple[str, ...]:
    """The folders that name what is installed, such as ``mlx_lm-0.32.2.dist-info``."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    try:
        names = os.listdir(f"{prefix}/lib/{version}/site-packages")  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return ()
    return tuple(name for name in names if name.endswith(_SUFFIX) and "-" in name.removesuffix(_SUFFIX))
