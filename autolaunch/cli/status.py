"""``autolaunch status [NAME]``: the daemon, or everything of one deployment."""

from __future__ import annotations

import sys
import time

import click
import msgspec

from autolaunch.cli.engines import show
from autolaunch.cli.options import SHOWN, Command, option
from autolaunch.cli.reach import Reached, holder_of, shown, something
from autolaunch.cli.render_kept import now_utc, render_daemon, render_deployment, render_hosts, render_table
from autolaunch.cli.terminal import Terminal, write
from autolaunch.daemon.control.contract import DeploymentDocument
from selector.errors import UsageError

#: How often what is followed is looked at.
LOOK_SECONDS = 0.5


@click.command(
    cls=Command,
    examples="""\
  autolaunch status                   the daemon
  autolaunch status glm-4.6           where it is, why, on what, and its last fault
  autolaunch status glm-4.6 --follow  a page whenever it comes into another state
""",
)
@click.argument("name", required=False)
@option(SHOWN, "--follow", "-f", is_flag=True, help="Go on: print it anew whenever its state changes (with a NAME).")
@shown("JSON (schema 1); with --follow a document a line.")
def status(name: str | None, follow: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """Show the daemon, or with a NAME everything of that deployment.

    Exit code 5 where nothing runs, 2 for a name of nothing.
    """
    if name is None:
        if follow:
            raise UsageError("--follow takes the name of a deployment", hint="autolaunch logs --events --follow")
        _show_daemon(something().reached[0], as_json=as_json)
        return
    client = holder_of(name, something()).client
    if not follow:
        document = client.deployment(name)
        show(document, as_json, lambda terminal: render_deployment(document, terminal, now_utc()))
        return
    last = None
    while True:
        document = client.deployment(name)
        now = [(each.phase, each.run, each.load, each.fault, each.wanted, each.failures) for each in document.replicas]
        if now != last:
            _print(document, as_json=as_json)
        last = now
        time.sleep(LOOK_SECONDS)  # the progress of a load is no event, so it is looked for


def _show_daemon(reached: Reached, *, as_json: bool) -> None:
    def render(terminal: Terminal) -> str:
        now = now_utc()
        parts = [render_daemon(reached.status, terminal, now)]
        if reached.deployments:
            parts.append(render_table(reached.deployments, terminal, now))
        if reached.status.hosts:
            parts.append(render_hosts(reached.status.hosts, terminal, now))
        return "\n\n".join(parts)

    show(reached.status, as_json, render)


def _print(document: DeploymentDocument, *, as_json: bool) -> None:
    if as_json:
        write(sys.stdout, msgspec.json.encode(document).decode())
    else:
        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, render_deployment(document, terminal, now_utc()) + "\n", terminal)
    sys.stdout.flush()
