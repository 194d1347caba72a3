"""Who is asked by the commands that steer: daemons and launches that answer this user, and who has which deployment."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from autolaunch.cli.options import SHOWN, option
from autolaunch.cli.terminal import clean, write
from autolaunch.client import LOOK_TIMEOUT_SECONDS, Client, clients
from autolaunch.daemon.control.calls import NOBODY_HINT
from autolaunch.daemon.control.contract import DeploymentDocument, StatusDocument
from selector.errors import NotRunning, NotSteered, UnknownDeployment, UsageError

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: So many are asked at once.
ASKED_AT_ONCE = 16


class Reached(NamedTuple):
    """A daemon or a launch, and what it keeps up."""

    client: Client
    status: StatusDocument
    deployments: tuple[DeploymentDocument, ...]


class Silent(NamedTuple):
    """Somebody listens there, and this is what came of asking."""

    client: Client
    error: NotSteered


class Everyone(NamedTuple):
    """All that listen: those that answered, and those that did not."""

    reached: tuple[Reached, ...]
    silent: tuple[Silent, ...] = ()


def everything() -> Everyone:
    """All that listen; none where nothing runs. One that hangs holds up the others for 2 s at most.

    Raises:
        NotAllowed: all that there are are not for this user.
    """
    # Who is silent here may be silent for a moment: what is asked of a client later has the time that it needs.
    found = [Client(each.path, timeout_seconds=LOOK_TIMEOUT_SECONDS) for each in clients()]
    if not found:
        return Everyone(())
    with ThreadPoolExecutor(min(len(found), ASKED_AT_ONCE)) as pool:
        answers = tuple(pool.map(_asked, found))
    return Everyone(
        tuple(each for each in answers if isinstance(each, Reached)),
        tuple(each for each in answers if isinstance(each, Silent)),
    )


def _asked(client: Client) -> Reached | Silent | None:
    try:
        return Reached(Client(client.path), client.status(), client.deployments())
    except NotRunning:  # it ended just now
        return None
    except NotSteered as error:
        return Silent(client, error)


def something() -> Everyone:
    """As :func:`everything`, where there has to be one that answers.

    Raises:
        NotSteered: there is none for this user.
    """
    found = everything()
    if not found.reached:
        if found.silent:
            raise found.silent[0].error
        raise NotRunning("no daemon of autolaunch runs here, and no launch of yours", hint=NOBODY_HINT)
    return found


def tell_silent(everyone: Everyone) -> None:
    """Says on stderr who does not answer: what is done to all is not done to these."""
    for each in everyone.silent:
        write(sys.stderr, clean(f"autolaunch: {each.error.message}"))


def holder_of(name: str, everyone: Everyone) -> Reached:
    """Who has deployment (or replica) ``name``.

    Raises:
        UsageError: nobody, or several.
        NotSteered: nobody who answers, and there is one who does not.
    """
    reached = everyone.reached
    holders = [each for each in reached if any(_is(name, one) for one in each.deployments)]
    if not holders and everyone.silent:
        error = everyone.silent[0].error
        raise NotSteered(f"nobody who answers has {name!r}; {error.message}", hint=error.hint)
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
