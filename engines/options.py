"""Options a user hands to an engine after ``--``: passed on as they are, but for those that are ours or dangerous."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from selector.errors import UsageError

if TYPE_CHECKING:
    from engines.option_rules import Rules


def valued(option: str, value: str) -> tuple[str, ...]:
    """An option and its value; as one token where the value would be taken for an option."""
    return (f"{option}={value}",) if value.startswith("-") else (option, value)


def checked_extra(extra: tuple[str, ...], *, owned: Collection[str] = (), engine: str) -> tuple[str, ...]:
    """``extra`` unchanged, one value one token. ``owned`` are options beside those of :mod:`engines.option_rules`.

    Raises:
        UsageError: an option that autolaunch sets itself, or a dangerous one, is among them. It is named; a shortened
            spelling (argparse takes ``--hos`` for ``--host``), the other dash, a key after a dot and the opposite
            (``--no-enforce-eager``) count.
    """
    if not extra:
        return ()  # as in every plan: the rules are not even read
    from engines.option_rules import EVERYWHERE, RULES, Rules

    rules = next((each for name, each in RULES.items() if name == engine), Rules())
    for place, token in enumerate(extra):
        if "\0" in token:
            raise UsageError("an engine option holds a NUL character")
        if token == "--":  # noqa: S105 (the end of options, no password)
            raise UsageError("a second -- is not passed on", hint="the engine's options stand behind one --")
        name = token.split("=", 1)[0]
        if not name.startswith("-") or _plain(name) in rules.free:
            continue
        _refuse_nested(name, token.partition("=")[2] or "".join(extra[place + 1 : place + 2]), rules, engine)
        for option, why in (*EVERYWHERE.dangerous.items(), *rules.dangerous.items()):
            if _means(name, option, rules):
                hint = "the GLM checkpoints need no code of their own on current engines"
                raise UsageError(
                    f"{name} is not passed on to {engine}: {why}", hint=hint if option in EVERYWHERE.dangerous else None
                )
        for option in (*rules.owned, *owned):
            if any(_means(name, each, rules) for each in (option, *_opposites(option))):
                ours = rules.owned.get(option)
                raise UsageError(
                    f"{name} belongs to autolaunch and cannot be given to {engine}",
                    hint="the plan decides it" if ours is None else f"use {ours}, before the --",
                )
    return extra


def _refuse_nested(name: str, value: str, rules: Rules, engine: str) -> None:
    """Keys that run code, behind a dot (``--compilation-config.backend``) or in a JSON value, however deep."""
    keys = {key.replace("-", "_") for key in name.partition(".")[2].split(".")}
    for option, wrong in rules.nested.items():
        if not _means(name, option, rules):
            continue
        for key in sorted((keys | set(_keys(value))) & set(wrong)):
            raise UsageError(
                f"{option}.{key} is not passed on to {engine}: it would run code, or another model, than was planned"
            )


def _keys(value: str) -> Iterator[str]:
    """Every key of a JSON value; what is no JSON has none."""
    if not value.lstrip().startswith(("{", "[")):
        return
    import json

    try:
        waiting: list[object] = [json.loads(value)]
    except (ValueError, RecursionError):
        return
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from (str(key).replace("-", "_") for key in one)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _plain(name: str) -> str:
    """Dashes for underscores, and without a key after a dot (``--speculative-config.method``)."""
    return name.replace("_", "-").partition(".")[0]


def _means(name: str, option: str, rules: Rules) -> bool:
    """Whether an engine could take ``name`` for ``option``: shortened, with the other dash, with a key, attached."""
    spelled, option = _plain(name), option.replace("_", "-")
    if option == spelled:
        return True
    if option.startswith("--"):
        return len(spelled) > 2 and spelled.startswith("--") and option.startswith(spelled)
    if not rules.joins_short or spelled.startswith("--") or len(spelled) < 2:
        return False
    return option.startswith(spelled) or (len(option) == 2 and spelled.startswith(option) and spelled[2:].isalnum())


def _opposites(option: str) -> Iterator[str]:
    """The names that unset a flag: argparse's ``--no-``, and vLLM's pairs of enable and disable."""
    if not option.startswith("--"):
        return
    yield f"--no-{option[2:]}"
    for one, other in (("--enable-", "--disable-"), ("--disable-", "--enable-")):
        if option.startswith(one):
            yield other + option.removeprefix(one)
