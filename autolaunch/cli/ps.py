"""``autolaunch ps``: all that is kept up here."""

from __future__ import annotations

import click

from autolaunch.cli.engines import show
from autolaunch.cli.options import Command
from autolaunch.cli.reach import Everyone, Reached, Silent, everything, shown
from autolaunch.cli.render_kept import now_utc, render_hosts, render_process, render_table
from autolaunch.cli.terminal import Terminal, clean, wrapped
from autolaunch.daemon.control.contract import DeploymentDocument, StatusDocument
from selector.values import Value


class ProcessRow(Value, frozen=True, kw_only=True):
    """A daemon or a launch in the foreground. ``socket`` is where it is steered."""

    socket: str
    status: StatusDocument
    deployments: tuple[DeploymentDocument, ...]


class SilentRow(Value, frozen=True, kw_only=True):
    """Somebody listens at ``socket`` and does not answer; ``message`` says how that shows."""

    socket: str
    code: str
    message: str


class PsDocument(Value, frozen=True, kw_only=True):
    schema: int = 1
    processes: tuple[ProcessRow, ...]
    silent: tuple[SilentRow, ...] = ()


@click.command(cls=Command, examples="  autolaunch ps\n  autolaunch ps --json | jq '.processes[].deployments[].name'\n")
@shown()
def ps(as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """List what the daemon and the launches of this user keep up.

    Exit code 0, also where nothing runs; 5 where AUTOLAUNCH_SOCKET names a socket that nobody listens at.
    """
    document = document_of(everything())
    show(document, as_json, lambda terminal: _render(document, terminal))


def document_of(everyone: Everyone) -> PsDocument:
    return PsDocument(
        processes=tuple(_row(each) for each in everyone.reached),
        silent=tuple(_silent_row(each) for each in everyone.silent),
    )


def _silent_row(silent: Silent) -> SilentRow:
    return SilentRow(socket=str(silent.client.path), code=silent.error.code, message=silent.error.message)


def _row(reached: Reached) -> ProcessRow:
    return ProcessRow(socket=str(reached.client.path), status=reached.status, deployments=reached.deployments)


def _render(document: PsDocument, terminal: Terminal) -> str:
    if not document.processes and not document.silent:
        return "nothing runs here: no daemon, and no launch of yours"
    now = now_utc()
    parts = [
        "\n".join(
            (
                render_process(each.status, now),
                render_table(each.deployments, terminal, now) if each.deployments else "  no deployments",
                *((render_hosts(each.status.hosts, terminal, now),) if each.status.hosts else ()),
            )
        )
        for each in document.processes
    ]
    parts += [click.style(wrapped(clean(each.message), terminal, first=""), fg="red") for each in document.silent]
    return "\n\n".join(parts)
