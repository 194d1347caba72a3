"""What the gateway does not do for a client, and how it says so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.gateway.documents import Dialect, error_document
from autolaunch.daemon.gateway.request import Header

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.metrics import Reason
    from autolaunch.daemon.gateway.routing import Standing


JSON: Header = (b"content-type", b"application/json")


class Refusal(Exception):
    """A request that is not served. ``retry_seconds`` is when it may be; ``headers`` are further ones of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        retry_seconds: float | None = None,
        reason: Reason = "refused",
        standing: Standing | None = None,
        headers: tuple[Header, ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_seconds = retry_seconds
        self.reason = reason
        self.standing = standing
        self.headers = headers
        self.close = close

    def answer(self, dialect: Dialect) -> tuple[list[Header], bytes]:
        """Headers and body."""
        headers = [JSON, *self.headers]
        if self.retry_seconds is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_seconds))))
        body = error_document(dialect, self.status, self.message, code=self.code)
        if self.standing is not None and self.standing.stage is not None:
            # Beside the error, where every library leaves it alone: how far the load is.
            document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            load = {"stage": self.standing.stage, "fraction": self.standing.fraction}
            document["load"] = msgspec.Raw(msgspec.json.encode(load))
            body = msgspec.json.encode(document)
        return headers, body
