"""The routes of the control API: one table, from which requests are told apart and the OpenAPI document is made."""

from __future__ import annotations

import difflib
import re
import urllib.parse
from typing import Literal, TypeVar

import msgspec

from autolaunch.daemon.control.contract import (
    VERBS,
    DeploymentDocument,
    DeploymentsDocument,
    EventDocument,
    EventsQuery,
    LogsQuery,
    NoQuery,
    ReloadDocument,
    StatusDocument,
)
from selector.contract import LaunchPlan
from selector.values import Value

T = TypeVar("T")

TEXT, LINES, JSON = "text/plain", "application/x-ndjson", "application/json"
NAME = "name"
#: Served names are shorter; whatever is longer is nobody's.
NAME_CHARACTERS = 200
_WHOLE = re.compile(r"0|[1-9][0-9]{0,18}")

Errors = tuple[tuple[int, str], ...]
#: What any request may get instead of its answer.
ANY: Errors = (
    (400, "The request is not one of this API: a parameter is wrong, or there is a body."),
    (403, "Not from this user, from a page in a browser, or under a name that is not this socket's."),
    (413, "The body is too long, and none is taken."),
)
NO_NAME: Errors = ((404, "There is no such deployment."),)
NO_PLAN: Errors = ((404, "There is no such deployment, or no plan of it was made yet."),)
NO_ROOM: Errors = ((503, "Too many streams are being followed."),)
NO_DEPLOY: Errors = ((409, "It cannot be: a key is wrong, the name is taken, or this is a launch in the foreground."),)
NO_FILE: Errors = ((409, "A launch in the foreground has no configuration."),)


class Route(Value, frozen=True, kw_only=True):
    """One operation. ``path`` has ``{name}`` and ``{verb}`` where anything stands; ``answer`` is a document's type.

    ``media`` is what it is sent as; of lines, ``answer`` is one line. ``body``: a JSON object is sent to it.
    """

    operation: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    answer: type[object]
    media: str = JSON
    query: type[Value] = NoQuery
    body: bool = False
    errors: Errors = ()


ROUTES: tuple[Route, ...] = (
    Route(
        operation="status",
        method="GET",
        path="/v1/status",
        summary="The daemon, or the launch in the foreground, itself.",
        answer=StatusDocument,
    ),
    Route(
        operation="deployments",
        method="GET",
        path="/v1/deployments",
        summary="All deployments, and where each of their replicas is.",
        answer=DeploymentsDocument,
    ),
    Route(
        operation="deploy",
        method="POST",
        path="/v1/deployments",
        summary="Add a deployment, as a table [[deployments]] of the configuration has it; the daemon keeps it.",
        answer=DeploymentDocument,
        body=True,
        errors=NO_DEPLOY,
    ),
    Route(
        operation="undeploy",
        method="POST",
        path="/v1/deployments/{name}/undeploy",
        summary="End a deployment that was added, and forget it; the answer is what it was.",
        answer=DeploymentDocument,
        errors=(*NO_NAME, *NO_DEPLOY),
    ),
    Route(
        operation="deployment",
        method="GET",
        path="/v1/deployments/{name}",
        summary="One deployment.",
        answer=DeploymentDocument,
        errors=NO_NAME,
    ),
    Route(
        operation="plan",
        method="GET",
        path="/v1/deployments/{name}/plan",
        summary="The plan that it runs by, whole: candidates, refusals, the machine.",
        answer=LaunchPlan,
        errors=NO_PLAN,
    ),
    Route(
        operation="logs",
        method="GET",
        path="/v1/deployments/{name}/logs",
        summary="What its engine printed; with follow=1 without end, over restarts too.",
        answer=str,
        media=TEXT,
        query=LogsQuery,
        errors=(*NO_NAME, *NO_ROOM),
    ),
    *(
        Route(
            operation=verb,
            method="POST",
            path=f"/v1/deployments/{{name}}/{verb}",
            summary=summary,
            answer=DeploymentDocument,
            errors=NO_NAME,
        )
        for verb, summary in zip(
            VERBS,
            (
                "Have it run; what sleeps is woken. It begins at once, and the answer does not wait for it.",
                "End it, and keep it stopped until somebody wants it again; a launch in the foreground ends with it.",
                "End it and plan anew.",
                "Forget its failures, and what was learned of them on this machine, and try again.",
            ),
            strict=True,
        )
    ),
    Route(
        operation="reload",
        method="POST",
        path="/v1/reload",
        summary="Read the configuration again; where it is wrong, the old one holds.",
        answer=ReloadDocument,
        errors=NO_FILE,
    ),
    Route(
        operation="events",
        method="GET",
        path="/v1/events",
        summary="What has happened lately, a document a line; with follow=1 without end.",
        answer=EventDocument,
        media=LINES,
        query=EventsQuery,
        errors=NO_ROOM,
    ),
    Route(
        operation="openapi",
        method="GET",
        path="/v1/openapi.json",
        summary="This document.",
        answer=dict,
    ),
)


