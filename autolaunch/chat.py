"""One question to an OpenAI-compatible endpoint, its answer as it comes (``--ask``), with timings."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from selector.errors import EngineError, UsageError
from selector.values import Value

#: Bounds on what an endpoint may send: a line, a whole answer, an error's body.
LINE_BYTES, ANSWER_CHARACTERS, ERROR_BYTES = 2**20, 4 * 2**20, 2**16


class AskResult(Value, frozen=True, kw_only=True):
    """What came back. ``reasoning`` is apart where the engine tells it apart.

    ``time_to_first_token_seconds`` runs from the request; ``decode_tokens_per_second`` counts the tokens
    after the first and is ``None`` for an answer of one.
    """

    text: str
    reasoning: str
    prompt_tokens: int | None
    completion_tokens: int | None
    time_to_first_token_seconds: float | None
    decode_tokens_per_second: float | None
    finish_reason: str | None


def ask(
    base_url: str,
    model: str,
    text: str,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    on_text: Callable[[str], None] = lambda _: None,
    api_key: str | None = None,
    idle_seconds: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
) -> AskResult:
    """Asks ``text`` and hands each piece of the answer to ``on_text``.

    Comments in the stream are passed over, and its end is its end: not every engine sends ``[DONE]``.
    ``idle_seconds`` is the longest silence that is waited for.

    Raises:
        EngineError: it cannot be reached, refuses, breaks off, or sends what is no stream of chunks.
    """
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if temperature is not None:
        body["temperature"] = temperature
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
        answer = _Answer(started=started, clock=clock, on_text=on_text)
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
    def __init__(self, *, started: float, clock: Callable[[], float], on_text: Callable[[str], None]) -> None:
        self.started = started
        self.clock = clock
        self.on_text = on_text
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.characters = 0
        self.pieces = 0
        self.first: float | None = None
        self.last: float | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.finish_reason: str | None = None

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

    def _piece(self, piece: object, into: list[str]) -> None:
        if not isinstance(piece, str) or not piece:
            return
        self.characters += len(piece)
        if self.characters > ANSWER_CHARACTERS:
            raise EngineError("the engine's answer does not end")
        self.last = self.clock()
        self.first = self.last if self.first is None else self.first
        self.pieces += 1
        into.append(piece)
        if into is self.text:
            self.on_text(piece)

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
        )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
