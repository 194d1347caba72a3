"""What is known of a request before it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autolaunch.daemon.gateway import asked
from autolaunch.daemon.gateway.refusal import Refusal

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.metrics import Seen
    from autolaunch.daemon.gateway.proxy import Sent
    from autolaunch.daemon.gateway.routing import Model

#: What is counted of a client that left before there was a status.
LEFT = 499


class Asks:
    """What a request asks for; ``sent``: it is with an engine already."""

    __slots__ = ("body", "model", "seen", "sent", "streamed")

    def __init__(self, model: Model, seen: Seen, streamed: bool) -> None:
        self.model, self.seen, self.streamed = model, seen, streamed
        self.body = b""
        self.sent: Sent | None = None

    def leave(self) -> None:
        """Its client has left before anything else happened."""
        self.seen.ended(status=LEFT, reason="client_left")
        if self.sent is not None:
            self.sent.leave()


class Began:
    """What is counted of a request, as soon as it is known for which model it is."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen: Seen | None = None


def read_body(body: bytes) -> tuple[str, bool]:
    """The model that a request names, and whether it is to be streamed.

    Raises:
        Refusal: it names none, or is none.
    """
    try:
        name, streamed = asked.read(body)
    except asked.Unreadable as error:
        raise Refusal(400, str(error), code="invalid_body") from error
    if not name:
        raise Refusal(400, "the request names no model", code="model_missing")
    return name, streamed


def wrong_method(right: str) -> Refusal:
    return Refusal(405, f"this path is asked with {right}", code="method", headers=((b"allow", right.encode()),))
