"""Refuses to run with a stranger's package of the same name."""

from __future__ import annotations

import os.path
import sys
from importlib.machinery import PathFinder


def refuse_a_stranger() -> None:
    """Hold that the four packages, which are installed flat, come from one place.

    Another project's ``selector`` earlier on the path would shadow ours and fail somewhere deep inside. This looks the
    packages up without importing them, so nothing of a stranger's runs.

    Raises:
        ImportError: naming the package, where ours lies and what Python finds instead.
    """
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib costs 5 ms here
    for name in ("engines", "selector", "profiles"):
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else PathFinder.find_spec(name)
        found = next(iter(spec.submodule_search_locations or ()), spec.origin) if spec else None
        if found is None or os.path.dirname(os.path.abspath(found)) != ours:  # noqa: PTH100, PTH120 - as above
            raise ImportError(
                f"autolaunch needs its own package {name!r} of {ours}, but Python finds {found or 'none'}. "
                "Rename that one, unset PYTHONPATH, or install autolaunch in an environment of its own."
            )
