"""Who is asked by the commands that steer: daemons and launches that answer this user, and who has which deployment."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from autolaunch.cli.options import SHOWN, option
from autolaunch.client import Client, clients
from autolaunch.daemon.control.calls import NOBODY_HINT
from autolaunch.daemon.control.contract import DeploymentDocument, StatusDocument
from selector.errors import NotRunning, UnknownDeployment, UsageError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Reached(NamedTuple):
    """A daemon or a launch, and what it keeps up."""

    client: Client
    status: StatusDocument
    deployments: tuple[DeploymentDocument, ...]


def everything() -> tuple[Reached, ...]:
    """All that answer; none where nothing runs.

    Raises:
        NotAllowed: there is one, and not for this user.
    """
    found = []
    for client in clients():
        try:
            found.append(Reached(client, client.status(), client.deployments()))
        except NotRunning:  # it ended just now
            continue
    return tuple(found)


def something() -> tuple[Reached, ...]:
    """As :func:`everything`, where there has to be one.

    Raises:
        NotSteered: there is none for this user.
    """
    found = everything()
    if not found:
        raise NotRunning("no daemon of autolaunch runs here, and no launch of yours", hint=NOBODY_HINT)
    return found


def holder_of(name: str, reached: tuple[Reached, ...]) -> Reached:
    """Who has deployment (or replica) ``name``.

    Raises:
        UsageError: nobody, or several.
    """
    holders = [each for each in reached if any(_is(name, one) for one in each.deployments)]
    if not holders:
        names = [one.name for each in reached for one in each.deployments]
        near = difflib.get_close_matches(name, names, n=1)
        there = f"there are {', '.join(names)}" if names else "nothing is kept up here"
        raise UnknownDeployment(
            f"there is no deployment {name!r}", hint=f"did you mean {near[0]}?" if near else f"{there}: autolaunch ps"
        )
    if len(holders) > 1:
        where = ", ".join(f"process {each.status.pid} ({each.client.path})" for each in holders)
        raise UsageError(f"{name} is kept up by {where}", hint="AUTOLAUNCH_SOCKET names the one that is meant")
    return holders[0]


def shown(schema: str = "JSON on standard output (schema 1).") -> Callable[[_Function], _Function]:
    """What is printed."""

    def apply(function: _Function) -> _Function:
        verbose = option(SHOWN, "--verbose", is_flag=True, help="Say more; on a fault of ours, where it happened.")
        return option(SHOWN, "--json", "as_json", is_flag=True, help=schema)(verbose(function))

    return apply


def _is(name: str, deployment: DeploymentDocument) -> bool:
    return name == deployment.name or any(name == each.unit for each in deployment.replicas)
