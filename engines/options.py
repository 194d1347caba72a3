"""Options a user hands to an engine after ``--``: passed on as they are, but for those that are ours."""

from __future__ import annotations

from collections.abc import Collection

from selector.errors import UsageError

#: Options that make an engine run code out of a checkpoint.
DANGEROUS = frozenset({"--trust-remote-code"})


def checked_extra(extra: tuple[str, ...], *, owned: Collection[str], engine: str) -> tuple[str, ...]:
    """``extra`` unchanged, one value one token.

    Raises:
        UsageError: an option that autolaunch sets itself, or that runs a checkpoint's own code, is
            among them. It is named; a shortened spelling (argparse takes ``--hos`` for ``--host``) counts.
    """
    for token in extra:
        if "\0" in token:
            raise UsageError("an engine option holds a NUL character")
        name = token.split("=", 1)[0]
        if not name.startswith("-"):
            continue
        if any(_means(name, option) for option in DANGEROUS):
            raise UsageError(
                f"{name} is not passed on to {engine}: it would run code from the checkpoint",
                hint="the GLM checkpoints need no code of their own on current engines",
            )
        if any(_means(name, option) for option in owned):
            raise UsageError(
                f"{name} belongs to autolaunch and cannot be given to {engine}",
                hint="use autolaunch's own option of that meaning, before the --",
            )
    return extra


def _means(name: str, option: str) -> bool:
    """Whether an engine could take ``name`` for ``option``: shortened, or with the other dash."""
    spelled, option = name.replace("_", "-"), option.replace("_", "-")
    return option == spelled or (len(spelled) > 2 and spelled.startswith("--") and option.startswith(spelled))
