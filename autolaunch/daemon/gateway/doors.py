"""Who may speak to the gateway: programs with a key, under an address that is ours, and the pages that were allowed.

A browser sends what any page tells it to, with the page's address in ``Origin``, and to whatever address the page's
name points at. So a request from a page that nobody allowed is refused, and so is one to a name (``Host``) that is not
ours: addresses are no names, and cannot be pointed elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING

from autolaunch.daemon.gateway.keys import Keys, Wrong, presented
from autolaunch.daemon.gateway.refusal import Refusal

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.options import GatewayOptions
    from autolaunch.daemon.gateway.request import Header, Request

_NAMES = frozenset({"localhost", "ip6-localhost"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII)
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"Authorization, Content-Type, X-Api-Key, Anthropic-Version, Prefer"),
    (b"access-control-max-age", b"600"),
)
#: How many different Host headers are remembered as ours.
_REMEMBERED = 256


class Doors:
    """Lets requests in. ``keys`` is ``None`` where none are asked for."""

    def __init__(self, options: GatewayOptions, keys: Keys | None) -> None:
        self.options = options
        self.keys = keys
        self._names = _NAMES | {each.lower() for each in (options.host, socket.gethostname(), *options.allowed_hosts)}
        self._origins = frozenset(each.lower() for each in options.allowed_origins)
        self._known: set[bytes | None] = set()

    def address(self, request: Request) -> None:
        """Is it addressed to us, by a program or a page that may?

        Raises:
            Refusal: no.
        """
        if request.only(b"host") in self._known and not request.has(b"origin"):
            return
        hosts = request.all(b"host")
        if len(hosts) > 1 or (not hosts and not request.old):
            raise Refusal(400, "a request has one Host header", code="host")
        if hosts:
            if not self._is_ours(hosts[0]):
                raise Refusal(403, "this host name is not served here", code="foreign_host")
            if len(self._known) < _REMEMBERED:
                self._known.add(hosts[0].encode("latin-1"))
        for origin in request.all(b"origin"):
            if origin.lower() not in self._origins:
                raise Refusal(403, "pages of this origin may not use this endpoint", code="foreign_origin")

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower().rstrip(".")
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def key(self, request: Request) -> str | None:
        """The name of the request's key; ``None`` where none is asked for.

        Raises:
            Refusal: it has none, or a wrong one.
        """
        if self.keys is None:
            return None
        found = presented((name.decode("ascii", "replace"), value.decode("latin-1")) for name, value in request.headers)
        if isinstance(found, Wrong):
            raise _unauthorized(found.reason)
        name = self.keys.name_of(found)
        if name is None:
            raise _unauthorized("no key was given" if found is None else "the key is none of ours")
        return name

    def page(self, request: Request) -> tuple[Header, ...]:
        """What an answer tells the browser of a page that may read it."""
        origin = request.header(b"origin")
        if origin is None or origin.lower() not in self._origins:
            return ()
        return ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"))

    def preflight(self, request: Request) -> tuple[Header, ...]:
        """The answer to a browser that asks for a page whether it may (``address`` has let it in)."""
        return (*self.page(request), *_PREFLIGHT)


def _unauthorized(why: str) -> Refusal:
    return Refusal(
        401,
        f"{why}; it goes into the header Authorization: Bearer KEY",
        code="invalid_api_key",
        reason="unauthorized",
        headers=((b"www-authenticate", b"Bearer"),),
    )
