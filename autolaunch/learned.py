"""The plan of this machine, less what was tried on it and failed (:mod:`autolaunch.daemon.store`).

Nothing is hidden: what is left out is among the refusals with what happened and when, and limits that served in the
place of larger ones that did not are told in a note. What a user pinned wholly is kept, and told what it did before.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from autolaunch.daemon.deployment import Reason
from autolaunch.daemon.store import Configuration, Tried, Where, configuration_of, where_of
from autolaunch.pinning import pins_of
from selector.contract import Candidate, LaunchPlan, Note, Rejection
from selector.hardware import HardwareReport
from selector.plan import ALTERNATIVES_SHOWN, varied
from selector.request import Pins
from selector.search import Facts

#: What asks for more or less of the same configuration; all else makes it another one.
_AMOUNTS = frozenset({"context_tokens", "max_sequences", "memory_utilization"})

_WORDS: dict[Reason | None, str] = {
    "out of memory": "ran out of memory",
    "out of host memory": "ran out of main memory",
    "kv cache does not fit": "had no room for its KV cache",
    "missing kernel": "lacked a kernel",
    "graph capture": "failed to capture its graphs",
    "model not supported": "did not take the model",
}

#: The pins that, with the weights and a context, leave an engine's own figures nothing to choose.
_WHOLE = ("engine", "tensor_parallel", "pipeline_parallel", "data_parallel", "max_sequences")


def with_learned(
    decided: LaunchPlan,
    tried: Callable[[Where], tuple[Tried, ...]],
    replan: Callable[[Pins, int | None], LaunchPlan],
    *,
    facts: Facts,
    whole: Callable[[], LaunchPlan] | None = None,
) -> LaunchPlan:
    """``decided`` without the configurations that failed here and have not served since.

    Args:
        decided: the plan as it would be without a memory.
        tried: what is known of a place (:meth:`autolaunch.daemon.store.Store.tried`).
        replan: the plan of the same request with these pins and this context.
        facts: the catalogue.
        whole: the same plan with every candidate, where ``decided`` has only the best of each checkpoint and engine;
            it is asked for only when one of those is left out.
    """
    memory = _Memory(decided, tried, replan, facts)
    shown = _ranking(decided)
    if all(memory.failure(each) is None for each in shown):
        return decided
    pinned = _wholly_pinned(decided, shown, facts)
    if pinned is not None:
        failure = memory.failure(pinned)
        return decided if failure is None else _replaced(decided, (_warned(pinned, failure), *shown[1:]), ())
    every = shown if whole is None else _ranking(whole())
    kept: list[Candidate] = []
    left_out: list[Rejection] = []
    for each in every:
        failure = memory.failure(each)
        found = each if failure is None else memory.smaller(each, failure)
        if found is not None:
            kept.append(found)
        elif failure is not None:
            left_out.append(_rejection(each, failure))
    if whole is not None:
        first = kept[:1]
        others = tuple(each for each in varied(tuple(kept), ALTERNATIVES_SHOWN + 1) if each not in first)
        kept = [*first, *others[:ALTERNATIVES_SHOWN]]
        left_out = _best_of_each(left_out)
    return _replaced(decided, tuple(kept), tuple(left_out))


class _Memory:
    """What is known of the candidates of a plan; each place is asked for once."""

    def __init__(
        self,
        decided: LaunchPlan,
        tried: Callable[[Where], tuple[Tried, ...]],
        replan: Callable[[Pins, int | None], LaunchPlan],
        facts: Facts,
    ) -> None:
        self._decided, self._tried, self._replan, self._facts = decided, tried, replan, facts
        self._known: dict[Where, tuple[Tried, ...]] = {}

    @property
    def _report(self) -> HardwareReport:
        return self._decided.hardware

    def _at(self, candidate: Candidate) -> tuple[Tried, ...]:
        where = where_of(candidate, self._report)
        if where not in self._known:
            self._known[where] = self._tried(where)
        return self._known[where]

    def failure(self, candidate: Candidate) -> Tried | None:
        """The last failure of this configuration, or of one that asked for no more, unless it served after it."""
        return _failure(configuration_of(candidate), self._at(candidate))

    def smaller(self, candidate: Candidate, failure: Tried) -> Candidate | None:
        """``candidate`` with the largest limits that served since it failed, if the request allows them."""
        asked, known = configuration_of(candidate), self._at(candidate)
        served = [
            each.configuration
            for each in known
            if each.served
            and each.at > failure.at
            and _as_large(asked, each.configuration)
            and _failure(each.configuration, known) is None
            and self._allowed(each.configuration)
        ]
        for limits in sorted(served, key=lambda each: (-each.context_tokens, -each.max_sequences)):
            lowered = msgspec.structs.replace(
                candidate, limits=msgspec.structs.replace(candidate.limits, **_amounts(limits))
            )
            again = self._replan(pins_of(lowered, self._report, self._facts), limits.context_tokens).chosen
            if again is None or configuration_of(again) != limits:
                continue  # others hold memory now that was free then
            # It stands where the larger one stood: a score of a plan of one candidate says nothing beside others.
            return msgspec.structs.replace(
                again,
                score=candidate.score,
                score_terms=candidate.score_terms,
                checkpoint=candidate.checkpoint,
                engine=candidate.engine,
                notes=(*again.notes, _told(failure, limits)),
            )
        return None

    def _allowed(self, limits: Configuration) -> bool:
        """Whether limits keep what was asked for: a wish is never lowered."""
        request = self._decided.request
        pinned = {name: value for name, value in request.pinned.items() if name in _AMOUNTS}
        return limits.context_tokens >= (request.context_tokens or 0) and all(
            getattr(limits, name) == value for name, value in pinned.items()
        )


# --- which configurations a failure is of -------------------------------------------------------------


def _amounts(one: Configuration) -> dict[str, int | float]:
    return {name: getattr(one, name) for name in _AMOUNTS}


def _alike(one: Configuration, other: Configuration) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in one.__struct_fields__ if name not in _AMOUNTS)


def _as_large(one: Configuration, other: Configuration) -> bool:
    """Whether ``one`` is ``other`` with as much of everything, or more: what ``other`` had no room for it has not."""
    return (
        _alike(one, other) and one.context_tokens >= other.context_tokens and one.max_sequences >= other.max_sequences
    )


def _repeats(one: Configuration, failure: Tried) -> bool:
    """Whether ``one`` would fail as this did."""
    share, failed = one.memory_utilization, failure.configuration.memory_utilization
    if failure.reason == "kv cache does not fit":
        no_better = share <= failed  # a larger share leaves the cache more
    elif failure.reason == "out of memory":
        no_better = share >= failed  # a smaller one leaves more beside it
    else:
        no_better = True
    return no_better and _as_large(one, failure.configuration)


def _failure(one: Configuration, known: tuple[Tried, ...]) -> Tried | None:
    served = [each.at for each in known if each.served and _as_large(each.configuration, one)]
    failures = [each for each in known if not each.served and _repeats(one, each)]
    last = max(failures, key=lambda each: each.at, default=None)
    return None if last is None or max(served, default=float("-inf")) > last.at else last


def _wholly_pinned(decided: LaunchPlan, shown: tuple[Candidate, ...], facts: Facts) -> Candidate | None:
    """The chosen candidate, where everything that makes it was asked for by name."""
    request = decided.request
    if not shown or request.context_tokens is None or not {"repo", "quantization"} & set(request.pinned):
        return None
    needed = pins_of(shown[0], decided.hardware, facts)
    whole = all(name in request.pinned for name in _WHOLE if getattr(needed, name) is not None)
    return shown[0] if whole else None


# --- what is told ---------------------------------------------------------------------------------------


def _ranking(plan: LaunchPlan) -> tuple[Candidate, ...]:
    return () if plan.chosen is None else (plan.chosen, *plan.alternatives)


def _replaced(decided: LaunchPlan, ranked: tuple[Candidate, ...], left_out: tuple[Rejection, ...]) -> LaunchPlan:
    """The plan with this ranking. What the second would lack to be the first was said of another list."""
    numbered = tuple(
        msgspec.structs.replace(each, rank=rank, notes=tuple(note for note in each.notes if note.code != "second"))
        for rank, each in enumerate(ranked, start=1)
    )
    if numbered and decided.chosen is not None and _is_worse(numbered[0], decided.chosen):
        numbered = (_told_worse(numbered[0], decided.chosen), *numbered[1:])
    return msgspec.structs.replace(
        decided,
        feasible=bool(numbered),
        chosen=numbered[0] if numbered else None,
        alternatives=numbered[1:],
        rejected=(*left_out, *decided.rejected),
    )


def _is_worse(found: Candidate, before: Candidate) -> bool:
    return found.score_terms.quality < before.score_terms.quality


def _told_worse(found: Candidate, before: Candidate) -> Candidate:
    """Accuracy is not lowered without a word."""
    was, now = before.checkpoint, found.checkpoint
    message = (
        f"{was.repo} ({was.quantization}) would come first, but failed here; the weights of {now.repo} "
        f"({now.quantization}) are of a lower quality"
    )
    note = Note(severity="info", code="learned.quality", message=message)
    return msgspec.structs.replace(found, notes=(*found.notes, note))


def _best_of_each(rejected: list[Rejection]) -> list[Rejection]:
    """The first of each checkpoint and engine, as a plan shows its refusals."""
    first: dict[tuple[str, str, str], Rejection] = {}
    for each in rejected:
        first.setdefault((each.repo, each.quantization, each.engine), each)
    return list(first.values())


def _when(failure: Tried) -> str:
    return datetime.fromtimestamp(failure.at, UTC).strftime("%Y-%m-%d")


def _what(failure: Tried) -> str:
    return _WORDS.get(failure.reason, f"failed ({failure.reason})")


def _layout(one: Configuration) -> str:
    parts = [f"TP {one.tensor}"] if one.tensor > 1 else []
    parts += [f"PP {one.pipeline}"] if one.pipeline > 1 else []
    parts += ["EP"] if one.expert else []
    parts += [f"{one.data} replicas"] if one.data > 1 else []
    return ", ".join(parts) or ("one device" if one.devices else "on the CPU")


def _sentence(candidate: Candidate, failure: Tried) -> str:
    one, engine = failure.configuration, candidate.engine
    return (
        f"{_what(failure)} here on {_when(failure)} ({engine.name} {engine.version}, {_layout(one)}, context "
        f"{one.context_tokens:,})"
    )


def _rejection(candidate: Candidate, failure: Tried) -> Rejection:
    one = failure.configuration
    return Rejection(
        repo=candidate.checkpoint.repo,
        quantization=candidate.checkpoint.quantization,
        engine=candidate.engine.name,
        parallel=candidate.parallel,
        code="learned.failed",
        message=_sentence(candidate, failure),
        numbers={"failed_at": failure.at, "context_tokens": one.context_tokens, "max_sequences": one.max_sequences},
    )


def _told(failure: Tried, limits: Configuration) -> Note:
    one = failure.configuration
    message = (
        f"with a context of {one.context_tokens:,} and {one.max_sequences:,} sequences it {_what(failure)} here on "
        f"{_when(failure)}; with {limits.context_tokens:,} and {limits.max_sequences:,} it has served since"
    )
    return Note(severity="info", code="learned.limits", message=message)


def _warned(candidate: Candidate, failure: Tried) -> Candidate:
    memory = failure.reason in ("out of memory", "out of host memory", "kv cache does not fit")
    note = Note(
        severity="oom" if memory else "crash",
        code="learned.failed",
        message=f"it {_sentence(candidate, failure)}; it was pinned whole, so it is kept",
    )
    return msgspec.structs.replace(candidate, notes=(*candidate.notes, note))
