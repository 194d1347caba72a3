"""Clients of a gateway: single requests, and streams that are read in threads and looked at to the last byte."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from prometheus_client.parser import text_string_to_metric_families

CHAT = "/v1/chat/completions"
#: Of answers: the machine may have much else to do.
ANSWER_SECONDS = 60.0


class Answer(NamedTuple):
    """``headers`` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def code(self) -> str:
        """Of an error in OpenAI's form."""
        return str(self.document["error"]["code"])


class Asker:
    """One kept-alive connection to a port of this machine."""

    def __init__(self, port: int, *, seconds: float = ANSWER_SECONDS, host: str = "127.0.0.1") -> None:
        self.connection = http.client.HTTPConnection(host, port, timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.connection.request(method, path, body, dict(headers or {}))

    def answer(self) -> Answer:
        response = self.connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())


def get(port: int, path: str, *, method: str = "GET", **headers: str) -> Answer:
    """``headers`` have ``_`` for ``-``."""
    with Asker(port) as asker:
        asker.send(method, path, headers=named(headers))
        return asker.answer()


def ask(port: int, *, model: str = "a", headers: Mapping[str, str] | None = None, **more: object) -> Answer:
    """A chat completion; ``more`` are fields of it."""
    with Asker(port) as asker:
        asker.send("POST", CHAT, chat(model, **more), headers)
        return asker.answer()


def chat(model: str = "a", **more: object) -> bytes:
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **more}
    return json.dumps(asked).encode()


def named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


class Told(NamedTuple):
    """What a stream told, which was well-formed: its pieces, why it finished, and its error where it had one."""

    words: list[str]
    finish: str | None
    error: dict[str, Any] | None


class Stream:
    """A streamed chat completion of so many words, read by a thread from the start."""

    def __init__(
        self, port: int, *, model: str = "a", words: int = 3000, seconds: float = 90.0, **more: object
    ) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.data = bytearray()
        self.fault: Exception | None = None
        headers = more.pop("headers", None)
        self._asker = Asker(port, seconds=seconds)
        self._asker.send("POST", CHAT, chat(model, stream=True, max_tokens=words, **more), headers)  # type: ignore[arg-type]  # a test's own
        self._socket: socket.socket = self._asker.connection.sock  # an answer that closes takes it from the connection
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            response = self._asker.connection.getresponse()
            self.headers = {name.lower(): value for name, value in response.getheaders()}
            self.status = response.status
            while piece := response.read1(65536):
                self.data += piece
        except (OSError, http.client.HTTPException) as error:
            self.fault = error
        finally:
            self._asker.connection.close()

    @property
    def words(self) -> int:
        """How many have come."""
        return self.data.count(b'"content":') + self.data.count(b'"content" :')

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def leave(self) -> None:
        """Hangs up."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)

    def told(self, seconds: float = 60.0) -> Told:
        """Waits for the end, and holds that all was in order: the framing, every event, one end and nothing behind."""
        self._thread.join(seconds)
        assert self.over, f"no end came: {bytes(self.data[-500:])!r}"
        assert self.fault is None, (self.fault, bytes(self.data[-500:]))
        assert self.status == 200, (self.status, bytes(self.data))
        assert self.headers["content-type"].startswith("text/event-stream")
        return read(bytes(self.data))


def read(data: bytes) -> Told:
    """A stream's body, which has to be well-formed."""
    *events, rest = data.split(b"\n\n")
    assert rest == b""
    assert events.pop() == b"data: [DONE]"
    words: list[str] = []
    finish: str | None = None
    error: dict[str, Any] | None = None
    for event in events:
        assert error is None, "nothing comes after an error"
        assert event.startswith(b"data: {"), event
        document = json.loads(event.removeprefix(b"data: "))
        error = document.get("error")
        for choice in document.get("choices", ()):
            if piece := choice["delta"].get("content"):
                words.append(piece)
            finish = choice.get("finish_reason") or finish
    assert error is None or {"message", "type", "code"} <= error.keys()
    return Told(words, finish, error)


def metric(port: int, name: str, **labels: str) -> float:
    """The sum of the samples of ``/metrics`` by this name that have these labels."""
    page = get(port, "/metrics").body.decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    assert samples, page
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


def tells_to_come_again(answer: Answer) -> bool:
    """Whether it tells how far a load is; in the moment after an engine's end it tells of that."""
    assert answer.status == 503
    assert answer.code in ("model_loading", "engine_died")
    assert int(answer.headers["retry-after"]) >= 1
    return answer.code == "model_loading" and bool(answer.document["load"]["stage"])


def until(true: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)  # what is waited for is another process's


def left(port: int) -> dict[str, int]:
    """What a fake engine tells of its completions: asked, left, and under way now."""
    found: dict[str, int] = get(port, "/left").document
    return found
