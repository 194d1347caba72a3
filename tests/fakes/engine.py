"""A FAKE engine: no model, a small HTTP server that misbehaves on request. Standard library only.

    python engine.py --port N [--mode MODE] [--name NAME] [--pids FILE] [--say LINE]… [--context N [--fits N]]

With a --context above what --fits, it says so as vLLM does, and exits with code 1.

It answers /health, /v1/models and chat completions (streamed or not) with fixed words. MODE:

    ready         answers at once
    exit          prints what --say gives and exits with code 3
    stall         listens and never answers
    silent        never listens, does nothing
    deaf          ready, and ignores SIGTERM
    children      ready, with a child, and a grandchild in a session of its own whose parent has gone
    orphan        as children, then exits with code 4 and leaves them
    flood         prints without end, then is ready all the same
    longline      prints one line of 10 MB, then is ready
    refuse        /health is 200, completions are 500
    loading       503 three times, then ready
    unfinished    its streams end without [DONE], after comments
    broken        its streams end in an error event
    oom           prints what vLLM prints when a GPU's memory runs out, and exits with code 1
    dies          ready; at its second completion it runs out of memory as above
    hangs         ready; /health is 200 ever after, and completions after the first never answer
    worker        ready, with a child that calls itself VLLM::Worker_TP0
    slow          prints a line every tenth of a second for two seconds, then ready
    closes        listens, takes a connection, closes its port, and exits with code 1 a moment later
    calls         thinks aloud (reasoning_content) and calls two tools, in pieces where it streams
    echo          its words are the SHA-256 of the request's messages, as sorted JSON without blanks
    steady        a word every fiftieth of a second, for a minute or as many as max_tokens says, streamed or not;
                  it stops when its client leaves, and says so
    headfirst     as steady, but of a stream the head comes a second and a half before the first word

/left tells what there was of completions: asked, left by their clients, and under way now. With FAKE_ENGINE_KEY in its
environment it answers nobody without that key but on /health and /left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: As torch and vLLM say it.
OUT_OF_MEMORY = (
    "(EngineCore_DP0 pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 79.11 GiB of which 1.20 GiB is free."
)
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len ({context}), (8.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.0 GiB). Based on the available memory, the estimated "
    "maximum model length is {fits}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
)
WORDS = ("Hello", " from", " a", " fake", ".")
#: How long before its first word a head comes.
HEAD_SECONDS = 1.5
THOUGHTS = ("Köln, ", "and ", "Paris. ", "Ask for both.")
#: The identifier, the name and the arguments of each call, in the pieces that a stream has them in.
CALLS = (
    ("call_1", "get_weather", ('{"city"', ': "Kö', 'ln"}')),
    ("call_2", "get_weather", ('{"city": ', '"Paris \\"\\u00e9\\n"', "}")),
)


class Handler(BaseHTTPRequestHandler):
    mode = "ready"
    name = "fake"
    asked = 0
    left = 0
    now = 0
    counting = threading.Lock()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": self.name, "object": "model"}]})
        elif self.path == "/left":
            self.answer(200, {"left": self.left, "asked": self.asked, "now": self.now})
        else:
            self.answer(404, {"error": "no such page"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = os.environ.get("FAKE_ENGINE_KEY")
        if key is not None and self.headers.get_all("Authorization") != [f"Bearer {key}"]:
            self.answer(401, {"error": "not with this key"})
            return
        self.count(asked=1, now=1)
        try:
            self.complete(body)
        finally:
            self.count(now=-1)

    def complete(self, body: dict[str, Any]) -> None:
        if self.mode == "stall" or (self.mode == "hangs" and self.asked > 1):
            time.sleep(3600)
        if self.mode == "dies" and self.asked > 1:
            say(OUT_OF_MEMORY)
            os._exit(1)
        if self.mode == "refuse":
            self.answer(500, {"error": "[addmm] bfloat16 is not supported on the CPU"})
        elif self.mode == "loading" and self.asked <= 3:
            self.answer(503, {"error": "loading"})
        elif body.get("model") != self.name:
            self.answer(404, {"error": f"no model {body.get('model')}"})
        elif self.mode == "calls":
            self.call(streamed=body.get("stream", False))
        elif self.mode == "echo":
            said = json.dumps(body["messages"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            message: dict[str, object] = {"role": "assistant", "content": hashlib.sha256(said.encode()).hexdigest()}
            self.answer(200, completion(message, "stop"))
        elif self.mode in ("steady", "headfirst"):
            self.steady(body.get("max_tokens", 3000), streamed=body.get("stream", False))
        elif body.get("stream"):
            self.stream()
        else:
            words = WORDS[: body.get("max_tokens", len(WORDS))]
            message = {"role": "assistant", "content": "".join(words)}
            usage = {"prompt_tokens": 3, "completion_tokens": len(words)}
            self.answer(200, {"choices": [{"index": 0, "message": message}], "usage": usage})

    def answer(self, status: int, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.mode == "unfinished":
            self.wfile.write(b": keepalive 1/3\n\n")
        for word in WORDS:
            self.event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            if self.mode == "broken":
                self.event({"error": {"message": "the worker died"}})
                return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(WORDS)}})
        if self.mode != "unfinished":
            self.wfile.write(b"data: [DONE]\n\n")

    def call(self, *, streamed: bool) -> None:
        """Two calls of tools after a thought."""
        whole = [
            {"id": each, "type": "function", "function": {"name": name, "arguments": "".join(pieces)}}
            for each, name, pieces in CALLS
        ]
        if not streamed:
            message = {"role": "assistant", "content": None, "reasoning_content": "".join(THOUGHTS)}
            self.answer(200, completion({**message, "tool_calls": whole}, "tool_calls"))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.delta({"role": "assistant", "content": None})
        for thought in THOUGHTS:
            self.delta({"reasoning_content": thought})
        for index, (each, name, pieces) in enumerate(CALLS):
            begun = {"index": index, "id": each, "type": "function", "function": {"name": name, "arguments": ""}}
            self.delta({"tool_calls": [begun]})
            for piece in pieces:
                self.delta({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        self.delta({}, "tool_calls")
        self.wfile.write(b"data: [DONE]\n\n")

    def steady(self, words: int, *, streamed: bool) -> None:
        if streamed:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            if self.mode == "headfirst":
                time.sleep(HEAD_SECONDS)  # the prompt is read meanwhile, as engines do behind their heads
        try:
            for _ in range(words):
                if streamed:
                    self.delta({"content": "on "})
                elif select.select((self.connection,), (), (), 0)[0]:
                    raise ConnectionResetError  # nothing more comes of a client that waits, but its end
                time.sleep(0.02)
            if streamed:
                self.delta({}, "stop")
                self.wfile.write(b"data: [DONE]\n\n")
            else:
                self.answer(200, completion({"role": "assistant", "content": "on " * words}, "stop"))
        except OSError:
            self.count(left=1)
            say("a client left")

    @classmethod
    def count(cls, *, asked: int = 0, left: int = 0, now: int = 0) -> None:
        with cls.counting:
            cls.asked, cls.left, cls.now = cls.asked + asked, cls.left + left, cls.now + now

    def delta(self, delta: dict[str, object], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.name}
        self.event({**head, "choices": [choice]})

    def event(self, value: dict[str, object]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")


class Server(ThreadingHTTPServer):
    #: Clients that come all at once are not to wait for the system to ask again.
    request_queue_size = 256


def completion(message: dict[str, object], finish: str) -> dict[str, object]:
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": Handler.name}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {**head, "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def note(pids: str | None) -> None:
    if pids:
        with open(pids, "a", encoding="utf-8") as file:  # noqa: PTH123 - after a fork, as little as can be
            file.write(f"{os.getpid()}\n")


def make_children(pids: str | None) -> None:
    """A child in our session, and a grandchild in its own whose parent exits at once. Both are deaf."""
    for leave in (False, True):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if leave:
                os.setsid()
                if os.fork() != 0:
                    os._exit(0)
            note(pids)
            time.sleep(3600)
            os._exit(0)
    while pids and len(open(pids, encoding="utf-8").read().split()) < 3:  # noqa: PTH123, SIM115
        time.sleep(0.01)


def make_worker(pids: str | None) -> None:
    """A child by the title of one of vLLM's."""
    pid = os.fork()
    if pid == 0:
        code = "import time; time.sleep(3600)"
        os.execv(sys.executable, ("VLLM::Worker_TP0", "-c", code))  # noqa: S606 - no shell is meant
    if pids:
        with open(pids, "a", encoding="utf-8") as file:  # noqa: PTH123 - as above
            file.write(f"{pid}\n")


