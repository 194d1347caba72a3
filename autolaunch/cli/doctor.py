"""``autolaunch doctor``: what is wrong on this host, why it matters, and the command that mends it."""

from __future__ import annotations

import sys

import click
import msgspec

from autolaunch.cli.options import HOW, SHOWN, Command, option
from autolaunch.cli.terminal import Terminal, write

EXAMPLES = """\
  autolaunch doctor                 this host
  autolaunch doctor glm-4.6         and whether this model would start here
  autolaunch doctor --online        and whether the hubs answer
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model", required=False)
@option(HOW, "--online", is_flag=True, help="Ask the hubs of weights whether they answer, too.")
@option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), and nothing else.")
@option(SHOWN, "--verbose", is_flag=True, help="Say more; on a fault of ours, where it happened.")
def doctor(model: str | None, online: bool, as_json: bool, verbose: bool) -> None:
    """Examine this host: what would stop a launch, what slows it, and the command that mends each.

    Nothing is changed and no rights are needed. With MODEL its plan is held against the host, too. Exits 0 when nothing
    would stop a launch, and otherwise as the launch would: 4 a driver that cannot be asked, 78 a wrong configuration,
    3 what does not fit, 6 no room or no hub, 5 everything else.
    """
    from autolaunch.doctor.examine import examine

    found = examine(model, online=online)
    if as_json:
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        from autolaunch.cli.render_doctor import render_doctor

        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, render_doctor(found, terminal, verbose=verbose), terminal)
    if found.exit_code:
        raise click.exceptions.Exit(found.exit_code)
