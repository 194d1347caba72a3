"""The keys of clients: a file of names and hashes, and what of a request is one.

A line of the file is ``NAME:sha256:HEX``; ``autolaunch keys add`` writes it. The hash is SHA-256 and nothing slower: a
key of ours is 32 random bytes, which nobody guesses from its hash, and it is computed for each request. A key that
somebody brings has at least :data:`LEAST_CHARACTERS` for that reason.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from autolaunch.daemon import small_file
from selector.errors import ConfigurationError, UsageError
from selector.values import Value

#: The largest file that is read, and the most keys in it: each request is compared with all of them.
MAXIMUM_BYTES = 1 << 18
MAXIMUM_KEYS = 1000
#: What a key may be long. A longer one is not even hashed.
LEAST_CHARACTERS = 20
MOST_CHARACTERS = 512
#: What a key of ours begins with, so that it is known where it should not be (a repository, a log).
PREFIX = "al-"
_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_KEY = re.compile(r"[!-~]+", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_GROUP_OR_OTHERS_WRITE = 0o022
_HOW = (
    "a line is NAME:sha256:HEX, and never a key itself: `autolaunch keys add NAME` makes a key, "
    "and with --stdin takes one that you have"
)


class Key(Value, frozen=True, kw_only=True):
    """A client's key, by name. ``digest`` is its SHA-256, 32 bytes."""

    name: str
    digest: bytes

    def __repr__(self) -> str:
        return f"Key({self.name!r})"

    @property
    def line(self) -> str:
        """The key as a line of the file, without its end."""
        return f"{self.name}:sha256:{self.digest.hex()}"


class Keys(Value, frozen=True, kw_only=True):
    """The keys of a file. Names and digests are unique among them."""

    entries: tuple[Key, ...]

    def __repr__(self) -> str:
        return f"Keys({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.entries)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """The keys in a file.

        Raises:
            ConfigurationError: it cannot be read, others may write it, a line is wrong, or there is no key in it. The
                message has the file and the line's number, and nothing that the line says: it may be a secret.
        """
        keys = parsed(path, content_of(path).content)
        if not keys.entries:
            raise ConfigurationError(
                f"{path}: there is no key in it, and nobody could use the gateway",
                hint=f"autolaunch keys add NAME --file {path}",
            )
        return keys

    def name_of(self, presented: str | bytes | None) -> str | None:
        """Whose key was presented; ``None``: nobody's.

        It is compared with every key there is, each time in a time that says nothing of how much of it was right.
        """
        if presented is None or len(presented) > MOST_CHARACTERS:
            return None
        # A header has the bytes that are no UTF-8 as surrogates; such a key is nobody's and no error.
        content = presented.encode(errors="surrogatepass") if isinstance(presented, str) else presented
        digest = hashlib.sha256(content).digest()
        found = None
        for each in self.entries:
            if hmac.compare_digest(digest, each.digest):
                found = each.name
        return found


class Wrong(Value, frozen=True, kw_only=True):
    """Credentials that cannot be taken for one key. ``reason`` is a sentence without anything of them."""

    reason: str


def presented(headers: Iterable[tuple[str, str]]) -> str | Wrong | None:
    """The key that a request came with: ``Authorization: Bearer KEY``, or ``x-api-key: KEY`` as Anthropic's clients do.

    ``None``: it came with none. Of several only one could be checked, and another part of the way may look at the
    other: a repeated header is wrong, and so are both kinds when they differ.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        kind = name.lower()
        if kind not in ("authorization", "x-api-key"):
            continue
        if kind in found:
            return Wrong(reason=f"the header {kind} came more than once")
        found[kind] = value.strip(" \t")
    keys = []
    if (bearer := found.get("authorization")) is not None:
        scheme, _, token = bearer.partition(" ")
        if scheme.lower() != "bearer":
            return Wrong(reason="the header authorization is not of the form: Bearer KEY")
        keys.append(token.strip(" \t"))
    if (key := found.get("x-api-key")) is not None:
        keys.append(key)
    if len(set(keys)) > 1:
        return Wrong(reason="the headers authorization and x-api-key hold different keys")
    if keys and not keys[0]:
        return Wrong(reason="the key is empty")
    return keys[0] if keys else None


def made() -> str:
    """A new key: random, and safe in headers, addresses and shells."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def key_of(name: str, secret: str) -> Key:
    """What is kept of a key.

    Raises:
        UsageError: the name or the key cannot be one. Nothing of the key is in the message.
    """
    checked_name(name)
    if not LEAST_CHARACTERS <= len(secret) <= MOST_CHARACTERS:
        raise UsageError(
            f"the key has {len(secret)} characters, and one has {LEAST_CHARACTERS} to {MOST_CHARACTERS}",
            hint="leave out --stdin, and a random one is made",
        )
    if _KEY.fullmatch(secret) is None:
        raise UsageError("the key has characters that cannot stand in a header: ASCII without spaces can")
    return Key(name=name, digest=hashlib.sha256(secret.encode()).digest())


def checked_name(name: str) -> str:
    """``name``, when it can be one: it is what logs and metrics show of a client.

    Raises:
        UsageError: it cannot. It is not repeated: what stands there may be a key, given in the wrong place.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError("the name is not of letters, digits, '.', '_' and '-', at most 64, a letter or digit first")
    return name


def content_of(path: Path) -> small_file.Content:
    """The file of keys as it is.

    Raises:
        ConfigurationError: it cannot be read, or others than its owner may write it.
    """
    try:
        read = small_file.read(path, MAXIMUM_BYTES)
    except small_file.Unreadable as error:
        hint = None
        if error.missing:
            hint = f"autolaunch keys add NAME --file {path} makes it"
        elif error.denied:
            hint = f"the user that the daemon runs as reads it: chgrp autolaunch {path}; chmod 640 {path}"
        raise ConfigurationError(f"{path}: {error.reason}", hint=hint) from error
    if read.mode & _GROUP_OR_OTHERS_WRITE:
        raise ConfigurationError(
            f"{path}: others than its owner may write it (mode {read.mode:04o}), and could let themselves in",
            hint=f"chmod go-w {path}",
        )
    return read


def parsed(path: Path, content: bytes) -> Keys:
    """The keys in what the file at ``path`` holds; there may be none.

    Raises:
        ConfigurationError: a line is wrong; see :meth:`Keys.read`.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        number = 1 + content.count(b"\n", 0, error.start)
        # Without the error: it holds the file's content.
        raise ConfigurationError(f"{path}: line {number} is not UTF-8", hint=_HOW) from None
    return Keys(entries=_entries(path, text))


def _entries(path: Path, text: str) -> tuple[Key, ...]:
    entries: list[Key] = []
    seen: dict[str | bytes, int] = {}
    for number, line in enumerate((each.strip(" \t\r") for each in text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        name, kind, written = (*line.split(":", 2), "", "")[:3]
        if _NAME.fullmatch(name) is None or kind != "sha256" or _DIGEST.fullmatch(written.lower()) is None:
            raise ConfigurationError(f"{path}: line {number} is no name with the hash of a key", hint=_HOW)
        key = Key(name=name, digest=bytes.fromhex(written))
        for what, value in (("name", key.name), ("key", key.digest)):
            if (first := seen.setdefault(value, number)) != number:
                raise ConfigurationError(f"{path}: line {number} has the same {what} as line {first}")
        entries.append(key)
        if len(entries) > MAXIMUM_KEYS:
            raise ConfigurationError(f"{path}: more than {MAXIMUM_KEYS} keys")
    return tuple(entries)
