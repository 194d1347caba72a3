"""``autolaunch serve``: the daemon, as a service runs it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from autolaunch.cli import signals
from autolaunch.cli.options import HOW, SHOWN, Command, option
from autolaunch.cli.terminal import plural, write
from selector.errors import AutolaunchError
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.daemon.configuration import Configuration
    from autolaunch.daemon.serve import Daemon

EXAMPLES = """\
  autolaunch serve                                    what the service runs
  autolaunch serve --config models.toml --check       is this configuration right?
  autolaunch service install                          the systemd unit that runs it
"""


class CheckedDocument(Value, frozen=True, kw_only=True):
    """What ``--check --json`` prints of a configuration that is right.

    ``gateway`` is where clients reach the deployments; ``keys`` the names of who may, ``null`` where nobody is asked.
    ``hosts`` are the names of others that serve beside them.
    """

    schema: int = 1
    path: str
    deployments: tuple[str, ...]
    gateway: str
    keys: tuple[str, ...] | None
    hosts: tuple[str, ...] = ()


@click.command(cls=Command, examples=EXAMPLES)
@option(
    HOW,
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration (/etc/autolaunch/autolaunch.toml, or autolaunch/autolaunch.toml in the user's own).",
)
@option(HOW, "--check", is_flag=True, help="Read the configuration, say what is wrong with it, and end (78 if it is).")
@option(SHOWN, "--json", "as_json", is_flag=True, help="Events as JSON, one a line.")
def serve(config: Path | None, check: bool, as_json: bool) -> None:
    """Keep the models of a configuration up, until SIGTERM or Ctrl-C. SIGHUP reads the configuration again."""
    if check:
        _check(config, as_json=as_json)
        return
    # To read the configuration again is what is about to be done anyway.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with suppress(signals.Stopped):  # before the loop takes the signals nothing runs: to end is all that was asked
            _serve(config, as_json=as_json)
    finally:
        signal.signal(signal.SIGHUP, before)


def _serve(config: Path | None, *, as_json: bool) -> None:
    # A signal that interrupts what is being read in may come out as any error: it waits until that is done.
    with signals.deferred():
        import asyncio

        from autolaunch.daemon.loop import new_loop

        daemon = _daemon(config, as_json=as_json)
        loop = new_loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(daemon.run())


def _daemon(config: Path | None, *, as_json: bool) -> Daemon:
    from autolaunch import api
    from autolaunch.daemon import serve as daemons
    from autolaunch.daemon.journal import Journal
    from autolaunch.daemon.notify import Notifier

    _take_credentials()
    notifier = Notifier.from_environment(os.environ)
    try:
        return daemons.Daemon(
            _path(config),
            home=api.home(),
            known=api.catalog(),
            probe=api.probe,
            notifier=notifier,
            journal=Journal(as_json=as_json),
        )
    except AutolaunchError as error:
        notifier.status(error.message)  # systemctl status shows it, without a look into the journal
        raise


def _check(config: Path | None, *, as_json: bool) -> None:
    from autolaunch import api
    from autolaunch.daemon import configuration

    path = _path(config)
    _tell_checked(path, configuration.read(path, api.catalog()), as_json=as_json)


def _path(config: Path | None) -> Path:
    from autolaunch.daemon import configuration

    return (configuration.default_path() if config is None else config).expanduser().absolute()


def _tell_checked(path: Path, found: Configuration, *, as_json: bool) -> None:
    from autolaunch.daemon.gateway.host_access import accesses
    from autolaunch.daemon.gateway.keys import Keys

    names, options = tuple(each.name for each in found.deployments), found.gateway
    host = f"[{options.host}]" if ":" in options.host else options.host
    keys = None if options.keys_file is None else Keys.read(options.keys_file).names
    hosts = tuple(each.name for each in accesses(options.hosts))
    if as_json:
        document = CheckedDocument(
            path=str(path), deployments=names, gateway=f"http://{host}:{options.port}", keys=keys, hosts=hosts
        )
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    who = "without keys" if keys is None else f"for {plural(len(keys), 'key')}"
    others = f"; other hosts: {', '.join(hosts)}" if hosts else ""
    what = ", ".join(names) or "no deployments"
    write(sys.stdout, f"{path} is right: {what} at http://{host}:{options.port}, {who}{others}")


def _take_credentials() -> None:
    """The hub's token, where the service's keeper handed one over in a file: it is never in a variable."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (token := Path(folder) / "hf-token").is_file():
        os.environ.setdefault("HF_TOKEN_PATH", str(token))
