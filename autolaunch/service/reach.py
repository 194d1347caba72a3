"""Whether a service's user, who is nobody in particular, can get at a program."""

from __future__ import annotations

import stat
from pathlib import Path


def out_of_reach(path: Path) -> Path | None:
    """The first folder on the way to ``path``, or ``path`` itself, that only some may enter or run; ``None``: none.

    By the permissions for others alone: what an access list grants besides is not seen. Links are followed, since an
    environment's interpreter lies where it came from.
    """
    for way in (path.absolute(), path.resolve()):
        for step in (*reversed(way.parents), way):
            try:
                mode = step.stat().st_mode
            except OSError:
                return step
            if not mode & stat.S_IXOTH:
                return step
    return None
