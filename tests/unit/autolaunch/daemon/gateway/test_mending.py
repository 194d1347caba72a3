"""What clients get of the answers that real engines sent (``tests/data/wire``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import pytest

from autolaunch.daemon.gateway.documents import Dialect
from autolaunch.daemon.gateway.mending import Mender
from tests.fakes.wire import ASKED, Recording, answer, events, recording, recordings

ALL = recordings()
STREAMS = tuple(each for each in ALL if each.streamed and each.status == 200 and each.body)
#: What is in each recording of a machine's folders.
PATHS = (b"/home/user", b"/engines/environment", b"/python")


FOLDERS = sorted({each.engine_folder for each in ALL})


def refused(beginning: str) -> list[Recording]:
    return [each for each in ALL if each.exchange.startswith(beginning) and each.status != 200]


def within(folder: str, of: Iterable[Recording]) -> Iterator[Recording]:
    """Those of one engine. pytest shows the exchange that a test fails on."""
    return (each for each in of if each.engine_folder == folder)


def test_every_engine_was_recorded() -> None:
    assert {each.engine for each in ALL} >= {"mlx", "transformers", "llamacpp"}
    assert sum(len(each.body) for each in ALL) < 2**20


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_answer_tells_nothing_of_the_host(folder: str) -> None:
    for each in within(folder, ALL):
        _, headers, body, _ = answer(each)
        if each.dialect != "models":  # the gateway makes its own list
            assert not any(path in body for path in PATHS)
            assert b"Traceback" not in body
        names = {name.lower() for name, _ in headers}
        assert not names & {b"server", b"date", b"transfer-encoding", b"connection", b"content-length"}
        assert not any(name.startswith(b"access-control-") for name in names)
        assert [name.lower() for name, _ in headers].count(b"content-type") == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_answer_calls_the_model_what_the_client_calls_it(folder: str) -> None:
    for each in within(folder, [each for each in ALL if each.dialect not in ("models", "other")]):
        _, _, body, _ = answer(each)
        named = set(re.findall(rb'(?<!\\)"model": ?"([^"]*)"', body))
        assert named <= {ASKED.encode()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_refusal_has_the_one_form_of_its_dialect(folder: str) -> None:
    for each in within(folder, [each for each in ALL if answer(each)[0] >= 400]):
        status, headers, body, _ = answer(each)
        assert (b"content-type", b"application/json") in headers
        error = json.loads(body)["error"]
        assert error["message"] and "\n" not in error["message"]
        if each.dialect == "messages":
            assert json.loads(body)["type"] == "error"
            assert set(error) == {"type", "message"}
        else:
            assert set(error) == {"message", "type", "param", "code"}
            assert isinstance(error["code"], str)
        assert status != 500, "a 500 stands for the gateway itself"


WRONG_REQUESTS = (
    "malformed",
    "not-an-object",
    "no-messages",
    "messages-of-a-wrong-type",
    "wrong-temperature",
    "negative-max-tokens",
    "chat-image",
    "prompt-too-long",
    "messages-malformed",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_request_that_is_wrong_is_told_so_and_no_fault_of_the_server(folder: str) -> None:
    for each in within(folder, [each for each in ALL if each.exchange in WRONG_REQUESTS and each.status != 200]):
        status, _, _, _ = answer(each)
        assert status == (404 if each.status == 404 and each.dialect == "messages" else 400)


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_unknown_model_is_a_404(folder: str) -> None:
    for each in within(folder, refused("wrong-model")):
        status, _, body, _ = answer(each)
        assert status == 404
        assert json.loads(body)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(folder: str) -> None:
    for each in within(folder, refused("prompt-too-long")):
        assert json.loads(answer(each)[2])["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_engines_own_key_is_no_matter_of_clients(folder: str) -> None:
    for each in within(folder, [each for each in ALL if each.exchange in ("no-key", "wrong-key")]):
        assert answer(each)[0] == (502 if each.status == 401 else 200)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_stream_is_read_by_a_strict_client_and_has_one_end(folder: str) -> None:
    for each in within(folder, STREAMS):
        _, _, body, mender = answer(each)
        assert mender.finished
        found = events(body)
        assert found
        assert body.count(b"data: [DONE]\n\n") == (each.dialect in ("chat", "completions"))
        if each.dialect in ("chat", "completions"):
            assert body.endswith(b"\n\ndata: [DONE]\n\n")
            assert any(choice.get("finish_reason") for event in found for choice in event.get("choices", ()))
        elif each.dialect == "responses":
            assert found[-1]["type"] in ("response.completed", "response.incomplete")
            assert body.count(b"event: response.") == len(found)
        else:
            assert found[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_text_of_a_stream_is_the_engines_to_the_letter(folder: str) -> None:
    for each in within(folder, STREAMS):

        def told(stream: bytes) -> list[object]:
            return [
                {key: value for key, value in event.items() if key not in ("model", "response", "message")}
                for event in events(stream.replace(b"\r\n", b"\n"))
            ]

        assert told(answer(each)[2]) == told(each.body)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_stream_tells_of_its_tokens_is_known(folder: str) -> None:
    for each in within(folder, STREAMS):
        _, _, _, mender = answer(each)
        asked, given = mender.usage
        if each.exchange.endswith("-usage") or each.dialect in ("responses", "messages"):
            assert asked and given
        if given is not None and "two" not in each.exchange:
            assert mender.tokens_seen <= given
        if each.exchange in ("chat-stream", "completions-stream", "responses-stream", "messages-stream"):
            assert mender.tokens_seen


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_whole_answer_is_json_and_its_tokens_are_known(folder: str) -> None:
    for each in within(folder, [each for each in ALL if not each.streamed and answer(each)[0] == 200]):
        _, headers, body, mender = answer(each)
        assert (b"content-type", b"application/json") in headers
        assert isinstance(json.loads(body), dict)
        if each.dialect in ("chat", "completions", "responses", "messages"):
            assert None not in mender.usage


def test_a_response_that_comes_as_a_stream_unasked_is_given_whole() -> None:
    """Transformers 5.23 streams where the request does not say otherwise."""
    each = recording("transformers-5.23.0", "responses")
    assert each.body.startswith(b"data: ")
    status, _, body, _ = answer(each)
    response = json.loads(body)
    assert (status, response["status"], response["model"]) == (200, "completed", ASKED)


def test_comments_that_keep_nothing_alive_are_left_out_and_others_stay() -> None:
    each = recording("mlx-lm-0.32.2", "chat-stream")
    assert each.body.startswith(b": keepalive 1/1\n\n")
    assert answer(each)[2].startswith(b"data: {")
    mender = each.mender()
    waiting = b": keepalive 2048/9000\n\n"
    assert mender.feed(waiting + b": keepalive 9000/9000\n\n") == waiting


def test_an_engine_that_was_ended_within_an_answer_does_not_seem_to_have_finished_it() -> None:
    """mlx-lm answers in HTTP/1.0: where its answer ends and where it died look alike but for what is missing."""
    each = recording("mlx-lm-0.32.2", "chat-stream")
    cut = each.body.index(b"data: ", 300)
    for there in (each.body[:cut], each.body[: cut + 40]):
        mender = each.mender()
        told = mender.feed(there) + mender.end()
        *_, last = events(told)
        assert last["error"]["code"] == "engine_error"
        assert told.endswith(b"\n\ndata: [DONE]\n\n")


def test_the_bare_transformers_gets_its_missing_end() -> None:
    each = recording("transformers-5.23.0-bare", "chat-stream")
    assert b"[DONE]" not in each.body
    told = answer(each)[2]
    assert told.endswith(b"\n\ndata: [DONE]\n\n")
    assert b"error" not in told


@pytest.mark.parametrize("dialect", ["chat", "completions", "responses", "messages"])
def test_a_stream_whose_engine_dies_ends_with_an_error_that_clients_read(dialect: str) -> None:
    each = recording(
        "llamacpp-b11549",
        {"chat": "chat-stream", "completions": "completions-stream", "responses": "responses-stream"}.get(
            dialect, "messages-stream"
        ),
    )
    mender = each.mender()
    told = mender.feed(each.body[: len(each.body) // 2]) + mender.broken("the engine ended", "engine_died")
    last = events(told)[-1]
    if dialect in ("chat", "completions"):
        assert last["error"]["message"] == "the engine ended"
        assert told.endswith(b"data: [DONE]\n\n")
    elif dialect == "responses":
        assert (last["type"], last["code"], last["message"]) == ("error", "engine_died", "the engine ended")
    else:
        assert last == {"type": "error", "error": {"type": "api_error", "message": "the engine ended"}}
    assert mender.finished
    assert mender.feed(b"data: {}\n\n") == mender.end() == mender.broken("again", "x") == b""


def test_nothing_follows_an_end() -> None:
    each = recording("llamacpp-b11549", "chat-stream")
    mender = each.mender()
    mender.feed(each.body)
    assert mender.finished
    assert mender.feed(b"data: [DONE]\n\n") == mender.end() == mender.broken("x", "y") == b""


def test_an_answer_that_is_packed_is_passed_on_unread() -> None:
    mender = Mender(engine="vllm", asked="a", served="b", dialect="chat", streamed=True)
    mender.head(200, [(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")])
    assert mender.feed(b"\x1f\x8b\r\n\n\n") + mender.end() == b"\x1f\x8b\r\n\n\n"


CAR = {"model": "BMW 320", "year": 2020}


@pytest.mark.parametrize(
    ("dialect", "answer_of"),
    [
        ("messages", {"content": [{"type": "tool_use", "id": "1", "name": "f", "input": CAR}], "model": "engine's"}),
        ("responses", {"metadata": CAR, "output": [], "model": "engine's"}),
        ("chat", {"choices": [{"message": {"content": "x", "car": CAR}}], "model": "engine's"}),
    ],
)
def test_only_the_answers_own_name_is_renamed(dialect: Dialect, answer_of: dict[str, object]) -> None:
    mender = Mender(engine="vllm", asked=ASKED, served="engine's", dialect=dialect, streamed=False)
    _, told = mender.whole(200, json.dumps(answer_of).encode())
    assert json.loads(told) == {**answer_of, "model": ASKED}


def test_the_name_of_a_stream_is_learnt_from_its_place_and_no_other() -> None:
    response = {"metadata": CAR, "model": "engine's", "output": []}
    told = [
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "item": {"arguments": json.dumps(CAR), "car": CAR}},
        {"type": "response.completed", "response": response},
    ]
    stream = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in told)
    mender = Mender(engine="vllm", asked=ASKED, served="engine's", dialect="responses", streamed=True)
    mender.head(200, [(b"content-type", b"text/event-stream")])
    got = [json.loads(line[6:]) for line in mender.feed(stream).split(b"\n") if line.startswith(b"data: ")]
    named = {**response, "model": ASKED}
    assert got == [{**told[0], "response": named}, told[1], {**told[2], "response": named}]


def test_an_engine_that_generates_no_more_is_no_fault_of_its_client() -> None:
    mender = Mender(engine="mlx", asked=ASKED, served=ASKED, dialect="chat", streamed=False)
    status, told = mender.whole(404, b'{"error": "generation thread died: unhashable type"}')
    assert (status, json.loads(told)["error"]["code"]) == (503, "engine_error")
