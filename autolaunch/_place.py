"""Refuses to run with a stranger's package of the same name."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path


def refuse_a_stranger() -> None:
    """Hold that the four packages, which are installed flat, come from one place.

    Another project's ``selector`` earlier on the path would shadow ours and fail somewhere deep inside. This looks the
    packages up without importing them, so nothing of a stranger's runs.

    Raises:
        ImportError: naming the package, where ours lies and what Python finds instead.
    """
    ours = Path(__file__).parents[1]
    for name in ("engines", "selector", "profiles"):
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else PathFinder.find_spec(name)
        found = next(iter(spec.submodule_search_locations or ()), spec.origin) if spec else None
        if found is None or Path(found).parent != ours:
            raise ImportError(
                f"autolaunch needs its own package {name!r} of {ours}, but Python finds {found or 'none'}. "
                "Rename that one, unset PYTHONPATH, or install autolaunch in an environment of its own."
            )