class Refused(Exception):
    """A request that gets an error: its status, and what is told. ``allow`` are the methods that there are."""

    def __init__(
        self, status: int, code: str, message: str, hint: str | None = None, allow: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.allow = allow


class Asked(Value, frozen=True, kw_only=True):
    """A request that is one: its route, the deployment's name, and its parameters as the route has them."""

    route: Route
    name: str | None
    query: Value


def asked(method: str, target: str) -> Asked:
    """What is asked for by a request's method and target, as they stand in its first line.

    Raises:
        Refused: nothing that there is.
    """
    path, _, query = target.partition("?")
    parts = path.split("/")
    fitting = [route for route in ROUTES if _fits(route, parts)]
    if not fitting:
        raise Refused(404, "not_found", "there is no such page", "GET /v1/openapi.json tells what there is")
    route = next((each for each in fitting if each.method == method), None)
    if route is None:
        allowed = tuple(each.method for each in fitting)
        raise Refused(405, "method", f"it takes {' and '.join(allowed)}", allow=allowed)
    name = None
    if "{name}" in route.path:
        name = _decoded(parts[route.path.split("/").index("{name}")])
        if not 0 < len(name) <= NAME_CHARACTERS:
            raise Refused(404, "deployment.unknown", "there is no deployment of such a name")
    return Asked(route=route, name=name, query=_query(query, route.query))


def unknown(name: str, names: tuple[str, ...]) -> Refused:
    """There is no deployment ``name``; these are there."""
    near = difflib.get_close_matches(name, names, n=1)
    there = f"there are {', '.join(names)}" if names else "there are none"
    hint = f"did you mean {near[0]}?" if near else there
    shown = name if name.isprintable() else repr(name)
    return Refused(404, "deployment.unknown", f"there is no deployment {shown}", hint)


def _fits(route: Route, parts: list[str]) -> bool:
    pattern = route.path.split("/")
    return len(pattern) == len(parts) and all(
        each in ("{name}", part) for each, part in zip(pattern, parts, strict=True)
    )


def _decoded(text: str) -> str:
    """Without the escapes of a URL; a name may have a slash in it (``%2F``)."""
    try:
        return urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise Refused(400, "request", "the path is no text in UTF-8") from error


def object_of(body: bytes) -> dict[str, object]:
    """A body as the JSON object that it has to be."""
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "body", f"the body is no JSON object: {str(error)[:200]}") from error


def _query(text: str, kind: type[T]) -> T:
    try:
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True, max_num_fields=16, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise Refused(400, "request", "the parameters cannot be read") from error
    if len({name for name, _ in pairs}) != len(pairs):
        raise Refused(400, "request", "a parameter is given twice")
    # All that there are are whole numbers.
    values = {name: int(value) if _WHOLE.fullmatch(value) else value for name, value in pairs}
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise Refused(400, "request", str(error)) from error
