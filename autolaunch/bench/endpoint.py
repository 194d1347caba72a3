"""The endpoint that is measured: one question to it, by which it is known how many tokens its words are."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from autolaunch.bench.load import prompt
from selector.errors import EngineError, UsageError
from selector.values import Value, readable

#: A loaded engine may take its time for a first answer.
ASK_SECONDS = 300.0
_ANSWER_BYTES = 4 << 20
_SAMPLE_WORDS = 200
_KEY_BYTES = 4096


class Endpoint(Value, frozen=True, kw_only=True):
    """``base_url`` ends in ``/v1``; ``key`` is shown nowhere."""

    base_url: str
    model: str
    key: str | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: Annotated[int, Meta(ge=1, le=2**31)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    usage: _Usage


def checked_url(url: str) -> str:
    """``url`` as it is asked, ending in ``/v1``.

    Raises:
        UsageError: it is no address of http or https, or holds a password.
    """
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no address of an endpoint", hint="http://127.0.0.1:8000/v1, for instance")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "an endpoint's address holds neither a user nor a query", hint="--api-key-file FILE is the key"
        )
    place = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{place}/v1"


def read_key(path: Path) -> str:
    """The key in a file, less the space around it.

    Raises:
        UsageError: there is none that could be sent.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        key = content.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key.isprintable() or " " in key or not 0 < len(key) < _KEY_BYTES:
        raise UsageError(f"{path} holds no key", hint="a key is one line of printable characters, and nothing else")
    if ":sha256:" in key:
        raise UsageError(
            f"{path} holds hashes of keys, and not a key",
            hint="that file is the gateway's; a client's key was shown when autolaunch keys add made it",
        )
    return key


def words_per_token(endpoint: Endpoint, seed: int, *, timeout_seconds: float = ASK_SECONDS) -> float:
    """How many of our words are a token to this model, by one short question (which wakes it, too).

    Raises:
        EngineError: it does not answer so.
    """
    body = {"model": endpoint.model, "prompt": prompt(_SAMPLE_WORDS, seed), "max_tokens": 1, "temperature": 0}
    content = _asked(endpoint, json.dumps(body).encode(), timeout_seconds)
    try:
        answer = msgspec.json.decode(content, type=readable(_Answer))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{endpoint.base_url} does not say how many tokens a prompt has: {error}") from error
    return _SAMPLE_WORDS / answer.usage.prompt_tokens


def _asked(endpoint: Endpoint, body: bytes, timeout_seconds: float) -> bytes:
    url = urlsplit(endpoint.base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json"}
    if endpoint.key is not None:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    connection = kind(url.hostname or "", url.port, timeout=timeout_seconds)
    try:
        connection.request("POST", f"{url.path}/completions", body, headers)
        response = connection.getresponse()
        content = response.read(_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(
            f"{endpoint.base_url} does not answer: {reason}", hint="autolaunch ps tells what is kept up here"
        ) from error
    finally:
        connection.close()
    if response.status in (401, 403):
        hint = "--api-key-file FILE is a file with the key of a client; autolaunch keys add makes one"
        raise UsageError(f"{endpoint.base_url} wants {'a' if endpoint.key is None else 'another'} key", hint=hint)
    if response.status != 200 or len(content) > _ANSWER_BYTES:
        said = content[:300].decode(errors="replace").strip()
        raise EngineError(f"{endpoint.base_url} answers a question with {response.status}: {said}")
    return content
