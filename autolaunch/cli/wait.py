"""``autolaunch wait [NAME]``: returns when it serves, or says why it will not."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from autolaunch.cli.engines import show
from autolaunch.cli.options import HOW, Command, option
from autolaunch.cli.progress import Progress
from autolaunch.cli.reach import holder_of, shown, something
from autolaunch.cli.render_kept import now_utc, render_table, until
from autolaunch.cli.terminal import Terminal
from autolaunch.daemon.control.contract import SERVING, DeploymentDocument, DeploymentsDocument

if TYPE_CHECKING:
    _Float = click.ParamType[float]
else:
    _Float = click.ParamType

#: What the progress of a launch calls the phases.
_STAGES = {"planned": "waiting", "preparing": "weights", "loading": "loading", "backing off": "waiting"}


class Seconds(_Float):
    """A time above 0: ``90``, ``90s``, ``30m`` or ``2h``."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        factor = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:], 0.0)
        try:
            seconds = float(text[:-1] if factor else text) * (factor or 1.0)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= 1e7:  # NaN is in no range
            self.fail(f"{value!r} is no time such as 90, 30m or 2h.", param, ctx)
        return seconds


class _Step(NamedTuple):
    stage: str
    message: str
    fraction: float | None


@click.command(
    cls=Command,
    examples="""\
  sudo systemctl start autolaunch && autolaunch wait --timeout 30m
  autolaunch restart glm-4.6 && autolaunch wait glm-4.6 && echo it serves
""",
)
@click.argument("name", required=False)
@option(HOW, "--timeout", "timeout_seconds", type=Seconds(), metavar="TIME", help="No longer than 90, 30m or 2h.")
@shown()
def wait(name: str | None, timeout_seconds: float | None, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """Wait until deployment NAME serves; without a NAME until all do.

    Exit code 0 when it serves, 5 when it was given up on, is stopped or asleep (with the reason), or nothing runs,
    124 when it took longer than --timeout.
    """
    reached = something()
    client = (reached.reached[0] if name is None else holder_of(name, reached)).client
    with Progress(sys.stderr, Terminal.of(sys.stderr)) as progress:
        last = ""

        def look(found: tuple[DeploymentDocument, ...]) -> None:
            nonlocal last
            step = _step(found)
            if step is None:
                return
            if last == "loading" and step.stage == "waiting":  # else it would be shown as one that came to its end
                progress.event(step._replace(stage="stopping"))
            progress.event(step)
            last = step.stage

        found = client.wait(name, timeout_seconds=timeout_seconds, on_look=look)
    document = DeploymentsDocument(deployments=found)
    show(document, as_json, lambda terminal: render_table(found, terminal, now_utc()))


def _step(found: tuple[DeploymentDocument, ...]) -> _Step | None:
    """What is waited for now: the first that does not serve yet."""
    left = next((each for each in found if each.phase not in SERVING), None)
    if left is None:
        return None
    one = next(each for each in left.replicas if each.phase == left.phase)
    stage = _STAGES.get(left.phase)
    if stage is None:
        return None
    message = f"{left.name}: {left.phase}"
    if one.load is not None:
        stage = one.load.stage if one.load.stage == "environment" else stage
        message = f"{left.name}: {one.load.message}"
    elif one.fault is not None:
        again = "" if one.next_try_at is None else f"again {until(one.next_try_at, now_utc())}: "
        message = f"{left.name}: {again}{one.fault.message}"
    return _Step(stage, message, None if one.load is None else one.load.fraction)
