"""Steering what is kept up, from Python: ``autolaunch.Client``.

    with autolaunch.Client() as client:
        client.wait("glm-4.6", timeout_seconds=1800)
        for line in client.logs("glm-4.6", follow=True):
            print(line)

It speaks to the daemon, or to a launch in the foreground, over its control socket. Every call has a connection of its
own, so one client may be used by several threads.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from autolaunch.daemon.control import calls
from autolaunch.daemon.control.calls import Call
from autolaunch.daemon.control.contract import (
    SERVING,
    SOME_LINES,
    DeploymentDocument,
    EventDocument,
    Phase,
    ReloadDocument,
    StatusDocument,
    Verb,
)
from autolaunch.daemon.control.listening import connected
from autolaunch.daemon.control.places import VARIABLE, Places, to_ask
from selector.contract import LaunchPlan
from selector.errors import AutolaunchError, NotRunning, NotServing, NotSteered, WaitTimedOut

T = TypeVar("T")

#: How long an answer may take. What takes long (loads, ends) is not waited for by the daemon either.
TIMEOUT_SECONDS = 30.0
#: How long one may take to answer where several are asked which of them is there.
LOOK_TIMEOUT_SECONDS = 2.0
#: How often :meth:`Client.wait` looks.
LOOK_SECONDS = 0.25
#: What serves, at the latest as soon as it is asked.
_READY: frozenset[Phase] = SERVING | {"asleep"}


class Client:
    """Asks one daemon, or one launch.

    Args:
        path: its socket. Without it: the one that ``AUTOLAUNCH_SOCKET`` names; else that of the user's daemon, of the
            service of the host, or of the only launch that this user has in the foreground, whichever answers first.
        timeout_seconds: how long an answer may take.

    Every method raises ``AutolaunchError``: ``NotRunning`` where nobody listens, ``NotAllowed`` where this user may not
    ask, ``UnknownDeployment`` for a name of nothing.
    """

    def __init__(self, path: Path | str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._path = None if path is None else Path(path)
        self._timeout_seconds = timeout_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held between calls; streams end with their iterators."""

    @property
    def path(self) -> Path:
        """The socket that is asked; it is looked for where none was given.

        Raises:
            NotSteered: there is none.
        """
        if self._path is None:
            self._path = _found()
        return self._path

    def status(self) -> StatusDocument:
        """The daemon, or the launch, itself."""
        return self._ask(calls.status())

    def deployments(self) -> tuple[DeploymentDocument, ...]:
        """All deployments."""
        return self._ask(calls.deployments()).deployments

    def deployment(self, name: str) -> DeploymentDocument:
        """One, with all of its replicas; of the name of a unit (``glm-4.6#2``) with that replica alone."""
        return self._ask(calls.deployment(name))

    def plan(self, name: str) -> LaunchPlan:
        """The plan that it runs by."""
        return self._ask(calls.plan(name))

    def logs(self, name: str, *, lines: int = SOME_LINES, follow: bool = False) -> Iterator[str]:
        """The last ``lines`` that its engine printed; with ``follow`` what comes, over restarts of the engine too."""
        return self._stream(calls.logs(name, lines=lines, follow=follow))

    def events(self, *, follow: bool = False, since: int = 0) -> Iterator[EventDocument]:
        """What has happened after event ``since``; with ``follow`` what comes."""
        return self._stream(calls.events(since=since, follow=follow))

    def deploy(self, model: str | LaunchPlan, *, name: str | None = None, **options: object) -> DeploymentDocument:
        """Adds a deployment to the daemon, which keeps it up from now on, over its own restarts too.

        It is kept beside the configuration, whose file is not touched; the answer does not wait for it (:meth:`wait`).

            client.deploy("glm-4.6", name="chat", objective="latency", pinned={"engine": "vllm"})
            client.wait("chat", timeout_seconds=1800)

        Args:
            model: a name, or a plan: its model and what was asked for and pinned then; the daemon plans it anew on
                what is free.
            name: the model's name in requests; by default the model's own.
            options: as a deployment has them in the configuration: ``objective``, ``context_tokens``, ``concurrency``,
                ``pinned``, ``idle_seconds``, ``model_path``, ``offline`` and the others.

        Raises:
            UsageError: an option that is none or cannot be, a name that is taken, or a launch in the foreground.
        """
        return self._ask(calls.deploy(model, name, options))

    def undeploy(self, name: str) -> DeploymentDocument:
        """Ends a deployment that :meth:`deploy` has added, and forgets it; as it was before.

        Raises:
            UsageError: it is one of the configuration: that file says what goes.
        """
        return self._ask(calls.undeploy(name))

    def start(self, name: str) -> DeploymentDocument:
        """Has it run; it is not waited for."""
        return self.act(name, "start")

    def stop(self, name: str) -> DeploymentDocument:
        """Ends it, and keeps it so until it is started; a launch in the foreground ends with it."""
        return self.act(name, "stop")

    def restart(self, name: str) -> DeploymentDocument:
        """Ends it and plans anew."""
        return self.act(name, "restart")

    def retry(self, name: str) -> DeploymentDocument:
        """Forgets its failures and tries again."""
        return self.act(name, "retry")

    def act(self, name: str, verb: Verb) -> DeploymentDocument:
        """One of the above, by its name."""
        return self._ask(calls.act(name, verb))

    def reload(self) -> ReloadDocument:
        """Has the daemon read its configuration again; a wrong one is told, and the old one holds."""
        return self._ask(calls.reload())

    def wait(
        self,
        name: str | None = None,
        *,
        phase: Phase = "ready",
        timeout_seconds: float | None = None,
        on_look: Callable[[tuple[DeploymentDocument, ...]], None] = lambda _: None,
    ) -> tuple[DeploymentDocument, ...]:
        """Waits until a deployment (``None``: every one) is in ``phase``, and gives them as they are then.

        One that serves but has left a probe unanswered counts as ready, and so does one that is asleep: it serves as
        soon as it is asked. ``on_look`` is called with all at every look.

        Raises:
            NotServing: it was given up on, or is stopped, and will not come to it by itself.
            WaitTimedOut: it took longer.
        """

        def look() -> tuple[DeploymentDocument, ...]:
            found = self.deployments() if name is None else (self.deployment(name),)
            on_look(found)
            return found

        return waited(look, phase=phase, timeout_seconds=timeout_seconds)

    # --- the one place of input and output --------------------------------------------------------------

    def _ask(self, call: Call[T]) -> T:
        connection = _Connection(self.path, self._timeout_seconds)
        try:
            response = connection.asked(call)
            body = response.read(calls.ANSWER_BYTES)
        except OSError as error:
            raise calls.unreachable(str(self.path), error) from error
        except http.client.HTTPException as error:
            raise _broke_off(self.path) from error
        finally:
            connection.close()
        return calls.answered(call, response.status, body)

    def _stream(self, call: Call[T]) -> Iterator[T]:
        connection = _Connection(self.path, self._timeout_seconds)
        try:
            response = connection.asked(call)
            if response.status != 200:
                raise calls.refusal(response.status, response.read(calls.ANSWER_BYTES))
            connection.wait_without_end()
            while line := _next_line(response, self.path):
                yield calls.line_of(call, line.rstrip(b"\n"))
        except OSError as error:
            raise calls.unreachable(str(self.path), error) from error
        except http.client.HTTPException as error:
            raise _broke_off(self.path) from error
        finally:
            connection.close()


