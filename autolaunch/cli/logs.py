"""``autolaunch logs NAME``: what a deployment's engine prints, or what has happened to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from autolaunch.cli.options import HOW, Command, option
from autolaunch.cli.reach import holder_of, shown, something
from autolaunch.cli.render_kept import render_event
from autolaunch.cli.terminal import Terminal, clean, write
from autolaunch.client import Client
from autolaunch.daemon.control.contract import MOST_LINES, SOME_LINES, EventDocument
from selector.errors import NotRunning, NotSteered, UnknownDeployment, UsageError
from selector.values import Value

if TYPE_CHECKING:
    _Int = click.ParamType[int]
else:
    _Int = click.ParamType


class LogLine(Value, frozen=True, kw_only=True):
    """What ``--json`` prints a line."""

    schema: int = 1
    deployment: str
    line: str


class Lines(_Int):
    """A number of lines, 0 too."""

    name = "lines"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if re.fullmatch(r"[0-9]{1,5}", text) is None or int(text) > MOST_LINES:
            self.fail(f"{value!r} is not a number of lines from 0 to {MOST_LINES:,}.", param, ctx)
        return int(text)


@click.command(
    cls=Command,
    examples="""\
  autolaunch logs glm-4.6 -n 20
  autolaunch logs glm-4.6 --follow        over restarts of the engine too; Ctrl-C ends it
  autolaunch logs --events --follow       what happens to all deployments
""",
)
@click.argument("name", required=False)
@option(HOW, "--lines", "-n", type=Lines(), default=SOME_LINES, metavar="N", help="So many from the end (100).")
@option(HOW, "--follow", "-f", is_flag=True, help="Go on with what comes.")
@option(HOW, "--events", is_flag=True, help="What the daemon says of it, not what its engine prints.")
@shown("JSON (schema 1), a document a line.")
def logs(name: str | None, lines: int, follow: bool, events: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """Print what the engine of deployment NAME printed last.

    With --events NAME may be left out. Exit code 2 for a name of nothing, 5 where nothing runs, or what is followed
    ends with the daemon.
    """
    if name is None and not events:
        raise UsageError("whose logs?", hint="autolaunch logs NAME; autolaunch ps lists the names")
    reached = something()
    client = reached.reached[0].client if name is None else holder_of(name, reached).client
    if events:
        _tell_events(client, name, lines, follow=follow, as_json=as_json)
        return
    terminal = Terminal.of(sys.stdout)
    for line in client.logs(str(name), lines=lines, follow=follow):
        if as_json:
            write(sys.stdout, msgspec.json.encode(LogLine(deployment=str(name), line=line)).decode(), terminal)
        else:
            write(sys.stdout, clean(line.replace("\t", "    ")), terminal)
        if follow:
            sys.stdout.flush()
    if follow:
        _explain_end(client, str(name))


def _explain_end(client: Client, name: str | None) -> None:
    """What was followed has ended, and not by its reader's wish.

    Raises:
        NotRunning: who was asked has ended.
    """
    try:
        if name is not None:
            client.deployment(name)
    except UnknownDeployment:
        write(sys.stderr, clean(f"autolaunch: {name} is kept up no more"))
        return
    except NotSteered:
        pass
    raise NotRunning(f"what listened at {client.path} has ended", hint="autolaunch ps lists what runs")


def _tell_events(client: Client, name: str | None, count: int, *, follow: bool, as_json: bool) -> None:
    terminal = Terminal.of(sys.stdout)
    for event in _some(client, name, count, follow=follow):
        write(
            sys.stdout,
            msgspec.json.encode(event).decode() if as_json else render_event(event),
            terminal,
        )
        if follow:
            sys.stdout.flush()
    if follow:
        _explain_end(client, None)


def _some(client: Client, name: str | None, count: int, *, follow: bool) -> Iterator[EventDocument]:
    """The last ``count`` events, and those that follow."""

    past = tuple(client.events())
    wanted = [event for event in past if concerns(name, event) and event.event != "events.missed"]
    yield from wanted[len(wanted) - min(count, len(wanted)) :]
    if follow:
        coming = client.events(since=past[-1].serial if past else 0, follow=True)
        yield from (event for event in coming if concerns(name, event))


def concerns(name: str | None, event: EventDocument) -> bool:
    """Whether an event is of ``name``: of a deployment all of its replicas' are, of a replica the deployment's too."""
    if name is None or event.deployment is None:
        return True
    whole, _, number = name.rpartition("#")
    if whole and number.isdecimal():
        return event.deployment in (name, whole)
    return event.deployment == name or event.deployment.rpartition("#")[0] == name
