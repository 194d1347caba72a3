"""What the bytes of an answer are searched for, and how a stream of events is taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from autolaunch.daemon.gateway.documents import Dialect

DONE = b"data: [DONE]\n\n"
DONE_LINE = re.compile(rb"(?m)^data: ?\[DONE\][ \t]*$")
MODEL_KEYS = (b'"model":', b'"model": ')
#: A piece of an answer: text, reasoning under either name, or a call's arguments.
PIECES: Mapping[Dialect, re.Pattern[bytes]] = {
    "chat": re.compile(rb'"(?:content|reasoning_content|reasoning|arguments)": ?"[^"]'),
    "completions": re.compile(rb'"text": ?"[^"]'),
    "responses": re.compile(rb'"delta": ?"[^"]'),
    "messages": re.compile(rb'"(?:text|thinking|partial_json)": ?"[^"]'),
}
ERROR = re.compile(rb'"error"\s*:\s*(?!null)|(?m:^event: ?error)|"(?:type|object)": ?"error"')
#: Why a choice ended, in the two ways that JSON is written.
FINISHED = (b'"finish_reason":"', b'"finish_reason": "')
ENDS: Mapping[Dialect, re.Pattern[bytes]] = {
    "responses": re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"'),
    "messages": re.compile(rb'"type"\s*:\s*"message_stop"'),
}
USAGE = re.compile(rb'"usage"\s*:\s*\{')
ASKED_TOKENS = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,15})')
GIVEN_TOKENS = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,15})')
#: llama.cpp's own account, which it sends where nobody asked for the usage.
TIMINGS = re.compile(rb'"cache_n": ?(\d{1,15}), ?"prompt_n": ?(\d{1,15}),.{0,400}?"predicted_n": ?(\d{1,15})')
SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
TYPE = re.compile(rb'"type"\s*:\s*"(response\.[a-z_.]+)"')


#: What may stand between quotes.
_TEXT = re.compile(rb'(?:[^"\\\r\n]|\\[^\r\n])+')

_NOTHING = msgspec.Raw()


class Skimmed(msgspec.Struct):
    """What is looked at in a whole answer; the rest is only checked to be JSON."""

    error: object = None
    choices: msgspec.Raw = _NOTHING


class Counts(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class UsualAnswer(msgspec.Struct):
    """A whole answer as most are; one that is not does not fit."""

    model: str
    choices: msgspec.Raw
    usage: Counts
    error: None = None


class _Inner(msgspec.Struct):
    model: object = None


class _Named(msgspec.Struct):
    """Where an answer, or an event of one, has the model's name; a name elsewhere is somebody else's."""

    model: object = None
    message: _Inner | None = None
    response: _Inner | None = None


_named = msgspec.json.Decoder(_Named).decode
skim = msgspec.json.Decoder(Skimmed).decode
_usual_answer = msgspec.json.Decoder(UsualAnswer).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def counted(body: bytes, asked: str) -> tuple[int, int] | None:
    """The tokens of the prompt and of the answer, of a whole answer that needs no change, which most do not."""
    try:
        usual = _usual_answer(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return (usual.usage.prompt_tokens, usual.usage.completion_tokens) if usual.model == asked else None


class Usual(NamedTuple):
    """An event of a stream that the next ones are like, but for the piece of text in it: most are.

    Told apart by their beginning and their end alone, which costs a fraction of looking through them.
    """

    begins: bytes
    ends: bytes
    told_begins: bytes
    told_ends: bytes

    def piece(self, event: bytes) -> bytes | None:
        """The text, as it is written, of an event of this kind; ``None`` of any other."""
        if not (event.startswith(self.begins) and event.endswith(self.ends)):
            return None
        piece = event[len(self.begins) : -len(self.ends)]
        return piece if _TEXT.fullmatch(piece) is not None else None

    def told(self, event: bytes, piece: bytes) -> bytes:
        """The event as clients get it."""
        return event if self.told_begins == self.begins else self.told_begins + piece + self.told_ends


def usual(pieces: re.Pattern[bytes], event: bytes, told: bytes) -> Usual | None:
    """The kind of an event that was looked through and bears a piece of text, from what came and what went on."""
    found, in_told = pieces.search(event), pieces.search(told)
    if found is None or in_told is None or event.count(b"\n\n") != 1 or not event.endswith(b"\n\n"):
        return None
    if b'"usage"' in event and USAGE.search(event) is not None:
        return None
    if any(sign in event for sign in (*FINISHED, b'"timings"', b'"sequence_number"')):
        return None
    start, told_start = found.end() - 1, in_told.end() - 1
    text = _TEXT.match(event, start)
    if text is None:
        return None
    end, told_end = text.end(), told_start + text.end() - start
    if event[start:end] != told[told_start:told_end]:
        return None
    return Usual(event[:start], event[end:], told[:told_start], told[told_end:])


def name_in(text: bytes) -> str | None:
    """What an answer, or an event's data, calls its model."""
    try:
        found = _named(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    names = (found.model, *(each.model for each in (found.message, found.response) if each is not None))
    return next((each for each in names if isinstance(each, str)), None)


def datas(block: bytes) -> Iterator[bytes]:
    """The data of each event of a block."""
    for line in block.split(b"\n"):
        if line.startswith(b"data: {"):
            yield line[6:]


def split(block: bytes) -> list[bytes]:
    """The events of a block, each with its blank line."""
    return [event + b"\n\n" for event in block.split(b"\n\n") if event]


def is_comments(events: bytes) -> bool:
    """Whether there is nothing in whole events but comments."""
    return events.startswith(b":") and all(line.startswith(b":") for line in events.split(b"\n") if line)


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
            response = value.get("response") if isinstance(value, dict) else None
            return _encode(response) if isinstance(response, dict) else None
    return None
