"""What is installed on this host: the files of the service that is wanted, and what is to be known about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from autolaunch.service import launchd, systemd
from autolaunch.service.devices import Devices, find_devices
from autolaunch.service.here import SEARCH_PATH, Here, home_of, own_program, parts_of_it, search_path
from autolaunch.service.keeping import Wanted
from autolaunch.service.reach import out_of_reach
from autolaunch.service.setup import NAME, File, Setup, checked, configuration_file
from selector.errors import UsageError
from selector.values import Value

CONFIGURATION = Path(f"/etc/{NAME}/{NAME}.toml")


class Made(Value, frozen=True, kw_only=True):
    """The files of a service, the configuration's example among them; and what a person should know."""

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()


def make(
    wanted: Wanted, host: Here, environ: Mapping[str, str], *, devices: Callable[[], Devices] = find_devices
) -> Made:
    """The files of the service that is wanted, for this host. Nothing is written.

    Raises:
        UsageError: its user could not run the program; a path that cannot stand in its files; no such user or file.
    """
    if wanted.live and wanted.hub_token_file is not None and not wanted.hub_token_file.is_file():
        raise UsageError(f"{wanted.hub_token_file} is no file", hint="one that holds the hub's token and nothing else")
    if host.keeper == "launchd":
        setup, notes = _for_launchd(wanted, host, environ)
        files = launchd.launchd_files(setup)
    elif wanted.of_user:
        setup, notes = _for_a_user(wanted, host, environ)
        files = systemd.user_files(setup)
    else:
        setup, notes = _for_the_host(wanted, environ, devices)
        files = systemd.system_files(setup)
    return Made(files=(*files, configuration_file(setup, wanted.model)), notes=notes)


def _for_the_host(
    wanted: Wanted, environ: Mapping[str, str], devices: Callable[[], Devices]
) -> tuple[Setup, tuple[str, ...]]:
    if not wanted.live and wanted.program is None:
        raise UsageError(
            "where autolaunch lies in the image is not known", hint="--program /opt/autolaunch/bin/autolaunch says it"
        )
    program = _program(wanted, environ)
    notes: list[str] = []
    folders = SEARCH_PATH
    if wanted.live:
        _refuse_out_of_reach((Path(program[0]), *(() if wanted.program else parts_of_it())))
        folders, uv = search_path(environ)
        if uv is None:
            notes.append(_NO_UV)
        elif out_of_reach(uv) is not None:
            folders = SEARCH_PATH
            notes.append(f"{uv} is out of reach for the service: it uses engines that are installed, and installs none")
    found = devices()
    if not found.nodes:
        notes.append("no GPU was found: the service may use none until this is run again")
    setup = Setup(
        program=program,
        configuration=wanted.configuration or CONFIGURATION,
        search_path=folders,
        devices=found,
        hub_token_file=wanted.hub_token_file,
    )
    return checked(setup), tuple(notes)


def _for_a_user(wanted: Wanted, host: Here, environ: Mapping[str, str]) -> tuple[Setup, tuple[str, ...]]:
    folders, uv = search_path(environ)
    linger = f"loginctl enable-linger {host.user} keeps it up from boot on, and after you log out"
    return _persons(wanted, host.home, folders, environ), (*((_NO_UV,) if uv is None else ()), linger)


def _for_launchd(wanted: Wanted, host: Here, environ: Mapping[str, str]) -> tuple[Setup, tuple[str, ...]]:
    folders, uv = search_path(environ)
    again = f"a configuration with a mistake is tried every {launchd.THROTTLE_SECONDS} s, and the log says what it is"
    notes = (*((_NO_UV,) if uv is None else ()), again)
    if wanted.of_user:
        return _persons(wanted, host.home, folders, environ), notes
    if host.sudo_user is None:
        raise UsageError(
            "a daemon of this Mac runs as one of its users, and nobody says which",
            hint="sudo autolaunch service install, by that user; or --user, for while you are logged in",
        )
    return _persons(wanted, home_of(host.sudo_user), folders, environ, run_as=host.sudo_user), notes


def _persons(
    wanted: Wanted, home: Path, folders: tuple[str, ...], environ: Mapping[str, str], run_as: str | None = None
) -> Setup:
    default = home / f".config/{NAME}/{NAME}.toml" if run_as is None else CONFIGURATION
    return checked(
        Setup(
            program=_program(wanted, environ),
            configuration=wanted.configuration or default,
            search_path=folders,
            hub_token_file=wanted.hub_token_file,
            home=home,
            run_as=run_as,
        )
    )


_NO_UV = "uv was not found: engines that are installed are used, and none can be installed (pip install uv)"


def _program(wanted: Wanted, environ: Mapping[str, str]) -> tuple[str, ...]:
    return own_program(environ) if wanted.program is None else (str(wanted.program),)


def _refuse_out_of_reach(parts: tuple[Path, ...]) -> None:
    for part in parts:
        barred = out_of_reach(part)
        if barred is None:
            continue
        if not os.path.lexists(barred):
            raise UsageError(f"{barred} is not there", hint="--program names the autolaunch that the service runs")
        at = "run" if barred in (part, part.resolve()) else "enter"
        raise UsageError(
            f"the service runs as the user {NAME}, which cannot {at} {barred}, and needs {part}",
            hint="install autolaunch where everybody can read it, in /opt for example, interpreter and all; or take "
            "--user for a service of your own",
        )
