"""What would serve more than a plan that fits: a longer context, all requests at once, speed, better weights."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from selector.asked import PlanRequest
from selector.case import Case, Shelf, figures, share, title
from selector.contract import Advice, AdviceKind, Candidate
from selector.fitting import free_memory, wired_limit
from selector.search import Decision
from selector.smallest import more_of_the_same
from selector.typed import typed


def longer_context(case: Case, decision: Decision, *, thorough: bool) -> Iterator[Advice]:
    """The plan serves less than was asked for, or than the model's context: what would give more."""
    chosen = decision.ranked[0]
    here = chosen.limits.context_tokens
    if here >= (case.request.context_tokens or case.model.context_tokens):
        return
    yield from wired_limit(case, better_than=here)
    if case.request.pins.kv_cache_dtype is None:
        yield from _eight_bit_context(case, chosen)
    if thorough:
        yield from _other_plan_with_more(case, decision)
        yield from free_memory(case, better_than=here)


def _eight_bit_context(case: Case, chosen: Candidate) -> Iterator[Advice]:
    here = chosen.limits.context_tokens
    wider = case.pinned_to(chosen, kv_cache_dtype="fp8")
    found = case.decided(request=wider)
    if found is not None and found.ranked[0].limits.context_tokens > here:
        best = found.ranked[0]
        message = (
            f"a KV cache in fp8 would take the context from {here:,} to {best.limits.context_tokens:,} tokens; it "
            "lowers accuracy a little, so it is not chosen by itself"
        )
        yield case.advice("kv_cache", message, best, wider)


def _other_plan_with_more(case: Case, decision: Decision) -> Iterator[Advice]:
    """The longest context of all that fits; of several the best plan."""
    chosen = decision.ranked[0]
    longest = max(decision.ranked, key=lambda each: each.limits.context_tokens).limits.context_tokens
    if longest <= chosen.limits.context_tokens:
        return
    longer = msgspec.structs.replace(case.request, context_tokens=longest)
    found = case.decided(request=longer)
    if found is not None:
        best = found.ranked[0]
        message = (
            f"{title(best)} would take {longest:,} tokens instead of {chosen.limits.context_tokens:,}{_cost(best)}"
        )
        yield case.advice("context", message, best, longer)


def speculation(case: Case, decision: Decision) -> Iterator[Advice]:
    """What MTP would make of one request's speed, where it was neither asked for nor searched."""
    chosen = decision.ranked[0]
    plain = chosen.speed.decode_tokens_per_second
    if plain is None or chosen.limits.speculative == "mtp" or case.request.pins.speculative is not None:
        return
    if "mtp" not in case.facts.engine(chosen.engine.name).speculative:
        return
    asked = case.pinned_to(chosen, speculative="mtp")
    found = case.decided(request=asked)
    quicker = None if found is None else found.ranked[0].speed.decode_tokens_per_second
    if found is not None and quicker is not None and quicker > plain:
        message = (
            f"MTP speculative decoding would take one request from {plain:,.0f} to {quicker:,.0f} tokens/s on text "
            "that is easy to foresee; many at once gain less"
        )
        yield case.advice("engine", message, found.ranked[0], asked)


def all_at_once(case: Case, decision: Decision, shelf: Shelf) -> Iterator[Advice]:
    """Fewer requests run at once than were asked for: what would hold them all, or at least more of them."""
    chosen, asked = decision.ranked[0], case.request.concurrency
    held = case.held(chosen)
    if asked is None or held >= asked:
        return
    first = f"{held:,} of {asked:,} requests run at once, the others wait; "
    if case.request.pins.max_sequences is None:
        each = -(-asked // chosen.parallel.data)
        larger = case.pinned_to(chosen, max_sequences=each)
        yield from _holding_more(case, larger, held, f"{first}batches of up to {each:,} would hold", "engine")
    if case.request.pins.kv_cache_dtype is None:
        eight_bits = case.pinned_to(chosen, kv_cache_dtype="fp8")
        yield from _holding_more(case, eight_bits, held, f"{first}a KV cache in fp8 would hold", "kv_cache")
    other = next((each for each in decision.ranked[1:] if case.held(each) >= asked), None)
    if other is not None:
        message = f"{first}{title(other)} would hold"
        yield from _holding_more(case, case.pinned_to(other), held, message, "engine")
    yield from _more_devices(case, shelf, first)
    fewer = msgspec.structs.replace(case.request, concurrency=held)
    found = case.decided(request=fewer)
    if found is not None:
        yield case.advice("context", f"{first}asked for {held:,}, none does", found.ranked[0], fewer)


def _holding_more(case: Case, request: PlanRequest, held: int, message: str, kind: AdviceKind) -> Iterator[Advice]:
    found = case.decided(request=request)
    if found is not None and case.held(found.ranked[0]) > held:
        more = case.held(found.ranked[0])
        advice = case.advice(kind, f"{message} {more:,}", found.ranked[0], request)
        yield msgspec.structs.replace(advice, numbers={"requests": more, **advice.numbers})


def _more_devices(case: Case, shelf: Shelf, first: str) -> Iterator[Advice]:
    for name in more_of_the_same(case):
        found = case.holding(shelf.report(name))
        if found is not None:
            best, request = found
            yield Advice(
                kind="hardware",
                message=f"{first}{name} would hold {case.held(best):,}",
                numbers={"requests": case.held(best), **figures(best)},
                command=typed(request, name),
            )
            return


def better_weights(case: Case, decision: Decision) -> Iterator[Advice]:
    """The best plan with weights nearer to the original than those that were chosen."""
    chosen = decision.ranked[0]
    quality = case.quality(chosen)
    other = next((each for each in decision.ranked if case.quality(each) > quality), None)
    if other is None:
        return
    nearer = case.pinned(repo=other.checkpoint.repo, quantization=other.checkpoint.quantization)
    found = case.decided(request=nearer)
    if found is not None:
        best = found.ranked[0]
        message = (
            f"{title(best)} keeps {share(case.quality(best))} of the original's quality instead of {share(quality)}, "
            f"with a context of {best.limits.context_tokens:,}{_cost(best)}"
        )
        yield case.advice("engine", message, best, nearer)


def _cost(best: Candidate) -> str:
    rate = best.speed.decode_tokens_per_second
    return "" if rate is None else f", at {rate:,.0f} tokens/s for one request"
