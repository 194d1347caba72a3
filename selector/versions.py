"""Versions as engines write them, in an order: ``0.5.3rc1 < 0.5.3 < 0.5.3.post1``, ``b6092 < b7400``."""

from __future__ import annotations

import re
from functools import lru_cache

_RELEASE = re.compile(r"[a-z]*(?P<release>\d+(?:\.\d+)*)(?P<suffix>[^+]*)", re.IGNORECASE)
_BEFORE = re.compile(r"[.-]?(?:a|b|rc|alpha|beta|dev|pre)\D*(?P<number>\d*)", re.IGNORECASE)
_AFTER = re.compile(r"[.-]?(?:post|p)(?P<number>\d*)", re.IGNORECASE)
#: Parts of a release that are compared: no engine has more.
_PARTS = 5


@lru_cache(maxsize=256)
def version_key(version: str) -> tuple[int, ...]:
    """A key that sorts as its versions do; what follows a ``+`` (the build's CUDA) counts for nothing.

    A version that holds no number gives the empty key, which is below every other.
    """
    found = _RELEASE.match(version.strip())
    if found is None:
        return ()
    release = tuple(int(part) for part in found["release"].split("."))[:_PARTS]
    stage, number = 0, "0"
    for way, pattern in ((-1, _BEFORE), (1, _AFTER)):
        if (suffix := pattern.match(found["suffix"])) is not None:
            stage, number = way, suffix["number"]
            break
    return (*release, *(0,) * (_PARTS - len(release)), stage, int(number or 0))


def in_versions(version: str, since: str | None, before: str | None) -> bool:
    """Whether a version lies in ``[since, before)``; ``None`` is open."""
    key = version_key(version)
    return (since is None or key >= version_key(since)) and (before is None or key < version_key(before))
