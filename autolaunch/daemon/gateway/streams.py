"""What the bytes of an answer are searched for, and how a stream of events is taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from autolaunch.daemon.gateway.documents import Dialect

DONE = b"data: [DONE]\n\n"
DONE_LINE = re.compile(rb"(?m)^data: ?\[DONE\][ \t]*$")
#: The key cannot be in a text: there its quotes would be escaped.
MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*("(?:[^"\\]|\\.)*")')
#: A piece of an answer: text, reasoning under either name, or a call's arguments.
PIECE = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments|thinking|partial_json|delta)": ?"[^"]')
ERROR = re.compile(rb'"error"\s*:\s*(?!null)|(?m:^event: ?error)|"type": ?"error"')
FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
ENDS: Mapping[Dialect, re.Pattern[bytes]] = {
    "responses": re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"'),
    "messages": re.compile(rb'"type"\s*:\s*"message_stop"'),
}
USAGE = re.compile(rb'"usage"\s*:\s*\{')
ASKED_TOKENS = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,15})')
GIVEN_TOKENS = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,15})')
SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
TYPE = re.compile(rb'"type"\s*:\s*"(response\.[a-z_.]+)"')


_NOTHING = msgspec.Raw()


class Skimmed(msgspec.Struct):
    """What is looked at in a whole answer; the rest is only checked to be JSON."""

    error: object = None
    choices: msgspec.Raw = _NOTHING


skim = msgspec.json.Decoder(Skimmed).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def split(block: bytes) -> list[bytes]:
    """The events of a block, each with its blank line."""
    return [event + b"\n\n" for event in block.split(b"\n\n") if event]


def number(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    """The count that the pattern finds first."""
    found = pattern.search(text)
    return None if found is None else int(found.group(1))


def is_complete(event: bytes) -> bool:
    """Whether what is left at the end of a stream is an event that lacks nothing but its blank line."""
    data = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    if not data:
        return False
    try:
        return data == [b"[DONE]"] or isinstance(_decode(b"\n".join(data)), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def with_names(block: bytes) -> bytes:
    """Events of the Responses API with the line that names them, which not every engine sends."""
    if block.startswith(b"event: "):
        return block
    told = []
    for event in split(block):
        found = TYPE.search(event) if event.startswith(b"data: ") else None
        # The event's own type is the last one: those of its parts come before it, or are within quotes of theirs.
        told.append(event if found is None else b"event: " + TYPE.findall(event)[-1] + b"\n" + event)
    return b"".join(told)


def last_response(stream: bytes) -> bytes | None:
    """The finished response out of a stream that nobody asked for."""
    for event in reversed(stream.replace(b"\r\n", b"\n").split(b"\n\n")):
        data = event.partition(b"data:")[2].strip()
        if data.startswith(b"{") and ENDS["responses"].search(data) is not None:
            try:
                value: Any = _decode(data)
            except (msgspec.DecodeError, RecursionError):
                return None
            response = value.get("response") if isinstance(value, dict) else None
            return _encode(response) if isinstance(response, dict) else None
    return None
