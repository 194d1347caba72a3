"""``autolaunch plan --fleet FILE``: which deployments go on which hosts. Nothing is started."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.core import ParameterSource

from autolaunch.cli.terminal import Terminal, write
from selector.errors import NoFeasiblePlan, UsageError

#: What goes with ``--fleet``; all else is said in the file.
_BESIDE = frozenset({"fleet", "show_all", "as_json", "verbose"})


def show_fleet(ctx: click.Context, file: str) -> None:
    """Plan the fleet of a file and print it; exits 3, after it was shown, where a minimum is not met.

    Raises:
        UsageError: an option beside it that the file has to say.
    """
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name not in _BESIDE and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            given = name.upper() if isinstance(parameter, click.Argument) else parameter.opts[0]
            raise UsageError(
                f"{given} cannot stand beside --fleet", hint="the file says it of each of its deployments and hosts"
            )
    from autolaunch.fleet import plan_fleet

    planned = plan_fleet(Path(file))
    if ctx.params["as_json"]:
        write(sys.stdout, planned.to_json())
    else:
        from autolaunch.cli.render_fleet import render_fleet

        terminal = Terminal.of(sys.stdout)
        show_all, verbose = bool(ctx.params["show_all"]), bool(ctx.params["verbose"])
        write(sys.stdout, render_fleet(planned, terminal, show_all=show_all, verbose=verbose), terminal)
    if not planned.feasible:
        raise click.exceptions.Exit(NoFeasiblePlan.exit_code)
