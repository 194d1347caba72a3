"""What an engine's refusal says: its status put right, its words in a form that may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from autolaunch.daemon.gateway.documents import MESSAGE_CHARACTERS, Dialect
from autolaunch.daemon.gateway.manners import COMMON, Manners
from selector.values import Value

#: What is shown where the engine's own words are not for clients: those of a fault tell of the host.
FAILED = "the engine failed on this request"
LATER = "the engine cannot take this request now"
#: Statuses whose meaning the head alone tells. The gateway asked for the client's key itself and sends the engine's
#: own: a 401 or 403 is between those two. Redirections lead into the host. A 500 stands for the gateway itself.
_BY_HEAD: Mapping[int, int] = {401: 502, 403: 502, 407: 502, 422: 400, 500: 502, 501: 502, 529: 503}
_CODES: Mapping[int, str] = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "rate_limited",
    502: "engine_error",
    503: "engine_unavailable",
    504: "engine_timeout",
}
READ_BYTES = 2**16

#: A path of the host. Addresses (https://…) and the API's own routes (/v1/…) are no such.
_PATH = re.compile(r"(?<![\w/:.])(?!/v\d/)/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_TRACE = re.compile(r"Traceback \(most recent call last\)|^\s*File \"|\bat 0x[0-9a-f]{6,}", re.MULTILINE)

#: vLLM 0.32 writes FastAPI's list as Python would print it.
_LISTED = re.compile(r"'loc': '(?:body\.?)?([^']{0,200})', 'msg': [\"']([^\"]{1,300}?)[\"'](?:, '|})")

#: Codes of faults whose words are a gateway's own, and not an engine's.
_OWN_CODES = frozenset({"engine_died", "engine_error", "engine_timeout", "stopping"})
#: A code of this gateway's own.
_CODE = re.compile(r"[a-z][a-z_]{0,39}", re.ASCII)

_decode = msgspec.json.Decoder().decode


class Refusal(Value, frozen=True, kw_only=True):
    """A refusal as the client gets it."""

    status: int
    message: str
    code: str
    param: str | None = None


class Fault(Value, frozen=True, kw_only=True):
    """What is wrong with a request."""

    message: str
    param: str | None = None


def status_of_head(status: int) -> int:
    """The status that goes out, as far as the engine's status alone tells."""
    return 502 if 300 <= status < 400 else _BY_HEAD.get(status, status)


def status_told(document: dict[str, Any]) -> int | None:
    """The HTTP status that an error document names in itself, as llama.cpp's and vLLM's do."""
    error = document.get("error")
    for place in (error if isinstance(error, dict) else {}, document):
        for key in ("code", "status", "status_code"):
            value = place.get(key)
            if isinstance(value, int) and 400 <= value <= 599:
                return value
    return None


def read(manners: Manners, status: int, body: bytes, *, asked: str, served: str, dialect: Dialect) -> Refusal:
    """An engine's refusal, whatever its form.

    Args:
        status: the engine's own; below 400 for an error that came as an answer.
    """
    document, words, param = _told(body)
    if status < 400:
        status = (status_told(document) if document is not None else None) or 502
    for known in (*manners.refusals, *COMMON):
        if known.with_status in (None, status) and known.words.search(words):
            told = known.message.format(asked=asked) if known.message else shown(words, asked=asked, served=served)
            return Refusal(status=known.status, message=told or FAILED, code=known.code, param=param)
    final = status_of_head(status)
    code = _CODES.get(final, "engine_error" if final >= 500 else "invalid_request")
    own = _code_in(document) if manners.own_codes else None
    if final >= 500 and own is not None and own in _OWN_CODES:
        return Refusal(status=final, message=shown(words, asked=asked, served=served) or FAILED, code=own)
    if final >= 500:
        return Refusal(status=final, message=LATER if final == 503 else FAILED, code=code)
    told = shown(words, asked=asked, served=served)
    message = told or f"the engine refuses this {dialect} request"
    return Refusal(status=final, message=message, code=own or code, param=param)


def _code_in(document: dict[str, Any] | None) -> str | None:
    error = None if document is None else document.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and _CODE.fullmatch(code) is not None else None


def is_error_document(body: bytes) -> bool:
    """Whether it is an error in the form of a gateway or an engine, and not the page of a proxy between."""
    document = _told(body)[0]
    return document is not None and isinstance(document.get("error"), dict)


