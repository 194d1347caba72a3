"""FAKE: an engine that costs as little as one can, for ``scripts/bench_gateway``.

    python -m tests.fakes.upstream --port N [--every SECONDS]

It answers a chat completion at once, or streams ``max_tokens`` events, one every SECONDS (0: all at once). An event has
the moment at which it was sent in it, by the machine's monotonic clock, in nanoseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

import httptools
import uvloop

ANSWER = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 40, "total_tokens": 80},
    }
).encode()
WHOLE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + str(len(ANSWER)).encode() + b"\r\n\r\n"
) + ANSWER
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = (
    'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"fake","choices":'
    '[{"index":0,"delta":{"content":"%d "},"finish_reason":%s}]}\n\n'
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(*, last: bool) -> bytes:
    return chunk((EVENT % (time.monotonic_ns(), '"stop"' if last else "null")).encode())


class Answering(asyncio.Protocol):
    """One connection."""

    every_seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.left = 0
        self.next_at = 0.0

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        asked = json.loads(self.body or b"{}")
        self.body = b""
        if not asked.get("stream"):
            self.transport.write(WHOLE)
            return
        self.left = int(asked["max_tokens"])
        self.transport.write(HEAD)
        self.next_at = asyncio.get_running_loop().time()
        self.stream()

    def stream(self) -> None:
        loop = asyncio.get_running_loop()
        while self.left > 0 and not self.transport.is_closing():
            self.left -= 1
            self.transport.write(event(last=self.left == 0))
            if self.left == 0:
                self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            elif self.every_seconds:
                self.next_at += self.every_seconds  # of the clock, not of the last event: late ones do not add up
                loop.call_at(self.next_at, self.stream)
                return


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--every", type=float, default=0.0)
    options = parser.parse_args()
    Answering.every_seconds = options.every
    uvloop.run(serve(options.port))


if __name__ == "__main__":
    main()
