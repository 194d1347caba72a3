"""Nodes that do not have what an engine needs: each named in one error, with its reason and the line that mends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from autolaunch.cluster.at_work import Trouble, trouble_of
from autolaunch.cluster.likeness import Told
from autolaunch.cluster.members import Member
from autolaunch.cluster.orders import Order
from autolaunch.cluster.ray_cluster import Ran
from selector.errors import AutolaunchError, ClusterError, NoRoomOnDisk
from selector.values import readable

#: So many nodes are named with their reasons; of the others it is said how many they are.
_NAMED = 8
_SAME = "the same release of autolaunch has to be on every node"


def told(ran: Ran) -> Told | Trouble:
    """What ``autolaunch node-check`` wrote on a node; a stranger's."""
    trouble = trouble_of(ran)
    if ran.end.outcome != "exited":
        return trouble
    if ran.end.exit_code != 0:
        hint = trouble.hint or _SAME
        return msgspec.structs.replace(trouble, hint=hint)
    try:
        return msgspec.json.decode(ran.output, type=readable(Told))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return Trouble(member=ran.member, code="cluster.unreadable", message="answered what cannot be read", hint=_SAME)


def of_environment(member: Member, found: Told, environment: Path, order: Order | None) -> Trouble:
    """Why a node's environment is not this host's, and the line that mends it."""
    said = {
        "absent": f"has no environment at {environment}",
        "unusable": f"has one at {environment} that is not used: {found.why or 'it does not say why'}",
    }.get(found.environment, f"has another environment at {environment}: its packages are not those of this host")
    if order is None:
        mend = f"rsync -a {environment}/ {member.address or member.name}:{environment}/"
        what = "another" if found.environment == "other" else "no"
        said = f"has {what} engine at {environment}, which has to be the same on every node"
        return Trouble(member=member, code="engine.install", message=said, mend=mend)
    mend = order.by_hand(member)
    if found.environment == "other":
        words = msgspec.structs.replace(order, argv=("autolaunch", "engines", "remove", order.argv[3]), input_path=None)
        mend = words.by_hand(member)
    return Trouble(member=member, code="engine.install", message=said, mend=mend)


def of_weights(member: Member, found: Told, folder: Path, order: Order | None) -> Trouble:
    """Why its weights are not; without an order they have to be copied by hand."""
    if found.weights == "absent":
        said = f"has no folder {folder}"
    else:
        first = ", ".join(found.examples)
        more = f" and {found.differing - len(found.examples):,} more" if found.differing > len(found.examples) else ""
        said = f"has other files in {folder}, or not all of them: {first}{more}"
    copied = f"rsync -a {folder}/ {member.address or member.name}:{folder}/"
    return Trouble(
        member=member, code="download", message=said, mend=copied if order is None else order.by_hand(member)
    )


def refuse(troubles: Sequence[Trouble], names: Mapping[str, str], kind: type[AutolaunchError]) -> None:
    """One error of them all: each node with its reason, and the lines that mend it.

    Raises:
        ClusterError: a node was lost, or has no autolaunch.
        AutolaunchError: of ``kind``, or of the kind below it that all of the nodes name.
    """
    if not troubles:
        return
    codes = {each.code for each in troubles}
    if any(each.startswith("cluster.") for each in codes):
        kind = ClusterError
    elif len(codes) == 1:
        # A full disk is the same error whatever it was to hold.
        kind = _named(kind, *codes) or _named(NoRoomOnDisk, *codes) or kind
    named = [f"{names[each.member.id]}: {each.message}" for each in troubles[:_NAMED]]
    named += [f"and {len(troubles) - _NAMED:,} more nodes"] if len(troubles) > _NAMED else []
    hints = dict.fromkeys(each.hint for each in troubles[:_NAMED] if each.hint is not None)
    hints |= dict.fromkeys(each.mend for each in troubles[:_NAMED] if each.mend is not None)
    raise kind("; ".join(named), hint="\n".join(filter(None, hints)) or None)


def _named(kind: type[AutolaunchError], code: str) -> type[AutolaunchError] | None:
    """The error of that code, itself or below ``kind``."""
    if kind.code == code:
        return kind
    return next((found for each in kind.__subclasses__() if (found := _named(each, code)) is not None), None)
