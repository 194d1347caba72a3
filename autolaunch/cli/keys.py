"""``autolaunch keys``: who may use the gateway. A key is shown once, when it is made; what is kept is its hash."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from autolaunch.cli.engines import show, shown
from autolaunch.cli.options import HOW, Command, option
from autolaunch.cli.terminal import Terminal, clean, wrapped, write
from selector.errors import UsageError
from selector.values import Value

_Function = TypeVar("_Function", bound=Callable[..., Any])


class KeysDocument(Value, frozen=True, kw_only=True):
    """What ``keys list --json`` prints: names, in the file's order. Nothing of the keys themselves."""

    schema: int = 1
    file: str
    keys: tuple[str, ...]


class Place(NamedTuple):
    """The file of keys, and the configuration that does not name it yet (``None``: it does, or was not asked)."""

    file: Path
    unnamed_in: Path | None


def _file(function: _Function) -> _Function:
    return option(
        HOW,
        "--file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The file of keys. Without it the one that the configuration names as gateway.keys_file, else keys beside "
        "the configuration: /etc/autolaunch/keys for root, autolaunch/keys in the user's own.",
    )(function)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def keys(ctx: click.Context) -> None:
    """Give clients keys for the gateway, and take them away.

    The file of keys has a name and a hash for each. A daemon takes changes on a reload: systemctl reload autolaunch, or
    SIGHUP.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@keys.command(
    cls=Command,
    examples="""\
  autolaunch keys add web                   prints a new key, once
  autolaunch keys add web --stdin < FILE    a key that you have, 20 characters or more
""",
)
@click.argument("name")
@_file
@option(HOW, "--stdin", is_flag=True, help="Take the key from standard input, and print none.")
def add(name: str, file: Path | None, stdin: bool) -> None:
    """Make a key for the client NAME and print it: this once, since only its hash is kept."""
    from autolaunch.daemon.gateway import key_file
    from autolaunch.daemon.gateway.keys import checked_name, key_of, made

    checked_name(name)
    place = _place(file)
    secret = _given() if stdin else made()
    key_file.add(place.file, key_of(name, secret))
    if not stdin:
        write(sys.stdout, secret)
    _tell(f"the key of {name} is in {place.file}, as a hash" + ("" if stdin else ": it is not shown again"))
    _tell_how_it_is_taken(place)
    _tell_who_cannot_read(place.file)


@keys.command("list", cls=Command)
@_file
@shown
def list_(file: Path | None, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """Print the names of those who have a key."""
    from autolaunch.daemon.gateway.keys import Keys

    path = _place(file).file
    names = Keys.read(path).names
    show(KeysDocument(file=str(path), keys=names), as_json, lambda _: "\n".join(names))


@keys.command(cls=Command)
@click.argument("name")
@_file
def remove(name: str, file: Path | None) -> None:
    """Take the key of the client NAME away."""
    from autolaunch.daemon.gateway import key_file

    place = _place(file)
    left = key_file.remove(place.file, name)
    _tell(f"the key of {name} is no longer in {place.file}")
    if left.entries:
        _tell_how_it_is_taken(place)
    else:
        _tell("it was the last: a daemon refuses a file without keys, and on a reload keeps what it had")


def _place(file: Path | None) -> Place:
    """The file that is meant.

    Raises:
        ConfigurationError: the configuration that would name it cannot be read.
    """
    if file is not None:
        return Place(file.expanduser().absolute(), None)
    from autolaunch.daemon import configuration

    path = configuration.default_path()
    named = configuration.keys_file_of(path)
    if named is not None:
        return Place(named, None)
    return Place(path.with_name("keys"), path)


def _given() -> str:
    """The key on standard input, without the end of its line.

    Raises:
        UsageError: it is more than one line of ASCII.
    """
    from autolaunch.daemon.gateway.keys import MOST_CHARACTERS

    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("Key: ")
    content = sys.stdin.buffer.read(MOST_CHARACTERS + 3)
    try:
        return content.decode("ascii").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        # Without the error: it holds the key.
        raise UsageError("the key has characters that cannot stand in a header: ASCII without spaces can") from None


def _tell(message: str) -> None:
    """On stderr: stdout has the key alone."""
    terminal = Terminal.of(sys.stderr)
    write(sys.stderr, wrapped(clean(message), terminal), terminal)


def _tell_how_it_is_taken(place: Place) -> None:
    if place.unnamed_in is None:
        _tell("a running daemon takes it on a reload: systemctl reload autolaunch, or SIGHUP")
    else:
        _tell(f'{place.unnamed_in} does not name the file yet: [gateway] keys_file = "{place.file}"')


def _tell_who_cannot_read(path: Path) -> None:
    """Where root made or changed a file that the service's user has no part in."""
    from autolaunch.daemon.gateway.key_file import SERVICE, service_group

    group, status = service_group(), path.stat()
    if group is None or status.st_mode & 0o004 or (status.st_gid == group and status.st_mode & 0o040):
        return
    _tell(f"the service's user cannot read it: chgrp {SERVICE} {path}; chmod 640 {path}")
