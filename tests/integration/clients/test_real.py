"""Clients that no one here wrote, real engines, and nothing between them but the daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines import miniature
from tests.clients import ran
from tests.fakes.behind import KEY
from tests.integration.clients.conftest import Real

#: The environments are made first where there are none.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

OPENAI = """
import asyncio, json, sys
import openai
url, tools = sys.argv[1], json.loads(sys.argv[2])
client = openai.OpenAI(base_url=url, max_retries=0, timeout=60)
asked = {"model": "glm-tiny", "temperature": 0, "max_tokens": 12}
hello = {**asked, "messages": [{"role": "user", "content": "hello"}]}
answer = client.chat.completions.create(**hello)
found = {"name": answer.model, "words": answer.choices[0].message.content, "finish": answer.choices[0].finish_reason}
found["usage"] = answer.usage.completion_tokens
parts = list(client.chat.completions.create(**hello, stream=True, stream_options={"include_usage": True}))
found["names"] = sorted({part.model for part in parts})
found["streamed"] = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
found["pieces"] = sum(bool(part.choices and part.choices[0].delta.content) for part in parts)
found["streamed_usage"] = parts[-1].usage.completion_tokens
async def at_once():
    async with openai.AsyncOpenAI(base_url=url, max_retries=0, timeout=60) as many:
        answers = await asyncio.gather(*(many.chat.completions.create(**hello) for _ in range(4)))
        return [answer.choices[0].message.content for answer in answers]
found["at_once"] = asyncio.run(at_once())
found["completed"] = client.completions.create(**asked, prompt="hello").choices[0].text
# With its blank, as the tokenizer of the miniature has it: mlx-lm compares tokens.
choice = client.chat.completions.create(**hello, stop=[" " + found["words"].split()[3]]).choices[0]
found["stopped"] = [choice.message.content, choice.finish_reason]
found["models"] = sorted(one.id for one in client.models.list())
call = client.chat.completions.create(**{**hello, "max_tokens": 64}, tools=tools).choices[0]
found["calls"] = [[each.function.name, json.loads(each.function.arguments)] for each in call.message.tool_calls or ()]
pieces = {}
for part in client.chat.completions.create(**{**hello, "max_tokens": 64}, tools=tools, stream=True):
    for each in (part.choices[0].delta.tool_calls or ()) if part.choices else ():
        kept = pieces.setdefault(each.index, ["", ""])
        kept[0] += each.function.name or ""
        kept[1] += each.function.arguments or ""
found["streamed_calls"] = [[name, json.loads(arguments)] for name, arguments in pieces.values()]
print(json.dumps(found))
"""

PICTURES = """
import base64, json, struct, sys, zlib
import openai
client = openai.OpenAI(base_url=sys.argv[1], max_retries=0, timeout=120)
def png(red, blue):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = (b"\\0" + bytes((red, 0, blue)) * 200) * 100
    parts = (b"IHDR", struct.pack(">IIBBBBB", 200, 100, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    whole = b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunk(*part) for part in parts)
    return "data:image/png;base64," + base64.b64encode(whole).decode()
def seen(red, blue):
    content = [{"type": "image_url", "image_url": {"url": png(red, blue)}}, {"type": "text", "text": "what is this"}]
    messages = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model="glm-tiny-v", messages=messages, max_tokens=12, temperature=0)
    return answer.choices[0].message.content
print(json.dumps([seen(255, 0), seen(0, 255)]))
"""

OTHER_ROUTES = """
import json, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], max_retries=0, timeout=60)
asked = {"model": "glm-tiny-v", "input": "hello", "max_output_tokens": 12, "temperature": 0}
found = {"words": client.responses.create(**asked).output_text, "streamed": ""}
for event in client.responses.create(**asked, stream=True):
    found["streamed"] += event.delta if event.type == "response.output_text.delta" else ""
    found["last"] = event.type
try:
    client.embeddings.create(model="glm-tiny", input="hello")
except openai.OpenAIError as error:
    found["embeddings"] = [type(error).__name__, error.code]