def flood() -> None:
    for _ in range(40_000):
        say("\x1b[31m\x1b]0;title\x07a line of a flood \x00\x08" + "x" * 60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", default="ready")
    parser.add_argument("--name", default="fake")
    parser.add_argument("--pids")
    parser.add_argument("--say", action="append", default=[])
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--fits", type=int, default=0)
    options = parser.parse_args()
    note(options.pids)
    for line in options.say:
        say(line)
    begin(options)
    Handler.mode, Handler.name = options.mode, options.name
    server = Server(("127.0.0.1", options.port), Handler)
    say("listening")
    server.serve_forever()


def begin(options: argparse.Namespace) -> None:  # noqa: C901 - one branch a mode
    """What the mode does before anything listens, which may be the end."""
    mode = options.mode
    if mode == "exit":
        raise SystemExit(3)
    if mode == "oom" or 0 < options.fits < options.context:
        say(OUT_OF_MEMORY if mode == "oom" else TOO_LONG.format(context=options.context, fits=options.fits))
        raise SystemExit(1)
    if mode == "slow":
        for number in range(20):
            say(f"shard {number + 1} of 20")
            time.sleep(0.1)
    if mode == "worker":
        make_worker(options.pids)
    if mode == "silent":
        time.sleep(3600)
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode in {"children", "orphan"}:
        make_children(options.pids)
    if mode == "orphan":
        raise SystemExit(4)
    if mode == "closes":
        with socket.create_server(("127.0.0.1", options.port)) as listening:
            listening.accept()
        time.sleep(0.3)
        raise SystemExit(1)
    if mode == "flood":
        threading.Thread(target=flood, daemon=True).start()
    if mode == "longline":
        say("y" * 10_000_000)


if __name__ == "__main__":
    main()
