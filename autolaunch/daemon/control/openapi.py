"""The OpenAPI document of the control API, made from the table of routes and the types of the contract."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from autolaunch import __version__
from autolaunch.daemon.control.contract import ErrorDocument
from autolaunch.daemon.control.routes import ANY, JSON, LINES, NAME_CHARACTERS, ROUTES, TEXT, Route

_REFERENCE = "#/components/schemas/{name}"
#: What is no type of the contract.
_PLAIN: dict[type[object], dict[str, Any]] = {str: {"type": "string"}, dict: {"type": "object"}}
#: A deployment is held to the rules of the configuration, which tells of each key what is wrong with it.
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["model"],
                "properties": {"model": {"type": "string"}, "name": {"type": "string"}},
                "description": "A table [[deployments]] of the configuration, as JSON.",
            }
        }
    },
}


@lru_cache(maxsize=1)
def document() -> bytes:
    """The document as JSON: always the same of one release."""
    return msgspec.json.format(msgspec.json.encode(described()), indent=1)


def described() -> dict[str, Any]:
    """OpenAPI 3.1: paths in the order of the table, schemas by name."""
    answers = [route.answer for route in ROUTES if route.answer not in _PLAIN]
    queries = list(dict.fromkeys(route.query for route in ROUTES))
    _, schemas = msgspec.json.schema_components([ErrorDocument, *answers], ref_template=_REFERENCE)
    _, asked = msgspec.json.schema_components(queries, ref_template=_REFERENCE)
    schemas = {name: _open(schema) for name, schema in schemas.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, asked[route.query.__name__])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "autolaunch control",
            "version": __version__,
            "description": "How a running daemon is steered, over its UNIX socket. Schema 1 of every document; "
            "a later release may add fields to it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "over the UNIX socket of the daemon"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _open(schema: Any) -> Any:
    """``schema`` of an answer, in which a later release may have further fields."""
    if isinstance(schema, dict):
        return {
            name: _open(value)
            for name, value in schema.items()
            if not (name == "additionalProperties" and value is False)
        }
    return [_open(each) for each in schema] if isinstance(schema, list) else schema


def _operation(route: Route, query: dict[str, Any]) -> dict[str, Any]:
    errors = dict((*ANY, *route.errors))
    responses: dict[str, Any] = {"200": {"description": "As asked.", "content": {route.media: _content(route)}}}
    error = {JSON: {"schema": {"$ref": _REFERENCE.format(name=ErrorDocument.__name__)}}}
    for status in sorted(errors):
        responses[str(status)] = {"description": errors[status], "content": error}
    responses["default"] = {"description": "Any other error.", "content": error}
    parameters = [_name()] if "{name}" in route.path else []
    for name, schema in query.get("properties", {}).items():
        parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    return {
        "operationId": route.operation,
        "summary": route.summary,
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _BODY} if route.body else {}),
        "responses": responses,
    }


def _content(route: Route) -> dict[str, Any]:
    plain = _PLAIN.get(route.answer)
    one = {"$ref": _REFERENCE.format(name=route.answer.__name__)} if plain is None else plain
    if route.media == LINES:
        # What a line is has no place in OpenAPI 3.1.
        return {"schema": {"type": "string"}, "x-line": one}
    return {"schema": {"type": "string"} if route.media == TEXT else one}


def _name() -> dict[str, Any]:
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "The deployment's name; a slash in it is escaped (%2F).",
        "schema": {"type": "string", "minLength": 1, "maxLength": NAME_CHARACTERS},
    }
