"""Why an engine failed, from its last lines and its exit code.

The lines are searched from the last one up and the first sign tells. What an engine says of itself ("Engine core
initialization failed") gives way to the cause above it, also when that has left the last lines and is only among the
suspects that a reader kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from engines.logs.patterns import LINE_CHARACTERS, Cause, Failure, Known, LoadStage, known
from selector.values import Value

__all__ = ["Cause", "Diagnosis", "classify", "is_suspect"]

_GIB = 2**30
#: The last line of a traceback, also behind a logger's prefix.
_EXCEPTION = re.compile(r"(?:^|\s)(?!\S*CancelledError)[A-Za-z_][\w.]*(?:Error|Exception)(?::(?:\s|$)|$)")
#: Signals that an engine does not send itself: what each of them means when nothing was said. SIGKILL comes from the
#: kernel's out-of-memory killer as a rule, SIGBUS from shared memory or a mapped file that ended.
_SIGNALS: dict[int, Cause] = {2: "stopped", 7: "disk full", 9: "killed", 15: "stopped"}
#: A shell, or a wrapper, tells a signal as 128 and its number.
_SHELL = 128


class Diagnosis(Value, frozen=True, kw_only=True):
    """A failure, classified.

    ``permanent``: the same again fails again. ``line`` is the one that told (of an unknown cause, the last
    exception's), without what its logger put before it, and ``rank`` who printed it. ``fitting_context_tokens`` is the
    context that the engine itself says would fit; ``needed_bytes`` and ``available_bytes`` are a device's; ``device``
    is what the engine calls it.
    """

    cause: Cause
    permanent: bool
    hint: str | None = None
    line: str | None = None
    rank: str | None = None
    fitting_context_tokens: int | None = None
    needed_bytes: int | None = None
    available_bytes: int | None = None
    device: str | None = None

    @property
    def sentence(self) -> str:
        """``out of memory (torch.OutOfMemoryError: …)``; of an unknown cause, the line alone, or nothing."""
        if self.cause == "unknown":
            return (self.line or "")[:200]
        return self.cause + (f" ({self.line[:200]})" if self.line else "")


class _Found(NamedTuple):
    failure: Failure
    groups: dict[str, str]
    line: str
    rank: str


#: Lines of a process that a signal ended in which its cause may stand.
_LAST_WORDS = 20


def classify(
    lines: Sequence[str],
    *,
    engine: str = "",
    version: str | None = None,
    exit_code: int | None = None,
    stage: LoadStage | None = None,
    serving: bool = False,
    suspects: Sequence[str] = (),
) -> Diagnosis:
    """The cause that ``lines`` (oldest first) tell; where they say nothing, the one that ``exit_code`` does.

    ``stage`` is the part of the load in which it failed: a kernel that fails while CUDA graphs are captured is a failed
    capture. ``serving``: tokens had come before it failed. ``suspects`` are earlier lines that told a failure.

    Raises:
        ProfileError: a file of patterns is wrong.
    """
    facts = known(engine, version)
    killed = _of_exit(exit_code)
    # Who is killed says nothing of it: what was said long before was lived with.
    root, consequence = _search(lines if killed is None else lines[-_LAST_WORDS:], facts)
    if root is None and consequence is not None:
        root, _ = _search(suspects, facts)
    found = root or consequence
    if found is None:
        if killed is not None:
            return _diagnosis(facts, killed, None, serving=serving)
        return _diagnosis(facts, "unknown", _last_exception(lines, facts), serving=serving)
    cause = found.failure.cause
    if stage is not None and not serving:
        cause = facts.causes[cause].in_stage.get(stage, cause)
    line: str | None = found.line
    if root is None and found.failure.cause == "unknown":
        line = _last_exception(lines, facts) or line
    return _diagnosis(facts, cause, line, found, serving=serving)


def is_suspect(line: str, lowered: str, facts: Known) -> bool:
    """Whether a line tells a failure by itself and not as the consequence of another."""
    found = _failure(line, lowered, facts)
    return found is not None and not found[0].consequence


def _search(lines: Sequence[str], facts: Known) -> tuple[_Found | None, _Found | None]:
    """The cause, and of the consequences below it the uppermost that has a name: the nearest to the cause."""
    consequence: _Found | None = None
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place][:LINE_CHARACTERS]
        found = _failure(line, line.lower(), facts)
        if found is None:
            continue
        failure, groups = found
        if not failure.consequence:
            return _Found(failure, groups, _told(lines, place, facts), facts.who(line)), consequence
        if consequence is None or failure.cause != "unknown":
            consequence = _Found(failure, groups, _told(lines, place, facts), facts.who(line))
    return None, consequence


def _failure(line: str, lowered: str, facts: Known) -> tuple[Failure, dict[str, str]] | None:
    for sign, failure in facts.failures:
        groups = sign.found(line, lowered)
        if groups is not None and (failure.at_any_level or not facts.is_quiet(line)):
            return failure, groups
    return None


def _last_exception(lines: Sequence[str], facts: Known) -> str | None:
    """The last exception's line that is not the consequence of another; of consequences alone, the last."""
    last: str | None = None
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place][:LINE_CHARACTERS]
        if _EXCEPTION.search(line):
            if _failure(line, line.lower(), facts) is None:
                return _told(lines, place, facts)
            last = last or _told(lines, place, facts)
    return last


def _told(lines: Sequence[str], place: int, facts: Known) -> str:
    told = facts.message(lines[place][:LINE_CHARACTERS]).strip()
    # Python writes a message of several lines below the error's name.
    below = next((text for line in lines[place + 1 :] if (text := facts.message(line).strip())), "")
    return f"{told} {below}"[:LINE_CHARACTERS].strip() if told.endswith(":") else told


def _of_exit(code: int | None) -> Cause | None:
    if code is None:
        return None
    return _SIGNALS.get(-code if code < 0 else code - _SHELL)


def _diagnosis(
    facts: Known, cause: Cause, line: str | None, found: _Found | None = None, *, serving: bool
) -> Diagnosis:
    known_cause = facts.causes[cause]
    permanent = known_cause.permanent
    if serving and known_cause.permanent_while_serving is not None:
        permanent = known_cause.permanent_while_serving
    groups = {} if found is None else found.groups
    hint = known_cause.hint if found is None or found.failure.hint is None else found.failure.hint
    tokens = groups.get("fitting_context_tokens")
    fitting = None if tokens is None else int(tokens.replace(",", ""))
    if hint is not None and fitting is not None:
        hint = hint.replace("{fitting_context_tokens}", str(fitting))
    return Diagnosis(
        cause=cause,
        permanent=permanent,
        hint=hint,
        line=line,
        rank=None if found is None or not found.rank else found.rank,
        fitting_context_tokens=fitting,
        needed_bytes=_gib(groups.get("needed_gib")),
        available_bytes=_gib(groups.get("available_gib")),
        device=groups.get("device"),
    )


def _gib(text: str | None) -> int | None:
    try:
        return None if text is None else round(float(text) * _GIB)
    except ValueError:  # "1.2.3"
        return None
