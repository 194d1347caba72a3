"""The host on which a service is installed: who keeps services there, for whom, and with which programs."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from selector.errors import EngineInstallError, UsageError
from selector.values import Value

Keeper = Literal["systemd", "launchd"]
#: What a service finds programs in. systemd and launchd each give less by themselves.
SEARCH_PATH: tuple[str, ...] = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class Here(Value, frozen=True, kw_only=True):
    """``keeper`` is the system's; ``running`` whether it runs (in a container it may not). ``sudo_user`` began as."""

    keeper: Keeper
    running: bool
    uid: int
    user: str
    home: Path
    sudo_user: str | None = None


def here(environ: Mapping[str, str]) -> Here:
    """This host, and who asks."""
    mac = sys.platform == "darwin"
    uid = os.getuid()
    try:
        user, home = pwd.getpwuid(uid).pw_name, pwd.getpwuid(uid).pw_dir
    except KeyError:
        user, home = str(uid), "/"
    return Here(
        keeper="launchd" if mac else "systemd",
        # sd_booted(3)
        running=mac or Path("/run/systemd/system").is_dir(),
        uid=uid,
        user=user,
        home=Path(environ.get("HOME") or home).absolute(),
        sudo_user=environ.get("SUDO_USER"),
    )


def own_program(environ: Mapping[str, str]) -> tuple[str, ...]:
    """How the autolaunch that runs now is started: the command beside its interpreter, or the interpreter with -m."""
    beside = Path(sys.executable).parent / "autolaunch"
    if os.access(beside, os.X_OK):
        return (str(beside),)
    found = shutil.which("autolaunch", path=environ.get("PATH"))
    return (str(Path(found).absolute()),) if found else (sys.executable, "-m", "autolaunch")


def parts_of_it() -> tuple[Path, ...]:
    """What of the autolaunch that runs now has to be in reach, besides its program."""
    import autolaunch

    return (Path(sys.executable), Path(autolaunch.__file__).parent)


def search_path(environ: Mapping[str, str]) -> tuple[tuple[str, ...], Path | None]:
    """The folders for ``PATH``, and where uv is (``None``: nowhere, and no environment can be made)."""
    from engines.environments.installer import find_uv

    try:
        uv = Path(find_uv(environ)).absolute()
    except EngineInstallError:
        return SEARCH_PATH, None
    folder = str(uv.parent)
    return (SEARCH_PATH if folder in SEARCH_PATH else (folder, *SEARCH_PATH)), uv


def home_of(user: str) -> Path:
    """The home of ``user``.

    Raises:
        UsageError: there is no such user.
    """
    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError as error:
        raise UsageError(f"there is no user {user}") from error
