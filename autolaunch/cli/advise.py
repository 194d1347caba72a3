"""``autolaunch advise``: the smallest changes that do more, or that make it fit; and the smallest machines."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from autolaunch.cli.asked import Asked
from autolaunch.cli.options import SHOWN, Command, hardware_option, option, pin_options, wanted_options
from autolaunch.cli.plan import planned, refuse_unasked
from autolaunch.cli.terminal import Terminal, write
from selector.errors import NoFeasiblePlan

EXAMPLES = """\
  autolaunch advise glm-4.6                          this machine
  autolaunch advise glm-4.6 --hardware 2xh100        another one
  autolaunch advise glm-4.6 --quantization FP8       machines for these weights
  autolaunch advise glm-4.5v --hardware 1xh100 --concurrency 200
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@wanted_options
@pin_options
@hardware_option
@option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), and nothing else.")
@option(SHOWN, "--verbose", is_flag=True, help="On a fault of ours, where it happened.")
def advise(**given: Any) -> None:
    """Say what would make MODEL fit, or serve more than it does, and which smallest machines serve it.

    Every advice was planned before it is given. Exits 3 when nothing fits and there is nothing to advise, and 4 when
    that may be for a driver that could not be asked.
    """
    asked = msgspec.convert(given, Asked)
    decided = planned(asked, thorough=True)
    if not decided.feasible:
        refuse_unasked(decided.hardware)
    if asked.as_json:
        write(sys.stdout, decided.advised().to_json())
    else:
        from autolaunch.cli.render_advice import render_advice

        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, render_advice(decided, terminal), terminal)
    if not decided.feasible and not decided.advice:
        raise click.exceptions.Exit(NoFeasiblePlan.exit_code)
