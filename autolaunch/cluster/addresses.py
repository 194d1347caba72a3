"""Where a Ray cluster is: ``auto``, ``HOST:PORT`` of its head, ``ray://HOST:PORT`` of its client server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from autolaunch.given import address as ip_address
from selector.errors import UsageError
from selector.values import Value

#: What Ray takes where none is said: of the head (``ray start --head``), and of its client server.
HEAD_PORT, CLIENT_PORT = 6379, 10001
HINT = "auto finds the cluster of this host; HOST:6379 is the head's address, ray://HOST:10001 its client server's"
_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)


class Address(Value, frozen=True, kw_only=True):
    """``kind`` is how Ray is joined: ``auto`` (whichever cluster this host is of), ``head`` or ``client``."""

    kind: Literal["auto", "head", "client"]
    host: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        if self.host is None:
            return "auto"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ray://' if self.kind == 'client' else ''}{host}:{self.port}"


def address_of(text: str, environ: Mapping[str, str], *, named: str = "--nodes") -> Address:
    """The address that was written as ``named``; ``auto`` is ``RAY_ADDRESS`` where that is set.

    Raises:
        UsageError: it is none that Ray could be joined by.
    """
    told = environ.get("RAY_ADDRESS", "").strip() if text.strip() == "auto" else ""
    found = _address(told or text.strip())
    if found is None:
        where = "RAY_ADDRESS: " if told else named and f"{named}: "
        raise UsageError(f"{where}{(told or text)[:80]!r} is no address of a Ray cluster", hint=_hint(told or text))
    return found


def _address(text: str) -> Address | None:
    if text == "auto":
        return Address(kind="auto")
    rest = text.removeprefix("ray://")
    kind: Literal["head", "client"] = "head" if rest == text else "client"
    parts = re.fullmatch(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]/]+))(?::(?P<port>[0-9]{1,5}))?/?", rest)
    if parts is None:
        return None
    host = ip_address(parts["six"]) if parts["six"] is not None else parts["host"]
    if host is None or (parts["six"] is None and _NAME.fullmatch(host) is None):
        return None
    if parts["port"] is None and kind == "head":
        return None  # a lone word is as likely a slip
    port = CLIENT_PORT if parts["port"] is None else int(parts["port"])
    return Address(kind=kind, host=host, port=port) if 0 < port < 1 << 16 else None


def _hint(text: str) -> str:
    if text.startswith(("http://", "https://")):
        return f"that is the address of Ray's dashboard and jobs; {HINT}"
    if _NAME.fullmatch(text) is not None and text not in ("local", "none"):
        return f"did you mean {text}:{HEAD_PORT}, or ray://{text}:{CLIENT_PORT}?"
    return HINT
