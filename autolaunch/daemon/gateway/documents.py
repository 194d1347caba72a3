"""Error documents: what the gateway and the engines refuse, in the form that each kind of client reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Dialect = Literal["chat", "completions", "responses", "embeddings", "messages", "models", "other"]

#: OpenAI's types of an error by HTTP status; other 4xx are requests that are wrong, other 5xx faults of the server.
_OPENAI: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    529: "service_unavailable",
}
#: Anthropic's (https://docs.anthropic.com/en/api/errors). Its 529 is this gateway's 503: both mean "later".
_ANTHROPIC: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
#: What a client is shown of a message, at most.
MESSAGE_CHARACTERS = 2_000

_encode = msgspec.json.Encoder().encode


def error_kind(dialect: Dialect, status: int) -> str:
    """The type that clients of this dialect know for ``status``."""
    if dialect == "messages":
        return _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return _OPENAI.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_document(
    dialect: Dialect, status: int, message: str, *, code: str | None, kind: str | None = None, param: str | None = None
) -> bytes:
    """The body of an answer that refuses.

    Args:
        status: the HTTP status that it goes out with.
        code: a stable word for programs; Anthropic's form has no place for it.
        kind: the error's type where it is not the one of ``status``.
        param: the field of the request that is at fault, where it is known.
    """
    message = message[:MESSAGE_CHARACTERS]
    kind = kind or error_kind(dialect, status)
    if dialect == "messages":
        return _encode({"type": "error", "error": {"type": kind, "message": message}})
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(
    dialect: Dialect, status: int, message: str, *, code: str | None, kind: str | None = None, sequence: int = 0
) -> bytes:
    """An error as a server-sent event, for a stream that has begun; without the end of the stream.

    Args:
        status: what it would have been answered with.
        sequence: the event's number, which those of the Responses API carry.
    """
    if dialect == "responses":
        event = {
            "type": "error",
            "code": code or kind or error_kind(dialect, status),
            "message": message[:MESSAGE_CHARACTERS],
            "param": None,
            "sequence_number": sequence,
        }
        return b"event: error\ndata: " + _encode(event) + b"\n\n"
    data = error_document(dialect, status, message, code=code, kind=kind)
    return (b"event: error\n" if dialect == "messages" else b"") + b"data: " + data + b"\n\n"
