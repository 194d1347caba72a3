"""Why a hub did not give something, in the process that fetches: what may come if tried again, and what will not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from autolaunch.hubs.wire import Kind

#: Of what a hub says, so much is passed on.
MOST_TEXT = 300
#: What looks like a token or the signature of an address is nobody's to read.
_SECRET = re.compile(r"\b(hf_|ms-|Bearer\s+)[\w\-.]{6,}|(?<=[?&])[^\s'\"]+")


class Broken(Exception):
    """It may come if it is tried again, after ``wait_seconds`` where the server says so."""

    def __init__(self, message: str, *, kind: Kind = "unreachable", wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message, self.kind, self.wait_seconds = message, kind, wait_seconds


class Denied(Exception):
    """It will not come however often it is tried."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def text(error: BaseException | str) -> str:
    """What was said, in one bounded line without anything secret."""
    line = " ".join(str(error).split())
    return _SECRET.sub("…", line)[:MOST_TEXT]


def of_status(status: int, message: str, wait_seconds: float | None) -> Broken | Denied:
    """What an answer with an HTTP status of an error means."""
    if status == 401:
        return Denied("token", message)
    if status in (403, 451):
        return Denied("gated", message)
    if status in (404, 410):
        return Denied("missing", message)
    if status in (408, 429) or status >= 500:
        kind: Kind = "busy" if status in (429, 503) else "unreachable"
        return Broken(f"HTTP {status}", kind=kind, wait_seconds=wait_seconds)
    return Denied("refused", f"HTTP {status}: {message}")


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The seconds that ``Retry-After`` asks for, given as a number or as a date."""
    told = headers.get("retry-after") or headers.get("Retry-After")
    if told is None:
        return None
    if told.strip().isdecimal():
        return float(told.strip()[:9])
    try:
        until = parsedate_to_datetime(told)
    except ValueError:
        return None
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
