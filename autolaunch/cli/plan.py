"""``autolaunch plan``: the ranked list with its reasons. Nothing is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from autolaunch.cli.asked import Asked
from autolaunch.cli.options import (
    HOW,
    Command,
    Word,
    hardware_option,
    nodes_option,
    option,
    pin_options,
    shown_options,
    wanted_options,
)
from autolaunch.cli.terminal import Terminal, write
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import EngineError, NoFeasiblePlan, ProbeError, UsageError
from selector.hardware import HardwareReport

EXAMPLES = """\
  autolaunch plan glm-4.6                             this machine
  autolaunch plan glm-4.6 --hardware 8xh200           another one
  autolaunch plan glm-4.6 --nodes auto                all nodes of a Ray cluster
  autolaunch plan glm-4.5v --objective latency --context 32k
  autolaunch plan glm-4.6 --engine vllm --tensor-parallel 8 --all
  autolaunch probe --json > host.json       on the one machine, then elsewhere:
  autolaunch plan glm-4.6 --hardware ./host.json
  autolaunch plan --fleet fleet.toml        many hosts and many models at once
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model", required=False)
@wanted_options
@pin_options
@hardware_option
@option(
    HOW,
    "--fleet",
    type=Word(),
    metavar="FILE",
    help="Instead of MODEL: many hosts and many models, as a TOML or JSON file tells them; which goes where.",
)
@nodes_option
@shown_options
@click.pass_context
def plan(ctx: click.Context, /, fleet: str | None, **given: Any) -> None:
    """Decide how MODEL is served best, and show the ranked list with its reasons.

    Exits 3 when nothing that is allowed fits, and 4 when that may be for a driver that could not be asked.
    """
    if fleet is not None:
        from autolaunch.cli.fleet import show_fleet  # most plans are of one machine

        show_fleet(ctx, fleet)
        return
    if given["model"] is None:
        raise click.UsageError("Missing argument 'MODEL'.", ctx)
    asked = msgspec.convert(given, Asked)
    show_plan(planned(asked), asked)


def planned(
    asked: Asked, known: Catalog | None = None, *, thorough: bool = False, report: HardwareReport | None = None
) -> LaunchPlan:
    """The plan for what was asked; ``thorough`` with all the advice there is. ``report`` is of a probe just made."""
    from autolaunch import api

    known = api.catalog() if known is None else known
    hardware, nodes = asked.hardware, asked.nodes
    if nodes is not None and hardware is not None:
        raise UsageError("--nodes is about the hosts of a cluster, and --hardware about another machine")
    engine_path = None if asked.engine_path is None else Path(asked.engine_path).expanduser().absolute()
    if engine_path is not None and hardware is not None:
        raise UsageError("--engine-path is an engine of this machine, and --hardware is about another")
    if asked.gpus is not None and report is None:
        report = _machine(hardware, nodes, known)
        if not report.accelerators:
            refuse_unasked(report)
    return api.plan(
        asked.model,
        hardware=hardware if report is None else report,
        nodes=nodes,
        objective=asked.objective,
        context_tokens=asked.context_tokens,
        concurrency=asked.concurrency,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        workload=asked.workload,
        pins=asked.pins(report),
        known=known,
        keep_all=asked.show_all,
        thorough=thorough,
        engine_path=engine_path,
        here=hardware is None and nodes is None,
    )


def _machine(hardware: str | None, nodes: str | None, known: Catalog) -> HardwareReport:
    from autolaunch import api

    if nodes is not None:
        return api.nodes_to_plan(nodes)
    return api.probe() if hardware is None else api.hardware_report(hardware, known)


def refuse_unasked(report: HardwareReport) -> None:
    """That nothing fits is no answer where GPUs may be that nobody could ask for.

    Raises:
        ProbeError: a vendor's driver could not be asked, and none of its GPUs was found.
    """
    from autolaunch.cli.machine_line import unasked

    for vendor, why in unasked(report).items():
        raise ProbeError(
            f"the {vendor} driver could not be asked, and nothing fits without its GPUs: {why}",
            hint="mend the driver, then try again; `autolaunch probe` shows what was asked",
        )


def refuse_engine(decided: LaunchPlan, asked: Asked) -> None:
    """That nothing fits is the engine's fault where one was pointed at, or pinned in a version, that is refused.

    Raises:
        EngineError: it is too old, or has a fault that is known.
    """
    if asked.engine_path is None and asked.engine_version is None:
        return
    of_version = ("engine.version", "rule.")
    kinds = [
        each for each in decided.rejected if not each.code.startswith(("pin.", "engine.")) or each.code in of_version
    ]
    if not kinds or not all(each.code.startswith(of_version) for each in kinds):
        return
    if asked.engine_path is not None:
        which, hint = str(asked.engine_path), "another version is made by autolaunch: leave --engine-path out"
    else:
        which = f"{decided.request.pinned.get('engine', asked.engine)} {asked.engine_version}"
        hint = "leave --engine-version out: the version that this release knows is installed then"
    raise EngineError(f"{which} cannot serve {decided.model} here: {kinds[0].message}", hint=hint)


def show_plan(decided: LaunchPlan, asked: Asked) -> None:
    """Print the plan; a plan that is none exits 3, after it was shown.

    Raises:
        ProbeError: it is none, and a driver could not be asked.
    """
    if not decided.feasible:
        refuse_unasked(decided.hardware)
        refuse_engine(decided, asked)
    if asked.as_json:
        write(sys.stdout, decided.to_json())
    else:
        from autolaunch.cli.render_plan import render_plan

        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, render_plan(decided, terminal, show_all=asked.show_all, verbose=asked.verbose), terminal)
    if not decided.feasible:
        raise click.exceptions.Exit(NoFeasiblePlan.exit_code)
