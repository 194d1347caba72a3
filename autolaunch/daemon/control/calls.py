"""What can be asked of a daemon, as values: what to send, and what the answer is. No input or output is here."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import PurePath
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from autolaunch.daemon.control.contract import (
    DeploymentDocument,
    DeploymentsDocument,
    ErrorDocument,
    EventDocument,
    ReloadDocument,
    StatusDocument,
    Verb,
)
from selector.contract import LaunchPlan
from selector.errors import (
    AutolaunchError,
    NotAllowed,
    NotRunning,
    NotServing,
    NotSteered,
    UnknownDeployment,
    UsageError,
)
from selector.values import readable

T = TypeVar("T")

#: The longest answer that is read; a plan with its machine is a hundredth of it.
ANSWER_BYTES = 64 * 2**20
#: The longest line of a stream.
LINE_BYTES = 2**20

NOBODY_HINT = (
    "sudo systemctl start autolaunch starts the service, autolaunch MODEL a launch; AUTOLAUNCH_SOCKET names one"
)


class Call(NamedTuple, Generic[T]):
    """``answer`` is the document's type; of a stream, that of a line."""

    method: Literal["GET", "POST"]
    target: str
    answer: type[T]
    body: bytes | None = None


def status() -> Call[StatusDocument]:
    return Call("GET", "/v1/status", StatusDocument)


def deployments() -> Call[DeploymentsDocument]:
    return Call("GET", "/v1/deployments", DeploymentsDocument)


def deployment(name: str) -> Call[DeploymentDocument]:
    return Call("GET", _of(name), DeploymentDocument)


def plan(name: str) -> Call[LaunchPlan]:
    return Call("GET", f"{_of(name)}/plan", LaunchPlan)


def logs(name: str, *, lines: int, follow: bool) -> Call[str]:
    return Call("GET", f"{_of(name)}/logs?lines={lines}&follow={int(follow)}", str)


def events(*, since: int, follow: bool) -> Call[EventDocument]:
    return Call("GET", f"/v1/events?since={since}&follow={int(follow)}", EventDocument)


def act(name: str, verb: Verb) -> Call[DeploymentDocument]:
    return Call("POST", f"{_of(name)}/{verb}", DeploymentDocument)


def deploy(model: str | LaunchPlan, name: str | None, options: Mapping[str, object]) -> Call[DeploymentDocument]:
    """A deployment as the configuration has it; of a plan with what was asked for and pinned then.

    Raises:
        UsageError: an option is of no type that JSON has.
    """
    entry: dict[str, object] = {"model": model}
    if isinstance(model, LaunchPlan):
        asked = model.request
        wanted = ("objective", "context_tokens", "concurrency", "input_tokens", "output_tokens")
        entry = {"model": model.model, **{each: getattr(asked, each) for each in wanted}, "pinned": asked.pinned}
    entry |= options
    if name is not None:
        entry["name"] = name
    given = {key: value for key, value in entry.items() if value is not None}
    try:
        body = msgspec.json.encode(given, enc_hook=_written)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the options of a deployment are plain values: {error}") from error
    return Call("POST", "/v1/deployments", DeploymentDocument, body)


def _written(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} is none")


def undeploy(name: str) -> Call[DeploymentDocument]:
    return Call("POST", f"{_of(name)}/undeploy", DeploymentDocument)


def reload() -> Call[ReloadDocument]:
    return Call("POST", "/v1/reload", ReloadDocument)


def _of(name: str) -> str:
    return f"/v1/deployments/{urllib.parse.quote(name, safe='')}"


def answered(call: Call[T], code: int, body: bytes) -> T:
    """The document that came.

    Raises:
        AutolaunchError: an error came, or what is no answer to this.
    """
    if code != 200:
        raise refusal(code, body)
    return _decoded(body, call.answer)


def line_of(call: Call[T], line: bytes) -> T:
    """One line of a stream, without its end.

    Raises:
        NotSteered: it is none.
    """
    if call.answer is str:
        return msgspec.convert(line.decode(errors="replace"), readable(call.answer))
    return _decoded(line, call.answer)


def refusal(code: int, body: bytes) -> AutolaunchError:
    """The error that an answer of another status than 200 is."""
    try:
        told = msgspec.json.decode(body, type=readable(ErrorDocument)).error
    except msgspec.MsgspecError:
        return NotSteered(f"what answered is not autolaunch: status {code}")
    kind: type[AutolaunchError] = NotSteered
    if told.code == "deployment.unknown":
        kind = UnknownDeployment
    elif told.code == "forbidden":
        kind = NotAllowed
    elif code in (400, 409):
        kind = UsageError
    elif told.code == "plan.none":
        kind = NotServing
    return kind(told.message, hint=told.hint or (allowed_hint() if kind is NotAllowed else None))


def unreachable(place: str, error: OSError) -> NotSteered:
    """What it means that the socket at ``place`` could not be used."""
    if isinstance(error, PermissionError):
        return NotAllowed(f"{place} is not for this user", hint=allowed_hint())
    if isinstance(error, TimeoutError):
        return NotSteered(f"nothing answers at {place}, though something listens there")
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return NotSteered(f"{place} answers nobody now: too many ask it, or it is ending")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return NotRunning(f"nothing listens at {place}", hint=NOBODY_HINT)
    return NotRunning(f"{place} could not be asked: {error.strerror or error}", hint=NOBODY_HINT)


def allowed_hint() -> str:
    return "sudo may; so may members of the group autolaunch: sudo usermod -aG autolaunch $USER, then log in anew"


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=readable(kind))
    except msgspec.MsgspecError as error:
        raise NotSteered(
            f"what answered is not understood: {error}", hint="is the daemon of another release than this program?"
        ) from error
