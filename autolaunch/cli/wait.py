"""``autolaunch wait [NAME]``: returns when it serves, or says why it will not."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from autolaunch.cli.engines import show
from autolaunch.cli.options import HOW, Command, option
from autolaunch.cli.progress import Progress
from autolaunch.cli.reach import Reached, holder_of, shown, something
from autolaunch.cli.render_kept import now_utc, render_table, until
from autolaunch.cli.terminal import Terminal
from autolaunch.client import waited
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
    """Wait until deployment NAME serves; without a NAME until all do, of the daemon and of every launch.

    One that is asleep counts: it serves as soon as it is asked. Exit code 0 when it serves, 5 when it was given up on
    or is stopped (with the reason), or nothing runs, or one that runs does not answer,
    124 when it took longer than --timeout.
    """
    reached = something()
    whom = reached.reached if name is None else (holder_of(name, reached),)
    if name is None and reached.silent:
        raise reached.silent[0].error  # nobody can say whether all serve
    with Progress(sys.stderr, Terminal.of(sys.stderr)) as progress:
        last = ""

        def look() -> tuple[DeploymentDocument, ...]:
            nonlocal last
            found = _looked(whom, name)
            step = _step(found)
            if step is None:
                return found
            if last == "loading" and step.stage == "waiting":  # else it would be shown as one that came to its end
                progress.event(step._replace(stage="stopping"))
            progress.event(step)
            last = step.stage
            return found

        found = waited(look, timeout_seconds=timeout_seconds)
    document = DeploymentsDocument(deployments=found)
    show(document, as_json, lambda terminal: render_table(found, terminal, now_utc()))


def _looked(whom: tuple[Reached, ...], name: str | None) -> tuple[DeploymentDocument, ...]:
    """What is waited for, as it is now."""
    if name is not None:
        return tuple(each.client.deployment(name) for each in whom)
    return tuple(one for each in whom for one in each.client.deployments())


def _step(found: tuple[DeploymentDocument, ...]) -> _Step | None:
    """What is waited for now: the first that does not serve yet."""
    left = next((each for each in found if each.phase not in SERVING and each.phase != "asleep"), None)
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
