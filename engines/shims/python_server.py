"""The servers that come with Python engines, for the programs of this machine and with what they leave out.

    python -P python_server.py mlx-lm [OPTIONS OF mlx_lm.server]
    python -P python_server.py mlx-vlm [OPTIONS OF mlx_vlm.server]
    python -P python_server.py transformers serve NAME [OPTIONS OF transformers serve]

Run by its path, with the interpreter of the engine's environment: it imports the engine and nothing of autolaunch,
and nothing imports it.

All of them answer web pages: mlx-vlm 0.7.10 every origin, with credentials, under every host name, mlx-lm 0.32 any
page whose name points here, and Transformers 5.23 runs what a form of any page posts. None has an option against
that. Here a request passes whose ``Host`` is this address (a name that somebody's DNS points at the loopback is none)
and that comes from no foreign page.

mlx-lm loads whatever folder a request names, and lists the path of its own; it serves the one it was started with.

Transformers 5.23 besides ends its streams without ``[DONE]``, calls its model ``NAME@main``, lists none when it
serves a folder, loads and unloads models for whoever asks (``/load_model``, ``/reset``), leaves GLM's tool calls and
reasoning in the text (its parser has no template for them; one can be given), and cannot be told how much of each
device it may fill. All of that is mended here; ``AUTOLAUNCH_MAX_MEMORY`` holds ``DEVICE=BYTES,…``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class Gate:
    """Lets in what has our ``Host``, no foreign ``Origin``, and is nothing that a browser calls cross-site."""

    def __init__(self, *, host: str, port: str) -> None:
        self.names = LOOPBACK_NAMES | {host.strip("[]").lower()}
        self.port = port

    def lets_in(self, headers: Iterable[tuple[str, str]]) -> bool:
        values: dict[str, list[str]] = {}
        for name, value in headers:
            values.setdefault(name.lower(), []).append(value.strip().lower())
        if any(site not in {"same-origin", "none"} for site in values.get("sec-fetch-site", [])):
            return False
        hosts = values.get("host", [])
        if len(hosts) != 1 or _split(hosts[0])[0] not in self.names:
            return False
        return all(self._is_ours(origin) for origin in values.get("origin", []))

    def _is_ours(self, origin: str) -> bool:
        scheme, _, place = origin.partition("://")
        name, port = _split(place)
        return scheme == "http" and name in self.names and port == self.port


FOREIGN = {"error": "this server answers programs of its own machine, under its own address"}


class LocalOnly:
    """ASGI middleware: 403 for what the gate does not let in."""

    def __init__(self, app: _App, *, host: str, port: str) -> None:
        self.app = app
        self.gate = Gate(host=host, port=port)

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan" or self.gate.lets_in(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(send, 403, FOREIGN)


def _split(place: str) -> tuple[str, str]:
    """``localhost:8000`` or ``[::1]:8000`` as a name and a port (80 where none is given)."""
    if place.startswith("["):
        name, _, rest = place[1:].partition("]")
        return name, rest.removeprefix(":") or "80"
    name, _, port = place.partition(":")
    return name, port or "80"


def option(argv: list[str], name: str, otherwise: str) -> str:
    """The value of an option, as argparse takes it: the last one counts."""
    value = otherwise
    for place, token in enumerate(argv):
        if token == name and place + 1 < len(argv):
            value = argv[place + 1]
        elif token.startswith(f"{name}="):
            value = token.partition("=")[2]
    return value


class OneModel:
    """ASGI middleware: one model under its own name, whole streams, and nothing that loads or unloads models."""

    def __init__(self, app: _App, *, name: str) -> None:
        self.app = app
        self.name = name
        self.since = int(time.time())

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] in {"/load_model", "/reset"}:
            await _answer(send, 403, {"error": "this server serves one model, from its start to its end"})
        elif scope["path"] == "/v1/models":
            await _answer(send, 200, model_list(self.name, self.since))
        elif scope["path"] == "/v1/chat/completions":
            await self.app(scope, receive, _Mended(send, self.name).send)
        else:
            await self.app(scope, receive, send)


class _Mended:
    """The messages of one answer on their way to the client."""

    def __init__(self, send: _Send, name: str) -> None:
        self.pass_on = send
        self.name = name
        self.start: _Message | None = None
        self.streams = False
        self.body = b""

    async def send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self.streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
            if self.streams:
                await self.pass_on(message)
            else:
                self.start = message
        elif message["type"] != "http.response.body":
            await self.pass_on(message)
        elif self.streams:
            await self._event_bytes(message)
        else:
            await self._whole(message)

    async def _event_bytes(self, message: _Message) -> None:
        more = message.get("more_body", False)
        *events, self.body = (self.body + message.get("body", b"")).split(b"\n\n")
        if not more:
            events = [event for event in (*events, self.body) if event.strip()]
            events.append(b"data: [DONE]")
        told = b"".join(self._event(event) + b"\n\n" for event in events)
        if told or not more:
            await self.pass_on({"type": "http.response.body", "body": told, "more_body": more})

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return event
        try:
            return b"data: " + self._renamed(event[6:])
        except ValueError:
            # It writes an error's text between quotes as it is, quotes and line ends included.
            text = event[6:].decode(errors="replace").removeprefix('{"error": "').removesuffix('"}')
            return b"data: " + json.dumps({"error": {"message": text}}).encode()

    async def _whole(self, message: _Message) -> None:
        self.body += message.get("body", b"")
        if message.get("more_body", False):
            return
        try:
            body = self._renamed(self.body)
        except ValueError:
            body = self.body
        assert self.start is not None  # noqa: S101 - ASGI: the start comes first
        headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.pass_on({**self.start, "headers": headers})
        await self.pass_on({"type": "http.response.body", "body": body})

    def _renamed(self, text: bytes) -> bytes:
        """The JSON object with the model's own name; a bare error becomes an object, as OpenAI's are.

        Raises:
            ValueError: it is no JSON.
        """
        value = json.loads(text)
        if isinstance(value, dict):
            if "model" in value:
                value["model"] = self.name
            if isinstance(value.get("error"), str):
                value["error"] = {"message": value["error"]}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def model_list(name: str, since: int) -> dict[str, object]:
    """What /v1/models says of the one model that is served."""
    card = {"id": name, "object": "model", "created": since, "owned_by": "autolaunch"}
    return {"object": "list", "data": [card]}


async def _answer(send: _Send, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def guarded(app: Any, argv: list[str], otherwise: str) -> None:
    """Puts the guard before a Starlette application. ``otherwise`` is the engine's own default port."""
    app.user_middleware = [each for each in app.user_middleware if each.cls.__name__ != "CORSMiddleware"]
    # Added last it stands first.
    app.add_middleware(LocalOnly, host=option(argv, "--host", "127.0.0.1"), port=option(argv, "--port", otherwise))


