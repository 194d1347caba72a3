"""What one node answered to ``autolaunch --version`` and ``autolaunch probe --json``, read as a stranger's."""

from __future__ import annotations

import re

import msgspec
from msgspec import inspect

from autolaunch.cluster.members import Member
from autolaunch.cluster.ray_cluster import Ran
from selector.errors import UnknownHardware
from selector.hardware import HardwareReport
from selector.probe.text import printable
from selector.values import Value, readable

_VERSION = re.compile(r"autolaunch ([0-9][0-9A-Za-z.+!-]{0,40})\s*\Z")
#: What a probe ends with that has a report: all is well, or a driver could not be asked.
_ANSWERED = (0, 4)
_NAMED_KEYS = 5


class Answer(Value, frozen=True, kw_only=True):
    """A member and its report, or why there is none.

    ``version`` is of the autolaunch there, ``None`` where it did not say. ``unknown`` are keys of the report that this
    release does not know: the report is used without them.
    """

    member: Member
    version: str | None = None
    report: HardwareReport | None = None
    unknown: tuple[str, ...] = ()
    trouble: str | None = None


def dead(member: Member) -> Answer:
    """Of a member that nobody can ask."""
    return Answer(member=member, trouble="is dead" + (f": {member.why_dead}" if member.why_dead else ""))


def version_in(ran: Ran) -> str | None:
    """What ``autolaunch --version`` said."""
    found = _VERSION.match(ran.output.strip())
    return found[1] if ran.end.outcome == "exited" and found is not None else None


def unanswered(ran: Ran) -> str | None:
    """Why nothing came back, as the predicate of a sentence about the node; ``None`` where it answered."""
    outcome, message = ran.end.outcome, ran.end.message
    if outcome == "missing":
        return "has no autolaunch, neither beside the Python of Ray nor on its PATH"
    if outcome == "silent":
        return f"did not answer within {ran.end.seconds:.0f} s"
    if outcome == "timed_out":
        return f"was not done with `{' '.join(ran.argv)}` after {ran.end.seconds:.0f} s"
    if outcome == "lost":
        return f"was lost while it was asked: {message or 'Ray does not say why'}"
    if outcome == "failed":
        return f"could not run autolaunch: {message or 'it does not say why'}"
    return "was not asked: it was cancelled" if outcome == "cancelled" else None


def answered(member: Member, version: str | None, ran: Ran) -> Answer:
    """The report in what ``autolaunch probe --json`` wrote."""
    why = unanswered(ran)
    if why is None and ran.end.dropped_bytes:
        why = "wrote more than any report has"
    if why is not None:
        return Answer(member=member, version=version, trouble=why)
    try:
        document = msgspec.json.decode(ran.output)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if ran.end.exit_code not in _ANSWERED or not isinstance(document, dict) or "error" in document:
        return Answer(member=member, version=version, trouble=_failure(ran, document))
    unknown: list[str] = []
    known = _known(document, inspect.type_info(readable(HardwareReport)), "", unknown)
    try:
        report = msgspec.convert(known, HardwareReport)
        from selector.machines import checked_report

        report = checked_report(report)
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        return Answer(member=member, version=version, trouble=_unreadable(explain(error, HardwareReport)))
    except UnknownHardware as error:
        return Answer(member=member, version=version, trouble=_unreadable(error.message))
    if report.nodes != 1 or report.hosts:
        return Answer(member=member, version=version, trouble=_unreadable("it is of several machines"))
    return Answer(member=member, version=version, report=report, unknown=_shortened(unknown))


def _failure(ran: Ran, document: object) -> str:
    told = document.get("error") if isinstance(document, dict) else None
    said = told.get("message") if isinstance(told, dict) else None
    if not isinstance(said, str):
        said = (ran.errors.strip() or ran.output.strip() or "it wrote nothing").splitlines()[-1]
    return f"could not be probed: {printable(said, 300)} (exit code {ran.end.exit_code})"


def _unreadable(why: str) -> str:
    return f"wrote a report that cannot be read: {printable(why, 300)}"


def _known(value: object, kind: inspect.Type, path: str, unknown: list[str]) -> object:
    """``value`` without the keys that ``kind`` has not, whose paths are added to ``unknown``."""
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if isinstance(value, dict):
        struct = next((each for each in options if isinstance(each, inspect.StructType)), None)
        if struct is None:
            return value
        fields = {each.encode_name: each.type for each in struct.fields}
        unknown += [f"{path}{name}" for name in value if name not in fields]
        return {
            name: _known(part, fields[name], f"{path}{name}.", unknown)
            for name, part in value.items()
            if name in fields
        }
    if isinstance(value, list):
        items = next((each.item_type for each in options if isinstance(each, inspect.VarTupleType)), None)
        return value if items is None else [_known(part, items, path, unknown) for part in value]
    return value


def _shortened(unknown: list[str]) -> tuple[str, ...]:
    names = dict.fromkeys(printable(each, 60) or "?" for each in unknown)
    return tuple(names)[:_NAMED_KEYS]
