"""What real engines sent (``tests/data/wire``), and an answer's way through the mender."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from autolaunch.daemon.gateway.documents import Dialect
from autolaunch.daemon.gateway.mending import Mender
from selector.facts import EngineName

DATA = Path(__file__).resolve().parents[1] / "data" / "wire"
ENGINES: dict[str, EngineName] = {"mlx-lm": "mlx", "mlx-vlm": "mlx", "vllm-vision": "vllm"}
ROUTES: dict[str, Dialect] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "messages",
    "/v1/models": "models",
}
ASKED = "the-name-that-clients-know"


class Recording(NamedTuple):
    """An exchange. ``engine_folder`` is where it lies, ``request`` the body as it was sent."""

    engine_folder: str
    exchange: str
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    dialect: Dialect
    request: bytes
    streamed: bool

    @property
    def engine(self) -> EngineName:
        name = self.engine_folder.removesuffix("-bare").rpartition("-")[0]
        return ENGINES.get(name, name)  # type: ignore[arg-type]  # the others' folders are called as they are

    @property
    def served(self) -> str:
        """What the engine was asked for: the name it serves, or the path it was started with."""
        vision = "-v" if "vl" in self.engine_folder.replace("vllm", "") or "vision" in self.engine_folder else ""
        folder = "/home/user/.cache/autolaunch/models/" if self.engine_folder.endswith("-bare") else ""
        return f"{folder}glm-tiny{vision}"

    def mender(self) -> Mender:
        return Mender(
            engine=self.engine,
            asked=ASKED,
            served=self.served,
            dialect=self.dialect,
            streamed=self.streamed,
            request=self.request,
        )


@cache
def recordings() -> tuple[Recording, ...]:
    return tuple(
        recording(path.parent.name, path.stem) for path in sorted(DATA.glob("*/*.http")) if path.stat().st_size
    )


@cache
def recording(engine_folder: str, exchange: str) -> Recording:
    head, _, body = (DATA / engine_folder / f"{exchange}.http").read_bytes().partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    sent: dict[str, Any] = json.loads((DATA / engine_folder / "requests.json").read_bytes())[exchange]
    asked = sent["body"]
    return Recording(
        engine_folder=engine_folder,
        exchange=exchange,
        status=int(status.split()[1]),
        headers=[(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)],
        body=body,
        dialect=ROUTES.get(sent["path"], "other"),
        request=asked.encode() if isinstance(asked, str) else json.dumps(asked).encode(),
        streamed=isinstance(asked, dict) and asked.get("stream") is True,
    )


def streamed(mender: Mender, chunks: Iterable[bytes]) -> bytes:
    """The whole stream that a client gets, the engine having ended in order."""
    return b"".join(mender.feed(chunk) for chunk in chunks) + mender.end()


def answer(of: Recording) -> tuple[int, list[tuple[bytes, bytes]], bytes, Mender]:
    """What a client gets of a recorded exchange."""
    mender = of.mender()
    status, headers = mender.head(of.status, of.headers)
    if mender.streams:
        return status, headers, streamed(mender, (of.body,)), mender
    status, body = mender.whole(of.status, of.body)
    return status, headers, body, mender


def events(stream: bytes) -> list[dict[str, Any]]:
    """The documents of a stream, read as a strict client would: every line is known, every event has data."""
    found = []
    for event in stream.split(b"\n\n")[:-1]:
        data = []
        for line in event.split(b"\n"):
            assert line.startswith((b"data: ", b"event: ", b":")), line
            if line.startswith(b"data: "):
                data.append(line[6:])
        if data and data != [b"[DONE]"]:
            found.append(json.loads(b"\n".join(data)))
    return found