def code_of(body: bytes) -> str | None:
    """The code that an error document of a gateway has."""
    return _code_in(_told(body)[0])


def shown(words: str, *, asked: str, served: str) -> str | None:
    """An engine's words for a client: the model by the name it was asked for, no path of the host, no traceback."""
    if _TRACE.search(words):
        return None
    if served != asked and ("/" in served or "\\" in served):
        words = words.replace(f"{served}@main", asked).replace(served, asked)
    return _PATH.sub("[path]", " ".join(words[:MESSAGE_CHARACTERS].split())) or None


def _told(body: bytes) -> tuple[dict[str, Any] | None, str, str | None]:
    """The document, if it is one; what it says; the field of the request that it names."""
    text = body[:READ_BYTES].decode(errors="replace")
    try:
        document = _decode(body) if len(body) <= READ_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        # HTML is a page of some server's own: nothing for a program.
        return None, "" if text.lstrip().startswith("<") else text.strip(), None
    error = document.get("error")
    if isinstance(error, str):
        return document, error, None
    place = error if isinstance(error, dict) else document
    param = place.get("param")
    for key in ("message", "detail", "error", "msg"):
        value = place.get(key)
        if isinstance(value, str) and value[:32].find("validation error") >= 0:
            return document, *_validation([{"loc": ["body", at], "msg": said} for at, said in _LISTED.findall(value)])
        if isinstance(value, str):
            return document, value, param if isinstance(param, str) else None
        if isinstance(value, list):
            return document, *_validation(value)
    return document, "", None


def _validation(faults: list[Any]) -> tuple[str, str | None]:
    """FastAPI's list of what is wrong with a request: where, and what. What was sent is not repeated."""
    told, first = [], None
    for fault in faults[:8]:
        if not isinstance(fault, dict):
            continue
        location = fault.get("loc")
        steps = (location if isinstance(location, list) else ())[1:]
        # What is no JSON at all is told the place of a character there.
        field = ".".join(str(step) for step in steps)
        field = "" if field.isdecimal() else field
        first = first or field or None
        told.append(": ".join(part for part in (field, str(fault.get("msg", ""))) if part))
    return "; ".join(told), first


# --- requests that an engine fails on -------------------------------------------------------------------

_PROMPTS: Mapping[Dialect, str] = {
    "chat": "messages",
    "messages": "messages",
    "completions": "prompt",
    "responses": "input",
    "embeddings": "input",
}
_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n")
_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


def fault_of(dialect: Dialect, request: bytes) -> Fault | None:
    """What is plainly wrong with a request that an engine answered with a fault of its own.

    Transformers 5.23 answers 500 and no word where messages are missing or a number is none. Nothing is looked for
    here that some engine could mean otherwise.
    """
    try:
        asked = _decode(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Fault(message="the request's body is no JSON")
    if not isinstance(asked, dict):
        return Fault(message="the request's body is no JSON object")
    prompt = _PROMPTS.get(dialect)
    if prompt is None:
        return None
    return _fault_of_prompt(prompt, asked.get(prompt)) or _fault_of_numbers(asked)


def _fault_of_prompt(name: str, value: object) -> Fault | None:
    if value is None:
        return Fault(message=f"{name} is missing", param=name)
    if name != "messages":
        fine = isinstance(value, str | list)
        return None if fine else Fault(message=f"{name} is neither a text nor a list", param=name)
    if not isinstance(value, list) or not value:
        return Fault(message="messages is no list of at least one message", param=name)
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return Fault(message=f"messages[{place}] is no object with a role", param=f"messages[{place}]")
        if not isinstance(message.get("content"), str | list | None):
            return Fault(
                message=f"messages[{place}].content is neither a text nor a list", param=f"messages[{place}].content"
            )
    return None


def _fault_of_numbers(asked: dict[str, Any]) -> Fault | None:
    for name in _COUNTS:
        value = asked.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            return Fault(message=f"{name} is no whole number from 1 up", param=name)
    for name in _NUMBERS:
        value = asked.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            return Fault(message=f"{name} is no number", param=name)
    temperature = asked.get("temperature")
    if temperature is not None and temperature < 0:
        return Fault(message="temperature is below 0", param="temperature")
    return None
