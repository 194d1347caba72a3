"""What is said between us and the process that fetches: one question in its arguments, JSON lines for an answer."""

from __future__ import annotations

from typing import Literal

from autolaunch.hubs.listing import Listing
from selector.facts import Hub
from selector.values import Value

#: A line longer than this is none of the worker's: a listing of the most files it may have is shorter.
MOST_LINE_BYTES = 16 * 2**20

#: Why nothing came of it; each is an error of its own (:mod:`autolaunch.hubs.refusals`).
Kind = Literal[
    "busy",
    "cache",
    "damaged",
    "disk",
    "endpoint",
    "extra",
    "gated",
    "listing",
    "missing",
    "offline",
    "redirects",
    "refused",
    "revision",
    "tls",
    "token",
    "unreachable",
]


class Patience(Value, frozen=True, kw_only=True):
    """How long a hub is borne with: so many tries in a row without a byte, and between them these waits (seconds).

    ``first_tries`` are those of the first question: whether it answers at all should be known soon.
    """

    first_tries: int = 3
    tries: int = 6
    first_seconds: float = 1.0
    most_seconds: float = 60.0
    #: A server that asks for a longer wait than this is told of instead.
    most_asked_seconds: float = 300.0
    answer_seconds: float = 10.0


class Question(Value, frozen=True, kw_only=True):
    """Fetch this checkpoint into its hub's cache, and hold it against its hashes. ``home`` is autolaunch's.

    ``offline``: only look at what is there.
    """

    repo: str
    hub: Hub
    revision: str | None
    file_prefix: str | None
    home: str
    cache: str
    offline: bool = False
    threads: int = 8
    patience: Patience = Patience()


class Listed(Value, frozen=True, kw_only=True, tag="listed"):
    """The files, and how many bytes of them are here and known to be whole."""

    listing: Listing


class Moved(Value, frozen=True, kw_only=True, tag="moved"):
    """How far it is: ``here_bytes`` of the checkpoint are on the disk, ``fetched_bytes`` came over the network.

    ``checked_bytes`` of ``to_check_bytes`` that lay here already were held against their hashes.
    """

    here_bytes: int
    fetched_bytes: int
    checked_bytes: int = 0
    to_check_bytes: int = 0


class Said(Value, frozen=True, kw_only=True, tag="said"):
    """Something a person wants to know meanwhile."""

    message: str


class Finished(Value, frozen=True, kw_only=True, tag="finished"):
    """Every file is here and whole, in ``folder``."""

    folder: str
    fetched_bytes: int


class Refused(Value, frozen=True, kw_only=True, tag="refused"):
    """It came to nothing, and why. ``message`` never holds a token."""

    kind: Kind
    message: str


Answer = Listed | Moved | Said | Finished | Refused
