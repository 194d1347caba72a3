"""Heads of answers: what of an engine's is passed on."""

from __future__ import annotations

#: What belongs to one connection (RFC 9110, 7.6.1), is counted anew, tells of the engine's server, was said to a proxy
#: before it, or answers for the engine where the gateway does: browsers' pages, cookies, keys.
_OF_ONE_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding"
    b" upgrade content-length server date via alt-svc set-cookie www-authenticate location strict-transport-security"
    b" allow x-powered-by vary x-accel-buffering".split()
)

Headers = list[tuple[bytes, bytes]]


def passed_on(headers: Headers) -> tuple[Headers, bytes, bool]:
    """What goes on to the client, less the kind of content; that kind; whether the body is packed, and not to be read.

    The kind is lower case and without parameters, empty where there is none.
    """
    kept: Headers = []
    kind, packed = b"", False
    named: list[bytes] = []
    for name, value in headers:
        lower = name.lower()
        if lower in _OF_ONE_HOP:
            if lower == b"connection" and value not in (b"keep-alive", b"close"):
                named += (token.strip().lower() for token in value.split(b","))
        elif lower == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif not lower.startswith(b"access-control-"):
            if lower == b"content-encoding" and value.strip().lower() != b"identity":
                packed = True
            kept.append((name, value))
    if named:
        kept = [(name, value) for name, value in kept if name.lower() not in named]
    return kept, kind, packed
