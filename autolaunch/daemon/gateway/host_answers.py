"""What another host's gateway answers: whether it took a request, whether it is well, and which models it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec

from autolaunch.daemon.gateway import refusals
from autolaunch.daemon.gateway.host_access import MOST_MODELS
from autolaunch.daemon.gateway.manners import of
from autolaunch.daemon.gateway.refusal import Refusal
from autolaunch.daemon.gateway.routing import Condition
from autolaunch.daemon.gateway.upstream import Broken
from autolaunch.given import SERVED_NAME
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.documents import Dialect
    from autolaunch.daemon.gateway.routing import Model
    from autolaunch.daemon.gateway.upstream import Connection

#: The header of what a gateway sends on to another, with the tries that it has there: that one answers it by itself, or
#: not at all. A client may send it, too, and gets an engine of the host that it asks.
HOP = b"autolaunch-hop"
#: The header of a refusal of such a request: how many engines had it, and ended.
RISKED = b"autolaunch-risked"
#: The header by which a gateway that asks knows one from another, and itself.
GATEWAY = b"autolaunch-gateway"
#: Of a list of models.
LIST_BYTES = 1 << 20
#: What a host that did not take a request says; 404 where it is the model that is not there.
_NOT_TAKEN = frozenset({401, 403, 404, 429, 503})
#: What a proxy before a host says where that is gone; so does a gateway of an engine's answer, in an error document.
_GONE = frozenset({502, 504})
#: What an engine says of a request that it failed on. No proxy says so of a host that is gone, and the next engine may
#: fail on it as well: it is the client's answer. An engine that is broken says it of every request: the host is asked.
FAILED = 500
_LONGEST_RETRY_SECONDS = 600.0
_MOST_REQUESTS, _MOST_ENGINES, _MOST_TOKENS = 1_000_000, 1024, 2**40
_decode = msgspec.json.Decoder().decode


class NotTaken(Exception):
    """A host did not take a request: another may.

    ``refusal`` is for its client where none does. ``risked``: so many engines of the host had it, and ended.
    """

    def __init__(self, status: int, retry_seconds: float | None, refusal: Refusal | None, *, risked: int) -> None:
        super().__init__(status)
        self.status, self.retry_seconds, self.refusal, self.risked = status, retry_seconds, refusal, risked


class HostFault(Exception):
    """A host cannot be asked. ``silent``: it gave no answer at all."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class Listed(Value, frozen=True, kw_only=True):
    """A model as a host lists it. ``requests`` are all that are with its own engines, of which it has ``engines``."""

    name: str
    condition: Condition = "serving"
    context_tokens: int | None = None
    requests: int = 0
    engines: int = 1


async def not_taken(connection: Connection, model: Model, dialect: Dialect) -> bytes | None:
    """Reads what may say that a request was not taken; the answer whole, where it was read and says something else.

    Raises:
        NotTaken: it was not.
        Broken: the answer ended before its end, or somebody before the host says that it is gone.
    """
    if connection.status not in _NOT_TAKEN and connection.status not in _GONE:
        return None
    try:
        body = await connection.body(refusals.READ_BYTES)
    except BaseException:
        connection.abort()
        raise
    status = connection.status
    if status in _GONE:
        if refusals.is_error_document(body):
            return body
        connection.abort()
        raise Broken(f"what is before it answers {status}", begun=True)
    if status == 404:
        read = refusals.read(of(None), status, body, asked=model.name, served=model.name, dialect=dialect)
        if read.code != "model_not_found":
            return body
    retry_seconds = _retry_seconds(connection)
    refusal = None
    if status == 429:
        message = f"{model.name} has as many requests on every host as they take"
        refusal = Refusal(429, message, code="queue_full", retry_seconds=retry_seconds or 1.0)
    raise NotTaken(status, retry_seconds, refusal, risked=_risked(connection, body))


def _risked(connection: Connection, body: bytes) -> int:
    told = next((value for name, value in connection.headers if name == RISKED), b"")
    if told.isdigit() and len(told) < 3:
        return int(told)
    return int(refusals.code_of(body) == "engine_died")  # a gateway of another kind


def _retry_seconds(connection: Connection) -> float | None:
    value = next((value for name, value in connection.headers if name == b"retry-after"), b"")
    return min(float(value), _LONGEST_RETRY_SECONDS) if value.isdigit() and len(value) < 9 else None


def refuse_unwell(status: int, path: str) -> None:
    """Holds that a host answered that it is well.

    Raises:
        HostFault: it did not.
    """
    if status == 200:
        return
    if status == 401:
        raise HostFault("it does not take the key that api_key_file has (401)")
    if status == 403:
        raise HostFault("it refuses to be asked (403): its allowed_hosts may have to have the name that url has")
    if 300 <= status < 400:
        raise HostFault(f"it answers {path} with a redirection ({status}), which is not followed")
    raise HostFault(f"it answers {path} with {status}")


def listed(body: bytes) -> tuple[Listed, ...]:
    """The models of an answer to ``/v1/models``; of other servers, which tell less, too.

    Raises:
        HostFault: it is no such list.
    """
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HostFault("its /v1/models is no JSON") from error
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise HostFault("its /v1/models is no list of models")
    entries = (each for each in data if isinstance(each, dict))
    found = {each["id"]: _listed(each) for each in entries if _is_name(each.get("id"))}
    return tuple(found.values())[:MOST_MODELS]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and SERVED_NAME.fullmatch(value) is not None


def _listed(entry: dict[str, Any]) -> Listed:
    status = entry.get("status", "serving")
    return Listed(
        name=entry["id"],
        condition=status if status in get_args(Condition) else "loading",
        context_tokens=_whole(entry.get("max_model_len"), _MOST_TOKENS),
        requests=_whole(entry.get("requests"), _MOST_REQUESTS) or 0,
        engines=_whole(entry.get("engines"), _MOST_ENGINES) or 1,
    )


def _whole(value: object, most: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most else None