def _next_line(response: http.client.HTTPResponse, path: Path) -> bytes:
    try:
        return response.readline(calls.LINE_BYTES)
    except ConnectionResetError as error:  # it was killed
        raise _broke_off(path) from error


class _Connection(http.client.HTTPConnection):
    """HTTP over the socket of a path."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("autolaunch", timeout=timeout_seconds)
        self._path, self._timeout_seconds = path, timeout_seconds

    def connect(self) -> None:
        self.sock = connected(self._path, self._timeout_seconds)

    def asked(self, call: Call[T]) -> http.client.HTTPResponse:
        headers = {} if call.body is None else {"Content-Type": "application/json"}
        self.request(call.method, call.target, call.body, headers)
        return self.getresponse()

    def wait_without_end(self) -> None:
        if self.sock is not None:
            self.sock.settimeout(None)


def waited(
    look: Callable[[], tuple[DeploymentDocument, ...]], *, phase: Phase = "ready", timeout_seconds: float | None = None
) -> tuple[DeploymentDocument, ...]:
    """As :meth:`Client.wait`, of all that ``look`` gives each time, whoever has them."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        found = look()
        left = missing(found, phase)
        if not left:
            return found
        pause_seconds = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
        if timeout_seconds is not None and pause_seconds <= 0:
            raise late(left, timeout_seconds)
        time.sleep(pause_seconds)  # of several processes none tells of the others'


