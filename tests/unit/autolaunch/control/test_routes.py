"""What is a request of the control API, and what is said of one that is none."""

from __future__ import annotations

import json
import urllib.parse

import msgspec
import pytest

from autolaunch.daemon.control import calls, openapi
from autolaunch.daemon.control.contract import (
    VERBS,
    EventsQuery,
    LogsQuery,
    NoQuery,
    ReloadDocument,
    StatusDocument,
)
from autolaunch.daemon.control.routes import ROUTES, Refused, asked, unknown
from selector.errors import AutolaunchError, NotAllowed, NotSteered, UnknownDeployment, UsageError


@pytest.mark.parametrize("name", ["glm-4.6", "zai-org/GLM-4.6", "glm-4.6#2", "ü", "a b", "%", "..", "a?b"])
def test_every_call_of_the_client_is_a_route_whatever_the_name(name: str) -> None:
    targets: tuple[tuple[str, str, str], ...] = (
        (*calls.deployment(name)[:2], "deployment"),
        (*calls.plan(name)[:2], "plan"),
        (*calls.logs(name, lines=5, follow=True)[:2], "logs"),
        *((*calls.act(name, verb)[:2], verb) for verb in VERBS),
    )
    for method, target, operation in targets:
        found = asked(method, target)
        assert (found.route.operation, found.name) == (operation, name)
    whole = (calls.status()[:2], calls.deployments()[:2], calls.reload()[:2])
    assert [asked(*each).route.operation for each in whole] == ["status", "deployments", "reload"]


def test_parameters_are_whole_numbers_within_bounds() -> None:
    assert asked("GET", "/v1/deployments/a/logs").query == LogsQuery()
    assert asked("GET", "/v1/deployments/a/logs?follow=1&lines=0").query == LogsQuery(lines=0, follow=1)
    assert asked("GET", "/v1/events?since=7").query == EventsQuery(since=7)


@pytest.mark.parametrize(
    "query",
    [
        *("lines=-1", "lines=10001", "lines=", "lines=x", "lines=1.5", "lines=01", "lines=%31%30%30%30%30%30"),
        *("follow=2", "follow=true", "lines=1&lines=2", "other=1", "lines=1;follow=1", "lines=%ff", "&" * 100),
        "lines=" + "9" * 5000,
    ],
)
def test_a_parameter_that_is_none_is_refused_with_400(query: str) -> None:
    with pytest.raises(Refused) as refused:
        asked("GET", f"/v1/deployments/a/logs?{query}")
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "*", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/status/", 404),
        ("GET", "//v1/status", 404),
        ("GET", "/v1/deployments/", 404),
        ("GET", "/v1/deployments/a/b/c", 404),
        ("GET", f"/v1/deployments/{'a' * 201}", 404),
        ("GET", "/v1/deployments/%ff", 400),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/reload", 405),
        ("DELETE", "/v1/deployments/a", 405),
        ("HEAD", "/v1/status", 405),
        ("OPTIONS", "/v1/events", 405),
    ],
)
def test_what_is_no_route_is_refused(method: str, target: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        asked(method, target)
    assert refused.value.status == status
    assert (status == 405) == bool(refused.value.allow)


def test_an_unknown_name_gets_the_nearest() -> None:
    assert unknown("glm-46", ("glm-4.6", "other")).hint == "did you mean glm-4.6?"
    assert unknown("x", ("glm-4.6",)).hint == "there are glm-4.6"
    assert unknown("x", ()).hint == "there are none"
    assert unknown("\x1b[31m", ()).message.isprintable()


# --- the document -------------------------------------------------------------------------------------


def test_the_document_describes_every_route_and_all_that_it_refers_to() -> None:
    document = json.loads(openapi.document())
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, found in document["paths"].items() for method in found}
    assert described == {(route.method, route.path) for route in ROUTES}
    operations = [one["operationId"] for found in document["paths"].values() for one in found.values()]
    assert sorted(operations) == sorted(route.operation for route in ROUTES)
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for part in text.split('"$ref": "')[1:]:
        assert part.split('"')[0].removeprefix("#/components/schemas/") in schemas


