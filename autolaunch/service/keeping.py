"""Where the files of a service lie, by who keeps it and for whom, and the commands around them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from autolaunch.service import launchd, systemd
from autolaunch.service.here import Here, Keeper
from autolaunch.service.setup import NAME
from selector.errors import ConfigurationError, UsageError
from selector.values import Value

LIVE = Path("/")


class Wanted(Value, frozen=True, kw_only=True):
    """What was asked for. ``root`` is where ``/`` of the host or of an image is; ``model`` goes into an example."""

    of_user: bool = False
    configuration: Path | None = None
    root: Path = LIVE
    program: Path | None = None
    hub_token_file: Path | None = None
    model: str | None = None

    @property
    def live(self) -> bool:
        """Whether it is the host itself, on which commands can be run, and not an image of one."""
        return self.root == LIVE


class Act(Value, frozen=True, kw_only=True):
    """A command. One that is ``only_if_it_can`` may fail: there may be nothing for it to do."""

    argv: tuple[str, ...]
    only_if_it_can: bool = False


class Kept(Value, frozen=True, kw_only=True):
    """How a service is kept on a host.

    ``paths`` is every file that an install may have written. ``settle`` follows a change of the files and ``forget``
    their removal; ``start`` enables and starts, ``restart`` takes over what changed; ``stop`` precedes a removal.
    """

    keeper: Keeper
    scope: Literal["host", "user"]
    paths: tuple[Path, ...]
    settle: tuple[Act, ...] = ()
    start: tuple[Act, ...] = ()
    restart: tuple[Act, ...] = ()
    stop: tuple[Act, ...] = ()
    forget: tuple[Act, ...] = ()


def refuse_unless_it_can_be_done(wanted: Wanted, host: Here) -> None:
    """Raises ``UsageError`` where nothing can be changed: by this user, or because nobody keeps services here."""
    if wanted.live and not host.running:
        raise UsageError(
            "systemd does not run on this host, and nothing else here keeps services",
            hint="autolaunch serve --config FILE runs the daemon by hand; --root DIR writes the files into an image",
        )
    if wanted.live and not wanted.of_user and host.uid != 0:
        raise UsageError(
            "a service of the host is root's to install and remove",
            hint="run it as root, or with --user for a service of your own",
        )


def kept(wanted: Wanted, host: Here) -> Kept:
    """How the service that is wanted is kept on this host."""
    if host.keeper == "launchd":
        return _by_launchd(host, of_user=wanted.of_user)
    return _by_systemd_of_the_user(host) if wanted.of_user else _by_systemd(wanted)


def perform(acts: tuple[Act, ...]) -> tuple[tuple[str, ...], ...]:
    """Runs the commands one after the other and gives those that succeeded.

    Raises:
        ConfigurationError: one failed that may not.
    """
    done = []
    for act in acts:
        try:
            ended = subprocess.run(act.argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ConfigurationError(f"{act.argv[0]} cannot be run: {error.strerror}") from error
        if ended.returncode == 0:
            done.append(act.argv)
        elif not act.only_if_it_can:
            said = " ".join((ended.stderr or ended.stdout).split()) or f"exit code {ended.returncode}"
            tell_more = f"systemctl status {NAME} and journalctl -u {NAME} tell more"
            raise ConfigurationError(
                f"{' '.join(act.argv)} failed: {said[:600]}", hint=tell_more if "systemctl" in act.argv else None
            )
    return tuple(done)


def _by_systemd(wanted: Wanted) -> Kept:
    unit = systemd.UNIT
    paths = (
        systemd.UNIT_PATH,
        systemd.DEVICES_PATH,
        systemd.TOKEN_PATH,
        systemd.SYSUSERS_PATH,
        systemd.TMPFILES_PATH,
    )
    if not wanted.live:
        enable = Act(argv=("systemctl", f"--root={wanted.root}", "enable", unit))
        return Kept(keeper="systemd", scope="host", paths=paths, start=(enable,))
    reload = Act(argv=("systemctl", "daemon-reload"))
    return Kept(
        keeper="systemd",
        scope="host",
        paths=paths,
        settle=(
            Act(argv=("systemd-sysusers", str(systemd.SYSUSERS_PATH))),
            Act(argv=("systemd-tmpfiles", "--create", str(systemd.TMPFILES_PATH))),
            reload,
        ),
        start=(Act(argv=("systemctl", "enable", "--now", unit)),),
        restart=(Act(argv=("systemctl", "try-restart", unit)),),
        stop=(Act(argv=("systemctl", "disable", "--now", unit), only_if_it_can=True),),
        forget=(reload,),
    )


def _by_systemd_of_the_user(host: Here) -> Kept:
    systemctl, unit = ("systemctl", "--user"), systemd.UNIT
    folder = systemd.user_folder(host.home)
    reload = Act(argv=(*systemctl, "daemon-reload"))
    return Kept(
        keeper="systemd",
        scope="user",
        paths=(folder / unit, folder / f"{unit}.d" / systemd.TOKEN_PATH.name),
        settle=(reload,),
        start=(Act(argv=(*systemctl, "enable", "--now", unit)),),
        restart=(Act(argv=(*systemctl, "try-restart", unit)),),
        stop=(Act(argv=(*systemctl, "disable", "--now", unit), only_if_it_can=True),),
        forget=(reload,),
    )


def _by_launchd(host: Here, *, of_user: bool) -> Kept:
    path = launchd.agent_path(host.home) if of_user else launchd.daemon_path()
    domain = f"gui/{host.uid}" if of_user else "system"
    unload = Act(argv=("launchctl", "bootout", f"{domain}/{launchd.LABEL}"), only_if_it_can=True)
    load = Act(argv=("launchctl", "bootstrap", domain, str(path)))
    return Kept(
        keeper="launchd",
        scope="user" if of_user else "host",
        paths=(path,),
        start=(unload, load),  # a job that it has is refused
        restart=(unload, load),
        stop=(unload,),
    )
