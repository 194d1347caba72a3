"""``autolaunch plan``: the ranked list with its reasons. Nothing is started."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from autolaunch.cli.options import (
    Asked,
    Command,
    hardware_option,
    names_devices_by_uuid,
    pin_options,
    shown_options,
    wanted_options,
)
from autolaunch.cli.terminal import Terminal, write
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import NoFeasiblePlan

EXAMPLES = """\
  autolaunch plan glm-4.6                             this machine
  autolaunch plan glm-4.6 --hardware 8xh200           another one
  autolaunch plan glm-4.5v --objective latency --context 32k
  autolaunch plan glm-4.6 --engine vllm --tensor-parallel 8 --all
  autolaunch probe --json > host.json       on the one machine, then elsewhere:
  autolaunch plan glm-4.6 --hardware ./host.json
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@wanted_options
@pin_options
@hardware_option
@shown_options
def plan(**given: Any) -> None:
    """Decide how MODEL is served best, and show the ranked list with its reasons.

    Exits 3 when nothing that is allowed fits.
    """
    asked = msgspec.convert(given, Asked)
    show_plan(planned(asked), asked)


def planned(asked: Asked, known: Catalog | None = None) -> LaunchPlan:
    """The plan for what was asked."""
    from autolaunch import api

    known = api.catalog() if known is None else known
    hardware = asked.hardware
    report = None
    if asked.gpus is not None and names_devices_by_uuid(asked.gpus):
        report = api.probe() if hardware is None else api.hardware_report(hardware, known)
    return api.plan(
        asked.model,
        hardware=hardware if report is None else report,
        objective=asked.objective,
        context_tokens=asked.context_tokens,
        concurrency=asked.concurrency,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        workload=asked.workload,
        pins=asked.pins(report),
        known=known,
        keep_all=asked.show_all,
    )


def show_plan(decided: LaunchPlan, asked: Asked) -> None:
    """Print the plan; a plan that is none exits 3, after it was shown."""
    if asked.as_json:
        write(sys.stdout, decided.to_json())
    else:
        from autolaunch.cli.render_plan import render_plan

        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, render_plan(decided, terminal, show_all=asked.show_all, verbose=asked.verbose), terminal)
    if not decided.feasible:
        raise click.exceptions.Exit(NoFeasiblePlan.exit_code)