def missing(found: tuple[DeploymentDocument, ...], phase: Phase) -> list[DeploymentDocument]:
    """Those that are not in ``phase`` yet.

    Raises:
        NotServing: one will not come to it by itself.
    """
    left = [each for each in found if not _is_in(each, phase)]
    for each in left:
        _refuse_what_rests(each, phase)
    return left


def late(left: list[DeploymentDocument], timeout_seconds: float) -> WaitTimedOut:
    """These did not come to it in time."""
    told = ", ".join(f"{each.name} is {each.phase}" for each in left)
    return WaitTimedOut(f"after {timeout_seconds:g} s: {told}", hint="autolaunch status NAME tells more")


def clients() -> tuple[Client, ...]:
    """One for each daemon and each launch that answers this user; daemons first.

    Raises:
        NotAllowed: nobody does, and there is one that does not answer this user.
        NotSteered: ``AUTOLAUNCH_SOCKET`` names one, and nobody answers there.
    """
    from autolaunch.home import home

    places = to_ask(os.environ, home())
    return tuple(Client(path) for path in _answering(places, named=bool(os.environ.get(VARIABLE))))


def _found() -> Path:
    from autolaunch.home import home

    places = to_ask(os.environ, home())
    if len(places.daemons) == 1 and not places.launches:
        return places.daemons[0]  # whatever is wrong with it is best said of it
    answering = _answering(places)
    if not answering:
        raise NotRunning("no daemon of autolaunch runs here, and no launch of yours", hint=calls.NOBODY_HINT)
    daemons = [path for path in answering if path in places.daemons]
    if not daemons and len(answering) > 1:
        raise NotSteered(
            f"{len(answering)} launches run here, and no daemon: which of them is meant?",
            hint=f"AUTOLAUNCH_SOCKET names one: {', '.join(map(str, answering))}",
        )
    return (daemons or answering)[0]


def _answering(places: Places, *, named: bool = False) -> list[Path]:
    """Those that somebody listens on; one that is ``named`` has to be one of them."""
    found, refused = [], None
    for path in (*places.daemons, *places.launches):
        try:
            connected(path, LOOK_TIMEOUT_SECONDS).close()
        except PermissionError as error:
            refused = calls.unreachable(str(path), error)
        except TimeoutError:  # it is there, and has no time
            found.append(path)
        except OSError as error:
            if named:
                refused = calls.unreachable(str(path), error)
        else:
            found.append(path)
    if not found and refused is not None:
        raise refused
    return found


def _is_in(deployment: DeploymentDocument, phase: Phase) -> bool:
    return deployment.phase in _READY if phase == "ready" else deployment.phase == phase


def _refuse_what_rests(deployment: DeploymentDocument, phase: Phase) -> None:
    fault = next((each.fault for each in deployment.replicas if each.fault is not None), None)
    if deployment.phase == "failed":
        message = "it was given up on" if fault is None else fault.message
        hint = None if fault is None else fault.hint
        tried = f"autolaunch retry {deployment.name} tries it again"
        raise NotServing(f"{deployment.name}: {message}", hint=f"{hint}; {tried}" if hint else tried)
    if phase == "ready" and deployment.phase == "stopped":
        hint = f"autolaunch restart {deployment.name} starts it"
        raise NotServing(f"{deployment.name}: it is stopped", hint=hint)


def _broke_off(path: Path) -> AutolaunchError:
    return NotSteered(f"the answer broke off: what listened at {path} has ended", hint=None)
