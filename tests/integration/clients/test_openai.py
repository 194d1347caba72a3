"""The ``openai`` client, as it is installed, through the gateway: tools, thoughts, images, errors, and leaving."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import ran
from tests.fakes.behind import KEY, Behind
from tests.fakes.engine import CALLS, THOUGHTS, WORDS

#: The environments are made first where there are none.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ASKED = [{"role": "user", "content": "Is it warm in Köln, and in Paris?"}]

BEGIN = """
import asyncio, json, sys, time
import openai
url = sys.argv[1]
client = openai.OpenAI(base_url=url, max_retries=0, timeout=20)
hello = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
"""

PLAIN = """
found = {"whole": client.chat.completions.create(**hello).choices[0].message.content}
with client.chat.completions.create(**hello, stream=True) as stream:
    found["streamed"] = [one.choices[0].delta.content for one in stream if one.choices and one.choices[0].delta.content]
async def at_once():
    async with openai.AsyncOpenAI(base_url=url, max_retries=0) as many:
        async def one():
            stream = await many.chat.completions.create(**hello, stream=True)
            return "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])
        return await asyncio.gather(*(one() for _ in range(16)))
found["at_once"] = asyncio.run(at_once())
found["models"] = [one.id for one in client.models.list()]
found["model"] = client.models.retrieve("fake").id
print(json.dumps(found))
"""

CALLED = """
asked = {"model": "fake", "messages": json.loads(sys.argv[2]), "tools": json.loads(sys.argv[3]), "tool_choice": "auto"}
def said(message, finish):
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls]
    return {"thought": message.model_extra.get("reasoning_content"), "calls": calls, "finish": finish}
choice = client.chat.completions.create(**asked).choices[0]
found = {"whole": said(choice.message, choice.finish_reason)}
thought, calls, finish = "", {}, None
for part in client.chat.completions.create(**asked, stream=True):
    for choice in part.choices:
        thought += choice.delta.model_extra.get("reasoning_content") or ""
        for call in choice.delta.tool_calls or ():
            kept = calls.setdefault(call.index, [call.id, call.function.name, ""])
            kept[2] += call.function.arguments or ""
        finish = choice.finish_reason or finish
found["streamed"] = {"thought": thought, "calls": [calls[index] for index in sorted(calls)], "finish": finish}
print(json.dumps(found))
"""

PICTURED = """
import base64, hashlib, os
picture = "data:image/png;base64," + base64.b64encode(os.urandom(5_000_000)).decode()
content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": picture}}]
messages = [{"role": "user", "content": content}]
sent = hashlib.sha256(json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
found = client.chat.completions.create(model="fake", messages=messages).choices[0].message.content
print(json.dumps({"sent": sent.hexdigest(), "came": found}))
"""

WRONG = """
found = {}
def refused(name, call):
    try:
        call()
    except openai.OpenAIError as error:
        body = getattr(error, "body", None)
        found[name] = [type(error).__name__, getattr(error, "code", None), body.get("message") if body else None]
refused("key", lambda: client.with_options(api_key="sk-wrong-but-long-enough-to-be-one").models.list())
refused("model", lambda: client.chat.completions.create(**{**hello, "model": "glm-5"}))
refused("body", lambda: client.post("/chat/completions", body={"model": 7, "messages": []}, cast_to=object))
refused("path", lambda: client.post("/images/generations", body={"model": "fake"}, cast_to=object))
print(json.dumps(found))
"""

LEAVES = """
stream = client.chat.completions.create(**hello, stream=True)
seen = [next(stream).choices[0].delta.content for _ in range(3)]
stream.close()
print(json.dumps(seen), flush=True)
stream = client.chat.completions.create(**hello, stream=True)
next(stream)
import os
os._exit(0)
"""

LATE = """
try:
    client.with_options(timeout=0.5).chat.completions.create(**hello)
except openai.APITimeoutError:
    print(json.dumps([one.id for one in client.models.list()]))
"""


def openai(one: Behind, script: str, *arguments: str, key: str = KEY) -> Any:
    return ran("openai", BEGIN + script, one.base_url, *arguments, key=key)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with Behind(tmp_path_factory.mktemp("ready"), "ready") as one:
        yield one


def test_it_talks_streams_and_lists_in_every_manner(ready: Behind) -> None:
    found = openai(ready, PLAIN)
    assert found["whole"] == "".join(WORDS)
    assert tuple(found["streamed"]) == WORDS
    assert found["at_once"] == ["".join(WORDS)] * 16
    assert found["models"] == ["fake"]
    assert found["model"] == "fake"


def test_without_a_file_of_keys_whatever_key_the_client_has_is_taken(tmp_path: Path) -> None:
    with Behind(tmp_path, "ready", keyed=False) as one:
        assert openai(one, PLAIN, key="whatever")["whole"] == "".join(WORDS)


def test_calls_of_tools_and_thoughts_arrive_whole(tmp_path: Path) -> None:
    with Behind(tmp_path, "calls") as one:
        found = openai(one, CALLED, json.dumps(ASKED), json.dumps(TOOLS))
    calls = [[each, name, "".join(pieces)] for each, name, pieces in CALLS]
    wanted = {"thought": "".join(THOUGHTS), "calls": calls, "finish": "tool_calls"}
    assert found == {"whole": wanted, "streamed": wanted}
    assert json.loads(calls[1][2])["city"] == 'Paris "é\n'


def test_an_image_of_megabytes_reaches_the_engine_as_it_was_sent(tmp_path: Path) -> None:
    with Behind(tmp_path, "echo") as one:
        found = openai(one, PICTURED)
    assert found["came"] == found["sent"]
    assert len(found["sent"]) == len(hashlib.sha256().hexdigest())


def test_errors_are_those_that_the_client_has_a_class_for(ready: Behind) -> None:
    found = openai(ready, WRONG)
    assert {name: each[0] for name, each in found.items()} == {
        "key": "AuthenticationError",
        "model": "NotFoundError",
        "body": "BadRequestError",
        "path": "NotFoundError",
    }
    assert found["model"][1] == "model_not_found"
    assert "glm-5" in found["model"][2]
    assert all(message for _, _, message in found.values())


def test_a_client_that_leaves_midway_is_left_by_the_engine_too(tmp_path: Path) -> None:
    """One closes its stream, another's process ends."""
    with Behind(tmp_path, "steady") as one:
        assert openai(one, LEAVES) == ["on "] * 3
        until = time.monotonic() + 10.0
        while one.clients_that_left() < 2:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_client_that_did_not_want_to_wait_longer_is_served_again(tmp_path: Path) -> None:
    with Behind(tmp_path, "stall") as one:
        assert openai(one, LATE) == ["fake"]
