"""Whether the gateway can be what its options say: refused by key, before anything listens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import msgspec

from autolaunch.daemon.gateway.host_access import checked_hosts
from autolaunch.daemon.gateway.keys import Keys
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.wrong_key import WrongKey
from autolaunch.given import PORTS, address, is_loopback
from selector.catalog import shown
from selector.errors import ConfigurationError

#: The least and the most of each whole number. Beyond them it is a slip of the keyboard, or no bound any more.
_NUMBERS = {"body_bytes": (2**10, 2**30), "connections": (1, 2**16), "queue": (1, 2**16)}
#: The most of each time; the least is above 0.
_SECONDS = {"header_seconds": 600.0, "body_seconds": 3600.0, "idle_seconds": 86_400.0, "wait_seconds": 86_400.0}
#: More names than anybody writes, each looked at for each request.
_MOST_NAMES = 256
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_HOST_CHARACTERS = 253
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]{0,30})://(\[[0-9A-Fa-f:.]+\]|[^/\[\]:?#@\s]+)(?::([0-9]{1,5}))?", re.ASCII)
#: What browsers leave out of an origin.
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCALHOST = ("127.0.0.1", "::1")
_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


def checked(options: GatewayOptions, section: str = "gateway") -> GatewayOptions:
    """``options`` with names and origins as requests have them: in small letters, without a default port.

    The file of keys is read, and the files of other hosts' keys: what is wrong with them is found here.

    Raises:
        WrongKey: a key below ``section`` is wrong.
    """
    _check_address(section, options)
    for name, (least, most) in _NUMBERS.items():
        if not least <= getattr(options, name) <= most:
            raise WrongKey(f"{section}.{name}", f"{getattr(options, name)} is not from {least} to {most}")
    for name, most_seconds in _SECONDS.items():
        seconds = getattr(options, name)
        if not (math.isfinite(seconds) and 0 < seconds <= most_seconds):
            raise WrongKey(f"{section}.{name}", f"{seconds:g} is no time above 0 and up to {most_seconds:g} s")
    if options.keys_file is not None:
        try:
            Keys.read(options.keys_file)
        except ConfigurationError as error:
            raise WrongKey(f"{section}.keys_file", error.message, error.hint) from error
    _refuse_itself(section, options)
    return msgspec.structs.replace(
        options,
        allowed_hosts=_each(f"{section}.allowed_hosts", options.allowed_hosts, _host),
        allowed_origins=_each(f"{section}.allowed_origins", options.allowed_origins, _origin),
    )


def _refuse_itself(section: str, options: GatewayOptions) -> None:
    """That no other host is this gateway, as far as addresses tell; what they do not is seen when it answers."""
    for index, each in enumerate(checked_hosts(options.hosts, section)):
        here = options.host in _ALL_ADDRESSES or (each.host == "localhost" and options.host in _LOCALHOST)
        own = each.host == options.host or (is_loopback(each.host) and here)
        if own and each.port == options.port:
            raise WrongKey(
                f"{section}.hosts[{index}].url",
                f"{each.url} is this gateway itself",
                "name the others; it serves its own",
            )


def _check_address(section: str, options: GatewayOptions) -> None:
    if options.port not in PORTS:
        raise WrongKey(f"{section}.port", f"{options.port} is no port from 1 to 65535")
    if is_loopback(options.host):
        return
    if address(options.host) is None:
        raise WrongKey(
            f"{section}.host",
            f"{shown(options.host)} is no address",
            "127.0.0.1, an address of this machine, or 0.0.0.0 for all it has; names of it go into allowed_hosts",
        )
    if options.keys_file is None:
        raise WrongKey(
            f"{section}.host",
            f"{options.host} is open to the network, and nobody would be asked for a key",
            f"autolaunch keys add NAME makes a key and its file; {section}.keys_file names that file",
        )


def _each(key: str, texts: tuple[str, ...], form: Callable[[str, str], str]) -> tuple[str, ...]:
    if len(texts) > _MOST_NAMES:
        raise WrongKey(key, f"has {len(texts)} names, and {_MOST_NAMES} are the most")
    return tuple(form(f"{key}[{index}]", text) for index, text in enumerate(texts))


def _is_host_name(text: str) -> bool:
    return len(text) <= _HOST_CHARACTERS and _HOST_NAME.fullmatch(text) is not None


def _host(key: str, text: str) -> str:
    if (found := address(text)) is not None:
        return found
    if not _is_host_name(text):
        raise WrongKey(
            key, f"{shown(text)} is no name of a host", "the name alone, as models.example.com: no scheme, port or *"
        )
    return text.lower()


def _origin(key: str, text: str) -> str:
    match = _ORIGIN.fullmatch(text.lower())
    host = match and (address(match[2][1:-1]) if match[2].startswith("[") else match[2])
    port = int(match[3]) if match and match[3] else None
    if match is None or not host or not (":" in host or _is_host_name(host)) or port not in (None, *PORTS):
        raise WrongKey(
            key,
            f"{shown(text)} is no origin of a page",
            "as https://chat.example.com or http://localhost:3000: no path, no * and nothing after it",
        )
    end = "" if port is None or _DEFAULT_PORTS.get(match[1]) == port else f":{port}"
    return f"{match[1]}://{f'[{host}]' if ':' in host else host}{end}"