def test_parameters_are_described_with_their_bounds_and_each_answer_with_its_type() -> None:
    document = json.loads(openapi.document())
    logs = document["paths"]["/v1/deployments/{name}/logs"]["get"]
    of = {each["name"]: each for each in logs["parameters"]}
    assert of["lines"]["schema"] == {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 100}
    assert of["follow"]["schema"] == {"enum": [0, 1], "default": 0}
    assert of["name"]["required"] is True
    assert set(logs["responses"]) == {"200", "400", "403", "404", "413", "503", "default"}
    assert list(logs["responses"]["200"]["content"]) == ["text/plain"]
    status = document["paths"]["/v1/status"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert status == {"$ref": "#/components/schemas/StatusDocument"}


def test_the_document_says_nothing_of_this_machine() -> None:
    assert openapi.document() == openapi.document()
    assert b"/home" not in openapi.document()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_every_route_has_a_sentence_and_known_parameters(route: object) -> None:
    assert route in ROUTES
    found = next(each for each in ROUTES if each is route)
    assert found.summary.endswith(".")
    assert found.query in (NoQuery, LogsQuery, EventsQuery)


# --- answers ------------------------------------------------------------------------------------------


def refused(status: int, code: str, message: str = "m", hint: str | None = None) -> AutolaunchError:
    body = msgspec.json.encode({"schema": 1, "error": {"code": code, "message": message, "hint": hint}, "new": 1})
    return calls.refusal(status, body)


def test_an_error_of_the_api_is_the_error_of_the_tree_that_it_is() -> None:
    error = refused(404, "deployment.unknown", "there is no deployment x", "did you mean y?")
    assert isinstance(error, UnknownDeployment)
    assert (error.exit_code, error.message, error.hint) == (2, "there is no deployment x", "did you mean y?")
    assert isinstance(refused(403, "forbidden"), NotAllowed)
    assert "autolaunch" in str(refused(403, "forbidden").hint)
    assert isinstance(refused(400, "request"), UsageError)
    assert isinstance(refused(409, "reload.launch"), UsageError)
    assert type(refused(500, "internal")) is NotSteered
    assert isinstance(calls.refusal(502, b"<html>"), NotSteered)


def test_a_later_releases_fields_are_passed_over_and_rubbish_is_said() -> None:
    body = b'{"schema": 1, "holds": true, "wrong": null, "sentences": ["new"]}'
    assert calls.answered(calls.reload(), 200, body) == ReloadDocument(holds=True)
    with pytest.raises(NotSteered, match="not understood"):
        calls.answered(calls.reload(), 200, b"[]")


def test_what_kept_a_socket_from_being_asked_is_said_with_the_way_out() -> None:
    told = calls.unreachable("/run/s", PermissionError(13, "denied"))
    assert isinstance(told, NotAllowed)
    assert "sudo" in str(told.hint)
    assert "group autolaunch" in str(told.hint)
    assert calls.unreachable("/run/s", FileNotFoundError(2, "no")).exit_code == 5
    assert calls.unreachable("/run/s", ConnectionRefusedError(111, "no")).code == "control.not_running"
    assert calls.unreachable("/run/s", TimeoutError()).code == "control"


def test_a_name_is_one_part_of_a_path() -> None:
    assert urllib.parse.unquote(calls.deployment("a/b").target.split("/")[3]) == "a/b"
    assert calls.status().answer is StatusDocument


def test_answers_may_have_further_fields_in_a_later_release_and_times_are_times() -> None:
    document = openapi.described()
    assert '"additionalProperties": false' not in json.dumps(document)
    assert document["components"]["schemas"]["StatusDocument"]["properties"]["started"]["format"] == "date-time"
