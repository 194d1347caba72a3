"""``autolaunch stop``, ``restart`` and ``retry``: what somebody wants of deployments that are kept up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from autolaunch.cli.engines import show
from autolaunch.cli.options import WANTED, Command, option
from autolaunch.cli.reach import Reached, holder_of, shown, something, tell_silent
from autolaunch.cli.terminal import Terminal, clean
from autolaunch.daemon.control.contract import BriefDocument, DeploymentDocument, Phase, Verb
from selector.errors import UsageError
from selector.values import Value

_Function = TypeVar("_Function", bound=Callable[..., Any])
#: What ``retry --all`` is for.
_TRIED: tuple[Phase, ...] = ("failed", "backing off")


class SteeredDocument(Value, frozen=True, kw_only=True):
    """What was asked for, and the state of each right after: what takes time is under way."""

    schema: int = 1
    verb: str
    deployments: tuple[BriefDocument, ...]


def _whom(function: _Function) -> _Function:
    everyone = option(WANTED, "--all", "everyone", is_flag=True, help="Every deployment that is kept up here.")
    return click.argument("names", nargs=-1)(everyone(shown()(function)))


@click.command(cls=Command, examples="  autolaunch stop glm-4.6\n  autolaunch stop --all\n")
@_whom
def stop(names: tuple[str, ...], everyone: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """End deployments, and keep them so until `autolaunch restart`.

    Over restarts of the daemon too. A launch in the foreground ends with its deployment. It returns at once:
    `autolaunch ps` shows the end.
    """
    _steer("stop", names, everyone, as_json=as_json)


@click.command(cls=Command, examples="  autolaunch restart glm-4.6 && autolaunch wait glm-4.6\n")
@_whom
def restart(names: tuple[str, ...], everyone: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """End deployments, plan them anew and start them; those that are stopped, too."""
    _steer("restart", names, everyone, as_json=as_json)


@click.command(cls=Command, examples="  autolaunch retry glm-4.6 && autolaunch wait glm-4.6\n")
@_whom
def retry(names: tuple[str, ...], everyone: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """Try again what was given up on, or waits for its next try.

    With --all what is stopped, sleeps or serves is left alone.
    What failed is forgotten, and what was learned of that on this machine. One that serves goes on serving.
    """
    _steer("retry", names, everyone, as_json=as_json)


def _steer(verb: Verb, names: tuple[str, ...], everyone: bool, *, as_json: bool) -> None:
    if everyone == bool(names):
        raise UsageError(
            "names and --all exclude each other" if everyone else f"{verb} what?",
            hint=f"autolaunch {verb} NAME… or --all; autolaunch ps lists the names",
        )
    reached = something()
    # All are found before the first is touched.
    whom: list[tuple[Reached, str]] = [(holder_of(name, reached), name) for name in dict.fromkeys(names)]
    if everyone:
        of = _failing if verb == "retry" else _whole
        whom = [(each, name) for each in reached.reached for one in each.deployments for name in of(one)]
        tell_silent(reached)
    done = []
    for each, name in whom:
        after = each.client.act(name, verb)
        done.append(BriefDocument(name=name, phase=after.phase))
    document = SteeredDocument(verb=verb, deployments=tuple(done))
    show(document, as_json, lambda terminal: _render(document, terminal))


def _whole(deployment: DeploymentDocument) -> tuple[str, ...]:
    return (deployment.name,)


def _failing(deployment: DeploymentDocument) -> tuple[str, ...]:
    """What is to be tried again: the deployment, or those of its replicas that are."""
    units = tuple(each.unit for each in deployment.replicas if each.phase in _TRIED and each.wanted == "running")
    # The first replica has the name of the deployment: asking for it asks for all of them.
    return (deployment.name,) if len(units) == len(deployment.replicas) else units


def _render(document: SteeredDocument, terminal: Terminal) -> str:  # noqa: ARG001 - one line each fits any
    if not document.deployments:
        return "nothing has failed" if document.verb == "retry" else "nothing is kept up here"
    return "\n".join(
        f"{clean(each.name)}: {document.verb} asked for; {each.phase} now" for each in document.deployments
    )
