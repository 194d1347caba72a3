"""Where control sockets lie, for who makes them and for who looks for them.

A daemon's is ``control.sock`` in the folder that its keeper made for it (``$RUNTIME_DIRECTORY``: ``/run/autolaunch`` of
a service of the host, ``$XDG_RUNTIME_DIR/autolaunch`` of a user's). Without a keeper it lies in a folder of the user's
own, as that of every launch in the foreground does (``launch-PID.sock``, and ``launch-PID-2.sock`` for a second one of
the same process): ``$XDG_RUNTIME_DIR/autolaunch-own``, or ``control`` in the home of autolaunch where there is no such
folder, or where ``AUTOLAUNCH_HOME`` names a home: several do not meet then. It is not the keeper's folder: that one is
taken away, with all in it, when the service stops.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

#: Names one socket; nothing else is looked at.
VARIABLE = "AUTOLAUNCH_SOCKET"
#: Of the service of the host.
SYSTEM_SOCKET = Path("/run/autolaunch/control.sock")
DAEMON_NAME = "control.sock"
#: So many launches are looked at, the newest.
MOST_LAUNCHES = 64
_LAUNCH = re.compile(r"launch-[1-9][0-9]{0,9}(-[1-9][0-9]?)?\.sock")


class Places(NamedTuple):
    """Sockets to ask, in their order: daemons first, then launches."""

    daemons: tuple[Path, ...]
    launches: tuple[Path, ...]


def launch_name(pid: int, number: int = 1) -> str:
    return f"launch-{pid}.sock" if number == 1 else f"launch-{pid}-{number}.sock"


def runtime_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder that the user's session keeps for such things: on this host, and of this user alone."""
    named = Path(environ.get("XDG_RUNTIME_DIR", ""))
    if not named.is_absolute():
        return None
    try:
        found = named.stat()
    except OSError:
        return None
    usable = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    return named if usable else None


def own_folder(environ: Mapping[str, str], home: Path) -> Path:
    """The user's own folder of sockets."""
    runtime = None if environ.get("AUTOLAUNCH_HOME") else runtime_folder(environ)
    return home / "control" if runtime is None else runtime / "autolaunch-own"


def daemon_socket(environ: Mapping[str, str], home: Path) -> Path:
    """Where a daemon that is started in ``environ`` has its socket."""
    kept = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    folder = Path(kept) if kept.startswith("/") else own_folder(environ, home)
    return folder / DAEMON_NAME


def launch_socket(environ: Mapping[str, str], home: Path, pid: int, number: int = 1) -> Path:
    """Where a launch in the foreground has its socket; ``number`` counts those of one process."""
    return own_folder(environ, home) / launch_name(pid, number)


def to_ask(environ: Mapping[str, str], home: Path) -> Places:
    """Where a daemon or a launch may be listening for this user. Whether one does shows when it is asked."""
    named = environ.get(VARIABLE)
    if named:
        return Places((Path(named).expanduser().absolute(),), ())
    folder = own_folder(environ, home)
    daemons = [folder / DAEMON_NAME]
    runtime = None if environ.get("AUTOLAUNCH_HOME") else runtime_folder(environ)
    if runtime is not None:
        daemons.append(runtime / "autolaunch" / DAEMON_NAME)
    return Places((*daemons, SYSTEM_SOCKET), _launches(folder))


def _launches(folder: Path) -> tuple[Path, ...]:
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime, entry.path)
                for entry in entries
                if _LAUNCH.fullmatch(entry.name)
            ]
    except OSError:
        return ()
    return tuple(Path(path) for _, path in sorted(found)[-MOST_LAUNCHES:])
