"""The server of Transformers, mended: whole streams, one model under its own name. (The guard: test_mlx.)"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from engines.shims.python_server import OneModel, memory_limits

EVENTS = (
    b'data: {"model":"tiny@main","choices":[{"delta":{"content":"a"}}]}\n\ndata: {"model":"ti',
    b'ny@main","choices":[{"delta":{"content":"b"}}]}\n\n',
)


def answer_of(path: str, *bodies: bytes, kind: str = "application/json") -> tuple[int, dict[str, str], str]:
    """What a client gets when the engine's application sends ``bodies``: status, headers, body."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind.encode()), (b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for place, body in enumerate(bodies):
            await send({"type": "http.response.body", "body": body, "more_body": place + 1 < len(bodies)})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    asyncio.run(OneModel(app, name="tiny")({"type": "http", "path": path, "headers": []}, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(each["body"] for each in sent[1:]).decode()


def test_a_stream_ends_as_the_protocol_says_and_names_the_model_that_was_asked_for() -> None:
    _, _, body = answer_of("/v1/chat/completions", *EVENTS, b"", kind="text/event-stream; charset=utf-8")
    *events, done, end = body.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert [json.loads(event.removeprefix("data: "))["model"] for event in events] == ["tiny", "tiny"]
    assert [json.loads(event.removeprefix("data: "))["choices"][0]["delta"]["content"] for event in events] == [
        "a",
        "b",
    ]


def test_an_event_that_the_engine_left_without_an_end_is_passed_on() -> None:
    _, _, body = answer_of("/v1/chat/completions", b'data: {"model":"x"}', kind="text/event-stream")
    assert body == 'data: {"model":"tiny"}\n\ndata: [DONE]\n\n'


def test_an_error_in_a_stream_is_json_whatever_it_says() -> None:
    broken = b'data: {"error": "bad "quote" in it"}\n\n'
    _, _, body = answer_of("/v1/chat/completions", broken, kind="text/event-stream")
    assert json.loads(body.split("\n\n")[0].removeprefix("data: ")) == {"error": {"message": 'bad "quote" in it'}}


def test_a_whole_answer_is_renamed_and_as_long_as_it_says() -> None:
    status, headers, body = answer_of("/v1/chat/completions", b'{"model":"tiny@ma', b'in","error":"no"}')
    assert (status, int(headers["content-length"])) == (200, len(body.encode()))
    assert json.loads(body) == {"model": "tiny", "error": {"message": "no"}}


def test_what_is_no_json_is_passed_on_as_it_came() -> None:
    assert answer_of("/v1/chat/completions", b"Internal Server Error")[2] == "Internal Server Error"


def test_the_list_of_models_holds_the_one_that_is_served() -> None:
    _, _, body = answer_of("/v1/models", b"{}")
    assert [each["id"] for each in json.loads(body)["data"]] == ["tiny"]


@pytest.mark.parametrize("path", ["/load_model", "/reset"])
def test_nobody_loads_or_unloads_a_model(path: str) -> None:
    assert answer_of(path, b"{}")[0] == 403


def test_the_planned_memory_is_read_as_accelerate_takes_it() -> None:
    assert memory_limits("0=5,1=7") == {0: 5, 1: 7}
    assert memory_limits("cpu=9") == {"cpu": 9}
