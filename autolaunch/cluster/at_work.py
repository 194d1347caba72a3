"""An order carried out on nodes at once: how far each of them is, and why one did not come to its end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from autolaunch.cluster.answers import unanswered
from autolaunch.cluster.members import Member
from autolaunch.cluster.orders import Order
from autolaunch.cluster.ray_cluster import Cluster, Output, Ran
from autolaunch.hubs.speed import Transfer
from selector.probe.text import printable
from selector.values import Value

#: Of what a node writes while it fetches for days; each line is read and let go.
MOST_BYTES = 1 << 30
#: So many of its last lines are kept for the reason why it failed.
_KEPT_LINES = 200
#: Of so many nodes each is named in one line; of more, how far all are, and the last of them.
_NAMED = 6
_MOST_FILE_BYTES = 1 << 60


class Trouble(Value, frozen=True, kw_only=True):
    """Why a node is not ready. ``code`` is the error's there; ``mend`` what to run, ``hint`` what the node said."""

    member: Member
    code: str
    message: str
    hint: str | None = None
    mend: str | None = None


class Say(Protocol):
    def __call__(self, message: str, fraction: float | None = None, transfer: Transfer | None = None) -> None: ...


def carried_out(
    cluster: Cluster,
    order: Order,
    on: Sequence[Member],
    names: Mapping[str, str],
    say: Say,
    cancelled: threading.Event | None,
) -> list[Trouble]:
    """Runs it on all of ``on`` at once; the troubles of those where it failed.

    Raises:
        ClusterError: the cluster was lost meanwhile.
    """
    coming = Coming(tuple(each.id for each in on), names, say)
    lines: dict[str, deque[str]] = {each.id: deque(maxlen=_KEPT_LINES) for each in on}
    errors: dict[str, str] = {}
    troubles: list[Trouble] = []
    for each in cluster.run(
        order.argv,
        on=on,
        timeout_seconds=order.timeout_seconds,
        environment=order.environment,
        input_text="" if order.input_path is None else Path(order.input_path).read_text(),
        most_bytes=MOST_BYTES,
        cancelled=cancelled,
    ):
        member = each.member.id
        if isinstance(each, Output) and each.stream == "stdout":
            lines[member].append(each.text)
            coming.heard(member, each.text)
        elif isinstance(each, Output):
            if (text := printable(each.text.lstrip(" ✓…v"), 160)) is not None:
                errors[member] = text
                say(f"{names[member]}: {text}")
        elif each.outcome == "exited" and each.exit_code == 0:
            coming.done(member)
        else:
            output = "\n".join(lines[member])
            ran = Ran(argv=order.argv, end=each, output=output, errors=errors.get(member, ""))
            troubles.append(trouble_of(ran, order))
    return troubles


def trouble_of(ran: Ran, order: Order | None = None) -> Trouble:
    """Why what was run on a node failed: as the error that it wrote says, or as its end does."""
    mend = None if order is None else order.by_hand(ran.member)
    why = unanswered(ran)
    if why is not None:
        return Trouble(member=ran.member, code=f"cluster.{ran.end.outcome}", message=why, mend=mend)
    told = error_in(ran.output)
    if told is not None:
        code, message, hint = told
        return Trouble(member=ran.member, code=code, message=message, hint=hint, mend=mend)
    said = printable((ran.errors.strip() or ran.output.strip() or "it wrote nothing").splitlines()[-1], 300)
    message = f"`{' '.join(ran.argv[:3])}` ended with exit code {ran.end.exit_code}: {said}"
    return Trouble(member=ran.member, code="exited", message=message, mend=mend)


def error_in(output: str) -> tuple[str, str, str | None] | None:
    """Code, message and hint of the error document that a command ended with; a stranger's, made fit to be shown."""
    for text in (output, output.strip().rpartition("\n")[2]):
        document = decoded(text)
        error = document.get("error") if document is not None else None
        if not isinstance(error, dict):
            continue
        code, message, hint = (error.get(each) for each in ("code", "message", "hint"))
        if isinstance(code, str) and isinstance(message, str) and (said := printable(message, 400)) is not None:
            return printable(code, 40) or "unknown", said, printable(hint, 300) if isinstance(hint, str) else None
    return None


def decoded(text: str) -> dict[str, object] | None:
    """A JSON object, or ``None``."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Coming:
    """How far the nodes are, told in one line as often as that changes."""

    def __init__(self, members: tuple[str, ...], names: Mapping[str, str], say: Say) -> None:
        self._members, self._names, self._say = members, names, say
        self._transfers: dict[str, Transfer] = {}
        self._done: set[str] = set()
        self._last = ""

    def heard(self, member: str, line: str) -> None:
        """A line of ``pull --json --follow``; what is none is passed over."""
        document = decoded(line)
        if document is None or "event" not in document:
            return
        transfer = _transfer(document.get("transfer"))
        if transfer is not None:
            self._transfers[member] = transfer
            self._tell()
            return
        message = document.get("message")
        if isinstance(message, str) and (said := printable(message, 160)) is not None:
            self._say(f"{self._names[member]}: {said}")

    def done(self, member: str) -> None:
        """It came to its end."""
        self._done.add(member)
        if self._transfers:
            self._tell()

    def _fraction(self, member: str) -> float:
        if member in self._done:
            return 1.0
        one = self._transfers.get(member)
        return 0.0 if one is None or one.total_bytes == 0 else one.done_bytes / one.total_bytes

    def _tell(self) -> None:
        parts = {each: int(100 * self._fraction(each)) for each in self._members}
        mean = sum(map(self._fraction, self._members)) / len(self._members)
        if len(parts) <= _NAMED:
            line = ", ".join(f"{self._names[each]} {part} %" for each, part in parts.items())
        else:
            last = min(parts, key=lambda each: parts[each])
            line = f"{len(parts):,} nodes {int(100 * mean)} %, the last is {self._names[last]} with {parts[last]} %"
        if line != self._last:
            self._last = line
            self._say(line, mean, self._sum())

    def _sum(self) -> Transfer:
        every = self._transfers.values()
        rates = [each.bytes_per_second for each in every if each.bytes_per_second is not None]
        left = [each.left_seconds for each in every if each.left_seconds is not None]
        return Transfer(
            done_bytes=sum(
                each.total_bytes if member in self._done else each.done_bytes
                for member, each in self._transfers.items()
            ),
            total_bytes=sum(each.total_bytes for each in every),
            bytes_per_second=sum(rates) if rates else None,
            left_seconds=max(left, default=None),
        )


def _transfer(value: object) -> Transfer | None:
    try:
        found = msgspec.convert(value, Transfer)
    except msgspec.ValidationError:
        return None
    figures = (found.bytes_per_second, found.left_seconds)
    sound = 0 <= found.done_bytes <= found.total_bytes < _MOST_FILE_BYTES
    return found if sound and all(each is None or 0 <= each < _MOST_FILE_BYTES for each in figures) else None
