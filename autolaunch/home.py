"""Where everything that is kept lies. Apart from the API: who only steers a daemon has no use for the rest of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from selector.errors import UsageError


def home() -> Path:
    """Where environments, miniatures and logs are kept: ``AUTOLAUNCH_HOME``, or the user's data folder.

    Raises:
        UsageError: neither is known.
    """
    named = os.environ.get("AUTOLAUNCH_HOME")
    if named:
        return Path(named).expanduser().absolute()
    # As platformdirs has it, which would be a twentieth of a cold plan. A relative path there is none, says XDG.
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if data.is_absolute():
        return data / "autolaunch"
    try:
        user = Path.home()
    except RuntimeError as error:
        raise UsageError(
            "this user has no home folder", hint="set AUTOLAUNCH_HOME to a folder for what is kept"
        ) from error
    return user / ("Library/Application Support" if sys.platform == "darwin" else ".local/share") / "autolaunch"
