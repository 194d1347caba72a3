"""One question to an OpenAI-compatible endpoint, its answer as it comes (``--ask``), with timings.

With images, and with functions that the model may call.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from selector.errors import EngineError, UsageError
from selector.values import Value

#: Bounds on what an endpoint may send: a line, a whole answer, an error's body, calls in one answer.
LINE_BYTES, ANSWER_CHARACTERS, ERROR_BYTES, CALLS = 2**20, 4 * 2**20, 2**16, 64
#: The largest image that is sent along.
IMAGE_BYTES = 20 * 2**20
_IMAGE_KINDS = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


class ToolCall(Value, frozen=True, kw_only=True):
    """A function that the model calls; ``arguments`` is the JSON that it wrote, as it came."""

    name: str
    arguments: str


class AskResult(Value, frozen=True, kw_only=True):
    """What came back. ``reasoning`` is apart where the engine tells it apart.

    ``time_to_first_token_seconds`` runs from the request; ``decode_tokens_per_second`` counts the tokens
    after the first and is ``None`` for an answer of one. ``pieces`` is in how many the answer came.
    """

    text: str
    reasoning: str
    prompt_tokens: int | None
    completion_tokens: int | None
    time_to_first_token_seconds: float | None
    decode_tokens_per_second: float | None
    finish_reason: str | None
    pieces: int = 0
    tool_calls: tuple[ToolCall, ...] = ()


def image_url(data: bytes) -> str:
    """An image as part of a request: a ``data:`` address.

    Raises:
        UsageError: it is no PNG, JPEG, GIF or WebP, or larger than 20 MiB.
    """
    kind = next((kind for sign, kind in _IMAGE_KINDS if data.startswith(sign)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise UsageError("this is no image that models take", hint="PNG, JPEG, GIF and WebP are")
    if len(data) > IMAGE_BYTES:
        raise UsageError(f"the image is {len(data) / 2**20:.0f} MiB large, {IMAGE_BYTES // 2**20} are the most")
    from base64 import b64encode

    return f"data:{kind};base64,{b64encode(data).decode()}"


def ask(
    base_url: str,
    model: str,
    text: str,
    *,
    images: Sequence[str] = (),
    tools: Sequence[Mapping[str, object]] = (),
    max_tokens: int | None = None,
    temperature: float | None = None,
    on_text: Callable[[str], None] = lambda _: None,
    on_reasoning: Callable[[str], None] = lambda _: None,
    api_key: str | None = None,
    idle_seconds: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
) -> AskResult:
    """Asks ``text`` about ``images`` and hands each piece of the answer to ``on_text``, of its reasoning to the other.

    ``images`` are addresses (:func:`image_url`), ``tools`` functions as OpenAI's API describes them. Comments in the
    stream are passed over, and its end is its end: not every engine sends ``[DONE]``. ``idle_seconds`` is the longest
    silence that is waited for.

    Raises:
        EngineError: it cannot be reached, refuses, breaks off, or sends what is no stream of chunks.
    """
    content: object = text
    if images:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        content = [*parts, {"type": "text", "text": text}]
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if temperature is not None:
        body["temperature"] = temperature
    if tools:
        body["tools"] = list(tools)
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    url = urlsplit(base_url)
    if url.scheme != "http" or url.hostname is None:
        raise UsageError(f"{base_url!r} is no http address")
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=idle_seconds)
    started = clock()
    try:
        with _engines_faults(base_url, idle_seconds):
            connection.request("POST", f"{url.path.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                told = response.read(ERROR_BYTES).decode(errors="replace").strip()
                raise EngineError(f"the engine answered {response.status}: {told[:300] or response.reason}")
        answer = _Answer(started=started, clock=clock, on_text=on_text, on_reasoning=on_reasoning)
        events = _events(response)
        while True:
            with _engines_faults(base_url, idle_seconds):
                chunk = next(events, None)
            if chunk is None:
                return answer.result()
            # Outside: what goes wrong in on_text (nobody reads our output) is not the engine's fault.
            answer.take(chunk)
    finally:
        connection.close()


@contextmanager
def _engines_faults(base_url: str, idle_seconds: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineError(f"the engine was silent for {idle_seconds:.0f} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(
            f"the connection to the engine at {base_url} broke: {error or type(error).__name__}"
        ) from error


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, to ``[DONE]`` or the end."""
    while line := response.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise EngineError("the engine sent a line that is too long")
        if not line.startswith(b"data:"):
            continue  # blank lines, comments (": keepalive"), other fields
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise EngineError(
                f"the engine sent an event that is no JSON: {data[:200].decode(errors='replace')}"
            ) from error
        if isinstance(chunk, dict):
            yield chunk


