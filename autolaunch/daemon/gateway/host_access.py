"""How another host is reached: its address, its key and whose certificates it shows, read and checked at once.

Where requests go is the configuration's alone to say: an address is taken apart here, and nothing that a host answers
leads anywhere else (redirections are not followed).
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Literal

from autolaunch.daemon import small_file
from autolaunch.daemon.gateway.options import HostOptions
from autolaunch.daemon.wrong_key import WrongKey, at
from autolaunch.given import PORTS, address, served_name
from selector.catalog import shown
from selector.errors import ConfigurationError
from selector.values import Value

#: More hosts than one gateway is put before, and names than one of them has.
MOST_HOSTS, MOST_MODELS = 64, 64
#: The largest files that are read.
KEY_BYTES, CA_BYTES = 4096, 1 << 20
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?(?:/v1)?/?",
    re.ASCII,
)
_NAME = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,99}", re.ASCII)
_KEY = re.compile(r"[!-~]{1,512}", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AS = "as http://10.0.0.2:8000 or https://h2.example.com: no user, and nothing after the port"
_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
#: Others than its owner and its group may neither read a key nor write one, and the group may not write it.
_NOT_OPEN = 0o027


class HostAccess(Value, frozen=True, kw_only=True):
    """How one host is reached. ``ca`` are certificates (PEM) to check its own by. The key is in no ``repr``."""

    options: HostOptions
    name: str
    scheme: Literal["http", "https"]
    host: str
    port: int
    api_key: str | None = None
    ca: str | None = None

    def __repr__(self) -> str:
        return f"HostAccess({self.name} at {self.url})"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """The header ``Host``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """What checks its certificate, by its name or address too; ``None`` without TLS.

        Raises:
            ssl.SSLError: ``ca`` has no certificate in it.
        """
        if self.scheme == "http":
            return None
        context = ssl.create_default_context(cadata=self.ca)
        context.set_alpn_protocols(["http/1.1"])
        return context


def accesses(hosts: tuple[HostOptions, ...], section: str = "gateway") -> tuple[HostAccess, ...]:
    """All of them, with what their files hold.

    Raises:
        ConfigurationError: a key below ``section`` is wrong; nothing of a host's key is in the message.
    """
    try:
        return checked_hosts(hosts, section)
    except WrongKey as wrong:
        raise ConfigurationError(f"{wrong.key}: {wrong.reason}", hint=wrong.hint) from wrong


def checked_hosts(hosts: tuple[HostOptions, ...], section: str) -> tuple[HostAccess, ...]:
    """As :func:`accesses`.

    Raises:
        WrongKey: a key below ``section`` is wrong.
    """
    if len(hosts) > MOST_HOSTS:
        raise WrongKey(f"{section}.hosts", f"has {len(hosts)} hosts, and {MOST_HOSTS} are the most")
    found: list[HostAccess] = []
    names: dict[str, int] = {}
    places: dict[tuple[str, int], int] = {}
    for index, options in enumerate(hosts):
        key = f"{section}.hosts[{index}]"
        one = _access(key, options)
        # Before the name, which without one of its own is the address.
        if (first := places.setdefault((one.host, one.port), index)) != index:
            raise WrongKey(f"{key}.url", f"{one.url} is the address of {section}.hosts[{first}]")
        if (first := names.setdefault(one.name.lower(), index)) != index:
            raise WrongKey(f"{key}.name", f"{one.name} is the name of {section}.hosts[{first}]")
        found.append(one)
    return tuple(found)


def _access(key: str, options: HostOptions) -> HostAccess:
    scheme, host, port = _place(f"{key}.url", options.url)
    name = options.name if options.name is not None else f"{f'[{host}]' if ':' in host else host}:{port}"
    if _NAME.fullmatch(name) is None:
        raise WrongKey(f"{key}.name", f"{shown(name)} is no name", "letters, digits, '.', '_' and '-', at most 100")
    if len(options.models) > MOST_MODELS:
        raise WrongKey(f"{key}.models", f"has {len(options.models)} names, and {MOST_MODELS} are the most")
    for number, each in enumerate(options.models):
        with at(f"{key}.models[{number}]"):
            served_name(each)
    if options.ca_file is not None and scheme == "http":
        raise WrongKey(f"{key}.ca_file", "is for https, and url is http")
    found = HostAccess(
        options=options,
        name=name,
        scheme=scheme,
        host=host,
        port=port,
        api_key=None if options.api_key_file is None else _key(f"{key}.api_key_file", options.api_key_file),
        ca=None if options.ca_file is None else _certificates(f"{key}.ca_file", options.ca_file),
    )
    try:
        found.tls()
    except (ssl.SSLError, ValueError) as error:
        raise WrongKey(f"{key}.ca_file", f"{options.ca_file} has a certificate that cannot be read") from error
    return found


def _place(key: str, url: str) -> tuple[Literal["http", "https"], str, int]:
    match = _URL.fullmatch(url)
    if match is None:
        # Not repeated: a password may stand in it.
        raise WrongKey(key, "is no address of a gateway", _AS)
    scheme: Literal["http", "https"] = "https" if match["scheme"] == "https" else "http"
    host = match["host"]
    if host.startswith("["):
        found = address(host[1:-1])
        if found is None or ":" not in found:
            raise WrongKey(key, f"{shown(host)} is no address", _AS)
        host = found
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if port not in PORTS:
        raise WrongKey(key, f"{port} is no port from 1 to 65535")
    return scheme, host.lower(), port


def _key(key: str, path: Path) -> str:
    try:
        read = small_file.read(path, KEY_BYTES)
    except small_file.Unreadable as error:
        hint = f"the user that the daemon runs as reads it: chgrp autolaunch {path}; chmod 640 {path}"
        raise WrongKey(key, f"{path}: {error.reason}", hint if error.denied else None) from error
    if read.mode & _NOT_OPEN:
        raise WrongKey(
            key, f"{path}: others than its owner may read or write it (mode {read.mode:04o})", f"chmod 600 {path}"
        )
    text = read.content.decode("latin-1").strip(" \t\r\n")
    if ":sha256:" in text:
        raise WrongKey(
            key,
            f"{path} has hashes of keys, and not a key",
            "the key that `autolaunch keys add NAME` showed on that host",
        )
    if _KEY.fullmatch(text) is None:
        raise WrongKey(key, f"{path} is not one key on one line", "up to 512 characters of ASCII without spaces")
    return text


def _certificates(key: str, path: Path) -> str:
    try:
        text = small_file.read(path, CA_BYTES).content.decode("ascii", "replace")
    except small_file.Unreadable as error:
        raise WrongKey(key, f"{path}: {error.reason}") from error
    if _CERTIFICATE not in text:  # without any, the system's would be taken
        raise WrongKey(key, f"{path} has no certificates in PEM")
    return text
