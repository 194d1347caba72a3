"""The nodes of a cluster, and what they are called."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from selector.values import Value

#: So many names stand in a sentence; the others are counted.
_NAMED = 12


class Member(Value, frozen=True, kw_only=True):
    """A node as the cluster knows it; of a dead one it knows no resources.

    ``id`` is Ray's, ``name`` the host's. ``gpus`` are those that Ray gives to work on the node, whatever is in it, and
    ``free_gpus`` those of them that no work has now (``None``: from outside, by ``ray://``, Ray does not tell).
    ``is_here``: it is the host that asks. ``why_dead`` is what Ray says of its end.
    """

    id: str
    name: str
    address: str
    alive: bool
    is_head: bool = False
    is_here: bool = False
    cpus: float | None = None
    gpus: float | None = None
    free_gpus: float | None = None
    why_dead: str | None = None


def place_of(member: Member) -> tuple[bool, bool, tuple[int, bytes], str]:
    """A key of their order: the head, then by address (as a number where it is one), then by id."""
    try:
        address = ipaddress.ip_address(member.address)
    except ValueError:
        key = (9, member.address.encode())
    else:
        key = (address.version, address.packed)
    return not member.is_head, not member.alive, key, member.id


def names_of(members: Iterable[Member]) -> dict[str, str]:
    """What each is called, by its id: its host's name, and where that is another's too its address or id beside it."""
    every = tuple(members)
    names = Counter(each.name for each in every)
    places = Counter((each.name, each.address) for each in every)
    found = {}
    for each in every:
        if names[each.name] == 1:
            found[each.id] = each.name
        elif places[each.name, each.address] == 1 and each.address:
            found[each.id] = f"{each.name} ({each.address})"
        else:
            found[each.id] = f"{each.name} ({each.id[:8]})"
    return found


def listed(names: Iterable[str]) -> str:
    """``a, b and c``; of many, the first dozen."""
    every = tuple(names)
    if len(every) > _NAMED:
        return f"{', '.join(every[:_NAMED])} and {len(every) - _NAMED:,} more"
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]}"