# By name: type checkers and import rules of the tool's own environment do not have the engines.


def mlx_lm(argv: list[str]) -> None:
    sys.argv = ["mlx_lm.server", *argv]
    server: Any = importlib.import_module("mlx_lm.server")
    gate = Gate(host=option(argv, "--host", "127.0.0.1"), port=option(argv, "--port", "8080"))
    name = option(argv, "--model", "")
    for method in ("do_GET", "do_POST", "do_OPTIONS"):
        setattr(server.APIHandler, method, behind(gate, getattr(server.APIHandler, method)))
    server.APIHandler.handle_models_request = lambda self: _json(self, 200, model_list(name, self.created))
    load = server.ModelProvider.load

    def load_own(self: Any, model: str, adapter: str | None = None, draft: str | None = None) -> Any:
        if model not in {"default_model", name} or adapter is not None or draft not in {None, "default_model"}:
            raise ValueError(f"this server serves {name}, and no other model")
        return load(self, model, adapter, draft)

    server.ModelProvider.load = load_own
    server.main()


def behind(gate: Gate, method: Callable[[Any], None]) -> Callable[[Any], None]:
    """A handler's method, for what the gate lets in."""

    def guarded_method(self: Any) -> None:
        if gate.lets_in(self.headers.items()):
            method(self)
        else:
            _json(self, 403, FOREIGN)

    return guarded_method


def _json(handler: Any, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    handler.close_connection = True  # a body that was not read would be taken for the next request
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def mlx_vlm(argv: list[str]) -> None:
    sys.argv = ["mlx_vlm.server", *argv]
    server: Any = importlib.import_module("mlx_vlm.server")
    guarded(server.app, argv, "8080")
    server.main()


#: How GLM-4.5 to 4.7 write an answer, in the terms of transformers.utils.chat_parsing.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "reasoning_content": {"open_pattern": r"\s*<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>(?P<name>[^<\n]+)\s*",
            "close": "</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"\s*(?:<\|user\|>|<\|observation\|>|<\|endoftext\|>)", "content": "text"},
    },
}
ARCHITECTURES = ("glm4_moe", "glm4v_moe")


def transformers(argv: list[str]) -> None:
    cli: Any = importlib.import_module("transformers.cli.transformers")
    utils: Any = importlib.import_module("transformers.cli.serving.utils")
    serve: Any = importlib.import_module("transformers.cli.serving.server")
    utils._RESPONSE_TEMPLATE_FALLBACKS[ARCHITECTURES] = RESPONSE_TEMPLATE  # noqa: SLF001 - it has no public place
    limits = os.environ.pop("AUTOLAUNCH_MAX_MEMORY", None)
    if limits is not None:
        _keep_to(memory_limits(limits))
    name = argv[1] if len(argv) > 1 else ""
    build = serve.build_server

    def build_server(*arguments: Any, **settings: Any) -> Any:
        app = build(*arguments, **settings)
        app.add_middleware(OneModel, name=name)
        guarded(app, argv, "8000")
        return app

    serve.build_server = build_server
    sys.argv = ["transformers", *argv]
    cli.app()


def _keep_to(limits: dict[int | str, int]) -> None:
    """Layers are laid out by accelerate over these devices, and no fuller than this many bytes of weights."""
    base: Any = importlib.import_module("transformers").PreTrainedModel
    load = base.from_pretrained.__func__

    def from_pretrained(cls: Any, *arguments: Any, **settings: Any) -> Any:
        if settings.get("device_map") == "auto":
            settings.setdefault("max_memory", limits)
        return load(cls, *arguments, **settings)

    base.from_pretrained = classmethod(from_pretrained)


def memory_limits(text: str) -> dict[int | str, int]:
    """``0=80000000000,1=80000000000`` (or ``cpu=…``) as accelerate takes it."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {int(device) if device.isdigit() else device: int(size) for device, _, size in pairs}


if __name__ == "__main__":
    {"mlx-lm": mlx_lm, "mlx-vlm": mlx_vlm, "transformers": transformers}[sys.argv[1]](sys.argv[2:])
