"""What is read of a request's body, and what is refused before any engine sees it."""

from __future__ import annotations

import json

import pytest

from autolaunch.daemon.gateway import asked
from tests.fakes.scripted import MODEL, house, story

WRONG: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  \n",
    "no JSON": b"model=glm",
    "half of it": b'{"model": "glm", "messages": [',
    "two of it": b'{"model": "glm"}{"model": "glm"}',
    "a list": b'[{"model": "glm"}]',
    "a text": b'"glm"',
    "a number": b"17",
    "null": b"null",
    "a model of a wrong type": b'{"model": 17}',
    "a model that is a list": b'{"model": ["glm"]}',
    "a model that is an object": b'{"model": {"name": "glm"}}',
    "a model without end": b'{"model": "' + b"g" * 100_000 + b'"}',
    "no model": b'{"messages": []}',
    "model null": b'{"model": null}',
    "model empty": b'{"model": ""}',
    "stream of a wrong type": b'{"model": "glm", "stream": "yes"}',
    "not UTF-8": b'{"model": "gl\xff\xfem"}',
    "half a surrogate": b'{"model": "\\ud800"}',
    "a NUL": b'{"model": "gl\0m"}',
    "NaN": b'{"model": "glm", "temperature": NaN}',
    "too deep": b'{"model": "glm", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "too deep, without end": b'{"model":' + b'{"a":' * 200_000,
    "UTF-16": '{"model": "glm"}'.encode("utf-16"),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
@story
async def test_a_body_that_is_no_request_is_400_and_the_connection_goes_on(body: bytes) -> None:
    async with house() as found:
        client = await found.connect()
        refused = await client.ask("POST", "/v1/chat/completions", body)
        assert refused.status == 400
        assert refused.code in ("invalid_body", "model_missing")
        assert len(refused.body) < 1000
        assert found.engine.asked == []
        assert (await client.chat()).status == 200


@pytest.mark.parametrize("number", [b"1" * 100_000, b"1e999999", b"-1e-999999", b"0." + b"3" * 100_000])
def test_huge_numbers_cost_nothing_where_they_are_of_no_concern(number: bytes) -> None:
    assert asked.read(b'{"model": "glm", "seed": ' + number + b"}") == ("glm", False)
    asked.conversation(b'{"messages": [{"role": "user", "content": ' + number + b"}]}")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "gl\0m", "\uff47\uff4c\uff4d", "GLM ", "glm\u202e", "-glm", "*"]
)
@story
async def test_a_model_that_is_none_of_ours_is_404_whatever_its_name(name: str) -> None:
    async with house() as found:
        client = await found.connect()
        refused = await client.chat(model=name)
        assert (refused.status, refused.code) == (404, "model_not_found")
        assert "\x00" not in refused.body.decode()
        assert found.engine.asked == []


@story
async def test_a_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    async with house() as found:
        client = await found.connect()
        assert f"did you mean '{MODEL}'?" in (await client.chat(model="GLM")).json["error"]["message"]
        assert "did you mean" not in (await client.chat(model="quite another")).json["error"]["message"]


def test_a_repeated_key_is_read_as_engines_read_it() -> None:
    # The last one counts, for Python's json and for ours: a request is not routed by one name and served by another.
    body = b'{"model": "a", "model": "b", "stream": false, "stream": true}'
    assert asked.read(body) == ("b", True)
    assert json.loads(body)["model"] == "b"


def test_a_conversation_is_told_by_what_its_client_says_or_by_how_it_begins() -> None:
    def of(**fields: object) -> bytes | None:
        return asked.conversation(json.dumps(fields).encode())

    first = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}
    more = {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "and"}
    assert of(messages=first) == of(messages=(*first, *more)) != of(messages=more)
    assert of(messages=first, user="a") == of(messages=more, user="a") != of(messages=first, user="b")
    assert of(prompt_cache_key="a", user="b") != of(prompt_cache_key="b", user="a")
    assert of(prompt="one") != of(prompt="two")
    assert of(input="one") != of(prompt="one")
    assert of(model="glm") is None


@pytest.mark.parametrize("body", [b"", b"[", b"\xff", b'{"messages": 3}', b'{"user": []}', b"[" * 200_000])
def test_what_tells_no_conversation_is_no_fault(body: bytes) -> None:
    assert asked.conversation(body) is None