print(json.dumps(found))
"""

ANTHROPIC = """
import json, sys
import anthropic
client = anthropic.Anthropic(base_url=sys.argv[1].removesuffix("/v1"), max_retries=0, timeout=60)
asked = {"model": sys.argv[2], "max_tokens": 12, "messages": [{"role": "user", "content": "hello"}]}
answer = client.messages.create(**asked)
found = {"name": answer.model, "words": "".join(one.text for one in answer.content if one.type == "text")}
found["stop"] = answer.stop_reason
with client.messages.stream(**asked) as stream:
    found["streamed"] = "".join(stream.text_stream)
found["errors"] = []
for other in (client.with_options(api_key="sk-wrong-but-long-enough-to-be-one"), client):
    try:
        other.messages.create(**{**asked, "model": "claude"})
    except anthropic.APIStatusError as error:
        found["errors"].append([type(error).__name__, error.body["error"]["type"]])
print(json.dumps(found))
"""

LITELLM = """
import json, sys
import litellm
litellm.telemetry = False
common = {"api_base": sys.argv[1], "max_tokens": 12, "temperature": 0, "timeout": 60, "num_retries": 0}
asked = {**common, "messages": [{"role": "user", "content": "hello"}]}
answer = litellm.completion(model="openai/glm-tiny", **asked)
found = {"words": answer.choices[0].message.content, "usage": answer.usage.completion_tokens}
parts = litellm.completion(model="openai/glm-tiny", stream=True, **asked)
found["streamed"] = "".join(part.choices[0].delta.content or "" for part in parts)
found["errors"] = []
for more in ({"api_key": "sk-wrong-but-long-enough-to-be-one"}, {"model": "openai/glm-5"}):
    try:
        litellm.completion(**{"model": "openai/glm-tiny", **asked, **more})
    except Exception as error:
        found["errors"].append(type(error).__name__)
print(json.dumps(found))
"""


def test_openai_talks_to_a_real_engine_in_every_manner(real: Real) -> None:
    found = ran("openai", OPENAI, real.base_url, json.dumps([miniature.TOOL]), key=KEY, seconds=300.0)
    assert found["name"] == "glm-tiny"
    assert found["names"] == ["glm-tiny"]
    assert len(found["words"].split()) == 12
    assert found["finish"] == "length"
    assert found["usage"] == found["streamed_usage"] == 12
    assert found["streamed"] == found["words"]
    assert found["pieces"] > 6, "it streams, and does not wait for the whole"
    assert found["at_once"] == [found["words"]] * 4
    assert found["completed"].split()
    assert found["stopped"] == [" ".join(found["words"].split()[:3]), "stop"]
    assert found["models"] == ["glm-tiny", "glm-tiny-v"]
    name, arguments = miniature.TOOL_CALL
    assert found["calls"] == found["streamed_calls"] == [[name, arguments]]


def test_what_is_in_an_image_changes_the_answer(real: Real) -> None:
    red, blue = ran("openai", PICTURES, real.base_url, key=KEY, seconds=300.0)
    assert red.split()
    assert red != blue


def test_responses_are_there_where_the_engine_has_them_and_what_it_has_not_is_not_found(real: Real) -> None:
    found = ran("openai", OTHER_ROUTES, real.base_url, key=KEY, seconds=300.0)
    assert found["words"].split()
    assert found["streamed"].split() == found["words"].split()
    assert found["last"] in ("response.completed", "response.incomplete")
    assert found["embeddings"] == ["NotFoundError", "not_supported"]


def test_anthropics_client_talks_where_the_engine_has_its_messages(real: Real) -> None:
    found: dict[str, Any] = ran("anthropic", ANTHROPIC, real.base_url, "glm-tiny-v", key=KEY, seconds=300.0)
    assert found["name"] == "glm-tiny-v"
    assert found["words"].split()
    assert found["stop"] == "max_tokens"
    assert found["streamed"].split() == found["words"].split()
    assert found["errors"] == [["AuthenticationError", "authentication_error"], ["NotFoundError", "not_found_error"]]


def test_litellm_talks_and_names_errors(real: Real) -> None:
    found = ran("litellm", LITELLM, real.base_url, key=KEY, seconds=300.0)
    assert len(found["words"].split()) == 12
    assert found["usage"] == 12
    assert found["streamed"] == found["words"]
    assert found["errors"] == ["AuthenticationError", "NotFoundError"]
