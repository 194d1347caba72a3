"""mlx-vlm's server for the programs of this machine, and for no web page.

    python -P mlx_vlm_server.py [OPTIONS OF mlx_vlm.server]

Run by its path, with the interpreter of the engine's environment: it imports the engine and nothing of autolaunch,
and nothing imports it. mlx-vlm 0.7.10 answers every origin, with credentials, under every host name, and has no
option against that: a page in a browser could read answers or unload the model. Here a request passes whose ``Host``
is this address (a name that somebody's DNS points at the loopback is none) and that comes from no foreign page.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class LocalOnly:
    """ASGI middleware: 403 for a foreign ``Host``, a foreign ``Origin``, and what a browser calls cross-site."""

    def __init__(self, app: _App, *, host: str, port: str) -> None:
        self.app = app
        self.names = LOOPBACK_NAMES | {host.strip("[]").lower()}
        self.port = port

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan" or self.lets_in(scope["headers"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = b'{"error": "this server answers programs of its own machine, under its own address"}'
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def lets_in(self, headers: list[tuple[bytes, bytes]]) -> bool:
        values: dict[bytes, list[str]] = {}
        for name, value in headers:
            values.setdefault(name.lower(), []).append(value.decode("latin-1").strip().lower())
        if any(site not in {"same-origin", "none"} for site in values.get(b"sec-fetch-site", [])):
            return False
        hosts = values.get(b"host", [])
        if len(hosts) != 1 or _split(hosts[0])[0] not in self.names:
            return False
        return all(self._is_ours(origin) for origin in values.get(b"origin", []))

    def _is_ours(self, origin: str) -> bool:
        scheme, _, place = origin.partition("://")
        name, port = _split(place)
        return scheme == "http" and name in self.names and port == self.port


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


def main() -> None:
    # By name: type checkers and import rules of the tool's own environment do not have it.
    server: Any = importlib.import_module("mlx_vlm.server")
    app = server.app
    app.user_middleware = [each for each in app.user_middleware if each.cls.__name__ != "CORSMiddleware"]
    # Added last it stands first.
    app.add_middleware(LocalOnly, host=option(sys.argv, "--host", "127.0.0.1"), port=option(sys.argv, "--port", "8080"))
    server.main()


if __name__ == "__main__":
    main()
