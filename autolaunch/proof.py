"""What a served model is asked to prove itself: a stream, a call of a function, an image that it sees."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable
from typing import Literal

from autolaunch.chat import AskResult, ask, image_url
from engines.miniature import TOOL, TOOL_CALL
from selector.errors import EngineError
from selector.values import Value

StepName = Literal["started", "streamed", "tool call", "image"]

QUESTION = "What is the weather in Paris?"
ANSWER_TOKENS, CALL_TOKENS = 32, 96
#: Two of the colours that nobody takes for each other.
COLOURS = ((200, 30, 30), (30, 30, 200))
_SIDE = 112  # four by four tokens of GLM's vision tower


class Step(Value, frozen=True, kw_only=True):
    """One thing that was tried. ``ok`` is ``None`` where it was not, for the reason in ``message``."""

    name: StepName
    ok: bool | None
    message: str
    seconds: float = 0.0


def png(colour: tuple[int, int, int], side: int = _SIDE) -> bytes:
    """A square of one colour, ``side`` pixels wide."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


class Endpoint(Value, frozen=True, kw_only=True):
    """Who is asked, and what of it means anything.

    ``speaks`` is whether its weights are such that words and calls come out (a miniature's are; dummy weights are not).
    """

    base_url: str
    model: str
    api_key: str | None = None
    images: bool = False
    speaks: bool = True

    def ask(self, text: str, *, tokens: int, images: tuple[str, ...] = (), tools: bool = False) -> AskResult:
        return ask(
            self.base_url,
            self.model,
            text,
            images=images,
            tools=(TOOL,) if tools else (),
            max_tokens=tokens,
            temperature=0.0,
            api_key=self.api_key,
        )


def streamed(endpoint: Endpoint) -> tuple[Step, AskResult | None]:
    """A stream of more than one piece that ends with a reason."""

    def prove() -> tuple[bool, str, AskResult]:
        result = endpoint.ask("hello", tokens=ANSWER_TOKENS)
        tokens = result.completion_tokens
        whole = result.finish_reason is not None and (tokens or 0) > 1
        if not whole:
            return False, f"the stream ended with reason {result.finish_reason} after {tokens} tokens", result
        if result.pieces < 2:
            return False, f"{tokens} tokens came in one piece: something on the way holds them back", result
        if endpoint.speaks and not (result.text.strip() or result.reasoning.strip()):
            return False, f"{tokens} tokens came without a word", result
        return True, f"{tokens} tokens in {result.pieces} pieces", result

    return _tried("streamed", prove)


def called(endpoint: Endpoint, *, parsed: bool) -> Step:
    """The function that a miniature is made to call, out of the engine's own parser."""
    if not endpoint.speaks:
        return Step(name="tool call", ok=None, message="dummy weights call nothing")
    if not parsed:
        return Step(name="tool call", ok=None, message="no parser of this engine is known for the model")

    def prove() -> tuple[bool, str, AskResult]:
        result = endpoint.ask(QUESTION, tokens=CALL_TOKENS, tools=True)
        name, arguments = TOOL_CALL
        found = [call for call in result.tool_calls if call.name == name and _object(call.arguments) == arguments]
        if len(found) == 1 and len(result.tool_calls) == 1:
            shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            return True, f"{name}({shown})", result
        if result.tool_calls:
            return False, f"the call came as {result.tool_calls[0].name}({result.tool_calls[0].arguments[:80]})", result
        return False, f"no call was parsed out of {result.text[:80]!r}", result

    return _tried("tool call", prove)[0]


def seen(endpoint: Endpoint) -> Step:
    """Two images that give different answers to one question."""
    if not endpoint.images:
        return Step(name="image", ok=None, message="the model takes none")

    def prove() -> tuple[bool, str, AskResult]:
        red, blue = (
            endpoint.ask("what is this", tokens=ANSWER_TOKENS, images=(image_url(png(colour)),)) for colour in COLOURS
        )
        told = [result.text + result.reasoning for result in (red, blue)]
        if endpoint.speaks and told[0] == told[1]:
            return False, "two images gave the same answer", blue
        return True, f"{blue.prompt_tokens} prompt tokens with an image of {_SIDE} by {_SIDE}", blue

    return _tried("image", prove)[0]


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _tried(name: StepName, prove: Callable[[], tuple[bool, str, AskResult]]) -> tuple[Step, AskResult | None]:
    began = time.monotonic()
    try:
        ok, message, result = prove()
    except EngineError as error:
        return Step(name=name, ok=False, message=error.message, seconds=time.monotonic() - began), None
    return Step(name=name, ok=ok, message=message, seconds=time.monotonic() - began), result
