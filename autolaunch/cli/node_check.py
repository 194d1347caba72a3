"""``autolaunch node-check``: what a launch over several nodes asks each of them. Not for people, and in no list."""

from __future__ import annotations

import sys

import click
import msgspec

from autolaunch.cli.options import SHOWN, Command, option
from autolaunch.cli.terminal import write
from selector.errors import UsageError

#: The question has a line of two hundred bytes for each file of a checkpoint.
MOST_BYTES = 16 << 20


@click.command("node-check", cls=Command, hidden=True)
@option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), as it is without it.")
@option(SHOWN, "--verbose", is_flag=True, help="On a fault of ours, where it happened.")
def node_check(as_json: bool, verbose: bool) -> None:
    """Say whether this machine holds an environment and weights as another one does.

    Reads what to look for on standard input, as JSON. Nothing is made or changed.
    """
    del as_json, verbose
    from autolaunch.cluster.likeness import Asked, look
    from autolaunch.home import home

    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UsageError("node-check was told more than any checkpoint has")
    try:
        asked = msgspec.json.decode(content, type=Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"node-check reads what a launch over several nodes writes, as JSON: {error}",
            hint="another release of autolaunch writes something else: the same has to be on every node",
        ) from error
    write(sys.stdout, msgspec.json.encode(look(asked, home())).decode())
