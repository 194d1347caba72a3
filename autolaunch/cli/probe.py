"""``autolaunch probe``: what this machine is, as a table and as JSON that ``--hardware`` takes back."""

from __future__ import annotations

import sys

import click

from autolaunch.cli.options import SHOWN, Command, nodes_option, option
from autolaunch.cli.terminal import Terminal, write
from selector.errors import ProbeError
from selector.hardware import HardwareReport

EXAMPLES = """\
  autolaunch probe
  autolaunch probe --nodes auto             every node of a Ray cluster
  autolaunch probe --json > host.json       on the one machine, then elsewhere:
  autolaunch plan glm-4.6 --hardware ./host.json
"""


@click.command(cls=Command, examples=EXAMPLES)
@nodes_option
@option(SHOWN, "--json", "as_json", is_flag=True, help="The report as JSON (schema 1), for --hardware and for scripts.")
@option(SHOWN, "--verbose", is_flag=True, help="Say more: links, CPU features; on a fault of ours, where it happened.")
def probe(nodes: str | None, as_json: bool, verbose: bool) -> None:
    """Show what this machine is: processors, memory, GPUs, how they are linked, and what could not be asked.

    With --nodes, all that joined a Ray cluster; what they lack and how they differ is told at the end.

    Exits 4 when a probe failed and no GPU was found: then nobody knows whether there is one.
    """
    from autolaunch import api

    report = api.probe() if nodes is None else api.probe(nodes)
    if as_json:
        write(sys.stdout, report.to_json())
    else:
        from autolaunch.cli.render_probe import render_probe

        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, render_probe(report, terminal, verbose=verbose), terminal)
    if is_in_doubt(report):
        raise click.exceptions.Exit(ProbeError.exit_code)


def is_in_doubt(report: HardwareReport) -> bool:
    """Whether there may be GPUs that nobody could ask for."""
    return not report.accelerators and any(
        finding.outcome == "failed" and finding.probe != "network" for finding in report.findings
    )
