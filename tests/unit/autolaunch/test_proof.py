"""What counts as proven: an answer that merely came is not enough."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from autolaunch import proof
from autolaunch.chat import AskResult, ToolCall, image_url
from autolaunch.proof import Endpoint, called, png, seen, streamed
from engines.miniature import TOOL_CALL
from selector.errors import EngineError, UsageError

NAME, ARGUMENTS = TOOL_CALL
ENDPOINT = Endpoint(base_url="http://127.0.0.1:1/v1", model="glm-tiny", images=True)
ANSWER = AskResult(
    text="some words",
    reasoning="",
    prompt_tokens=10,
    completion_tokens=8,
    time_to_first_token_seconds=0.1,
    decode_tokens_per_second=10.0,
    finish_reason="length",
    pieces=8,
)


def answering(monkeypatch: pytest.MonkeyPatch, *answers: AskResult | Exception) -> None:
    coming: Iterator[AskResult | Exception] = iter(answers)

    def ask(*_arguments: Any, **_settings: Any) -> AskResult:
        answer = next(coming)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(proof, "ask", ask)


def changed(**fields: Any) -> AskResult:
    return msgspec.structs.replace(ANSWER, **fields)


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (ANSWER, True),
        (changed(text="", reasoning="thought"), True),
        (changed(text="  "), False),
        (changed(finish_reason=None), False),
        (changed(completion_tokens=1), False),
        (changed(pieces=1), False),
        (EngineError("it broke off"), False),
    ],
)
def test_a_stream_counts_when_words_come_and_it_ends_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, answer: AskResult | Exception, ok: bool
) -> None:
    answering(monkeypatch, answer)
    step, _ = streamed(ENDPOINT)
    assert step.ok is ok
    assert step.message


def test_dummy_weights_need_not_make_sense_but_have_to_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    dummy = msgspec.structs.replace(ENDPOINT, speaks=False)
    answering(monkeypatch, changed(text=""))
    assert streamed(dummy)[0].ok is True
    assert called(dummy, parsed=True).ok is None


def call(name: str = NAME, arguments: str | None = None) -> AskResult:
    told = msgspec.json.encode(ARGUMENTS).decode() if arguments is None else arguments
    return changed(text="", tool_calls=(ToolCall(name=name, arguments=told),))


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (call(), True),
        (call(arguments="{}"), False),
        (call(arguments="no JSON"), False),
        (call(name="another"), False),
        (changed(text="<tool_call>get_weather\n</tool_call>"), False),
        (changed(tool_calls=call().tool_calls * 2), False),
    ],
)
def test_a_call_counts_when_the_engine_parsed_that_very_call_and_no_other(
    monkeypatch: pytest.MonkeyPatch, answer: AskResult, ok: bool
) -> None:
    answering(monkeypatch, answer)
    assert called(ENDPOINT, parsed=True).ok is ok


def test_a_call_is_not_tried_where_no_parser_is_known() -> None:
    assert called(ENDPOINT, parsed=False).ok is None


def test_an_image_counts_when_another_one_gives_another_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, changed(text="red"), changed(text="blue"))
    assert seen(ENDPOINT).ok is True
    answering(monkeypatch, changed(text="same"), changed(text="same"))
    assert seen(ENDPOINT).ok is False


def test_a_model_without_images_is_shown_none() -> None:
    assert seen(msgspec.structs.replace(ENDPOINT, images=False)).ok is None


def test_the_image_is_a_square_of_its_colour() -> None:
    data = png((200, 30, 30), side=4)
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (width, height, depth, kind) == (4, 4, 8, 2)
    start = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[start - 8 : start - 4])
    assert zlib.decompress(data[start : start + length]) == (b"\0" + bytes((200, 30, 30)) * 4) * 4
    assert image_url(data).startswith("data:image/png;base64,")


@pytest.mark.parametrize("data", [b"", b"GIF", b"%PDF-1.7", b"RIFF1234WAVE"])
def test_what_is_no_image_is_not_sent_as_one(data: bytes) -> None:
    with pytest.raises(UsageError, match="no image"):
        image_url(data)