class _Answer:
    def __init__(
        self,
        *,
        started: float,
        clock: Callable[[], float],
        on_text: Callable[[str], None],
        on_reasoning: Callable[[str], None],
    ) -> None:
        self.started = started
        self.clock = clock
        self.on_text = on_text
        self.on_reasoning = on_reasoning
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.characters = 0
        self.pieces = 0
        self.first: float | None = None
        self.last: float | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.finish_reason: str | None = None
        self.calls: dict[int, list[str]] = {}

    def take(self, chunk: dict[str, Any]) -> None:
        if chunk.get("error") is not None:
            error = chunk["error"]
            told = error.get("message", error) if isinstance(error, dict) else error
            raise EngineError(f"the engine broke off: {str(told)[:300]}")
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.completion_tokens = _count(usage.get("completion_tokens"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        self.finish_reason = choices[0].get("finish_reason") or self.finish_reason
        delta = choices[0].get("delta")
        if isinstance(delta, dict):
            # Two names are in use for the same thing.
            self._piece(delta.get("reasoning_content") or delta.get("reasoning"), self.reasoning)
            self._piece(delta.get("content"), self.text)
            self._calls(delta.get("tool_calls"))

    def _calls(self, pieces: object) -> None:
        """A call comes in pieces: its name first, then its arguments, each with the call's place."""
        for place, piece in enumerate(pieces if isinstance(pieces, list) else ()):
            function = piece.get("function") if isinstance(piece, dict) else None
            if not isinstance(function, dict):
                continue
            index = _count(piece.get("index"))
            call = self.calls.setdefault(place if index is None else index, ["", ""])
            if len(self.calls) > CALLS:
                raise EngineError("the engine's answer does not end")
            for part, key in enumerate(("name", "arguments")):
                told = function.get(key)
                if isinstance(told, str):
                    self._count_in(told)
                    call[part] += told

    def _piece(self, piece: object, into: list[str]) -> None:
        if not isinstance(piece, str) or not piece:
            return
        self._count_in(piece)
        into.append(piece)
        (self.on_text if into is self.text else self.on_reasoning)(piece)

    def _count_in(self, piece: str) -> None:
        self.characters += len(piece)
        if self.characters > ANSWER_CHARACTERS:
            raise EngineError("the engine's answer does not end")
        self.last = self.clock()
        self.first = self.last if self.first is None else self.first
        self.pieces += 1

    def result(self) -> AskResult:
        rate = None
        # An engine may hold back several tokens in a piece: its own count is the better one.
        tokens = self.completion_tokens or self.pieces
        if self.first is not None and self.last is not None and self.last > self.first and tokens > 1:
            rate = (tokens - 1) / (self.last - self.first)
        return AskResult(
            text="".join(self.text),
            reasoning="".join(self.reasoning),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            time_to_first_token_seconds=None if self.first is None else self.first - self.started,
            decode_tokens_per_second=rate,
            finish_reason=self.finish_reason,
            pieces=self.pieces,
            tool_calls=tuple(ToolCall(name=name, arguments=told) for _, (name, told) in sorted(self.calls.items())),
        )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
