"""Laws of the ladder: whatever fails in whatever order, what was pinned stays, and it ends."""

from __future__ import annotations

from typing import get_args

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch.daemon.deployment import Changes, Deployment, Fault, Reason
from autolaunch.daemon.ladder import MAX_STEPS, RUNGS, choose, next_changes
from autolaunch.daemon.planning import plan_for
from autolaunch.pinning import pins_of
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins
from tests.pinned import held

CATALOG = Catalog()


def _machine(name: str) -> HardwareReport:
    report = report_from_spec(name, CATALOG)
    named = tuple(msgspec.structs.replace(each, uuid=f"GPU-{each.index}") for each in report.accelerators)
    return msgspec.structs.replace(report, accelerators=named)


MACHINES = st.sampled_from([_machine(name) for name in ("8xh100", "4xh200", "8x4090+512gb", "cpu-64gb")])


def _reasons(kind: object) -> list[Reason]:
    return [reason for each in get_args(kind) for reason in (get_args(each) or (each,))]


#: The faults that something can be done about come more often than the others.
FAULTS = st.builds(
    Fault,
    reason=st.sampled_from([*RUNGS, *RUNGS, *_reasons(Reason)]),
    permanent=st.booleans(),
    message=st.just("it failed"),
    serving=st.booleans(),
    fitting_context_tokens=st.sampled_from([None, None, 0, 5_000, 33_333, 150_000, 10**9]),
    devices=st.lists(st.sampled_from([f"GPU-{index}" for index in range(8)]), max_size=2).map(tuple),
)
DEPLOYMENTS = st.builds(
    Deployment,
    name=st.just("a"),
    model=st.sampled_from(["glm-4.6", "glm-4.5v", "glm-tiny"]),
    context_tokens=st.sampled_from([None, None, 8_192]),
    concurrency=st.sampled_from([None, 1, 64]),
    pinned=st.builds(
        Pins,
        engine=st.sampled_from([None, None, "vllm", "sglang"]),
        tensor_parallel=st.sampled_from([None, None, 1, 4]),
        max_sequences=st.sampled_from([None, None, 4]),
        memory_utilization=st.sampled_from([None, None, 0.85]),
        eager=st.sampled_from([None, False, True]),
        kv_cache_dtype=st.sampled_from([None, None, "fp8"]),
    ),
    lower_accuracy=st.booleans(),
)


def _free(changes: Changes) -> bool:
    return changes.pinned is None


def _differs(chosen: Candidate, report: HardwareReport, before: Changes, after: Changes) -> list[str]:
    """What one step has changed: limits against the configuration that ran, and what is left out."""
    found = [
        f"{name} {each}"
        for name in ("avoid", "without_devices")
        for each in set(getattr(after, name)) ^ set(getattr(before, name))
    ]
    if after.pinned is not None:
        ran = pins_of(chosen, report, CATALOG)
        found += [name for name in Pins.__struct_fields__ if getattr(ran, name) != getattr(after.pinned, name)]
        found += ["context"] if after.context_tokens != chosen.limits.context_tokens else []
    return found


@settings(max_examples=40, derandomize=True)
@given(MACHINES, DEPLOYMENTS, st.lists(FAULTS, min_size=1, max_size=14))
def test_whatever_fails_what_was_pinned_stays_and_one_thing_is_changed_at_a_time(
    report: HardwareReport, wanted: Deployment, faults: list[Fault]
) -> None:
    changes = Changes()
    first = choose(plan_for(wanted, report, changes, known=CATALOG), changes, wanted, None)
    chosen = first
    for fault in faults:
        if chosen is None or first is None:
            break
        more = next_changes(chosen, fault, changes, wanted, report=report, known=CATALOG, first=first, repeated=True)
        if more is None:
            continue
        assert len(more.steps) == len(more.rungs) == len(changes.steps) + 1 <= MAX_STEPS
        assert more.steps[:-1] == changes.steps
        differs = _differs(chosen, report, changes, more)
        assert len(differs) == 1 or (more.rungs[-1] == "devices" and len(differs) == len(set(fault.devices)))
        changes = more
        plan = plan_for(wanted, report, changes, known=CATALOG)
        after = choose(plan, changes, wanted, first)
        if after is not None:
            _holds(after, first, wanted, report, changes)
        elif not _free(changes) and changes.rungs[-1] not in ("devices", "layout", "candidate"):
            raise AssertionError(f"a step leads to nothing: {changes.steps[-1]}\n{plan.explain()}")
        chosen = after


def _holds(after: Candidate, first: Candidate, wanted: Deployment, report: HardwareReport, changes: Changes) -> None:
    """What the user asked for is in a candidate that is taken."""
    has = held(after)
    for name in Pins.__struct_fields__:
        asked = getattr(wanted.pinned, name)
        assert asked is None or name not in has or has[name] == asked, name
    if wanted.context_tokens is not None:
        assert after.limits.context_tokens == wanted.context_tokens
    if not wanted.lower_accuracy:
        assert after.score_terms.quality >= first.score_terms.quality
    lost = {each.index for each in report.accelerators if each.uuid in changes.without_devices}
    assert not lost & set(after.parallel.devices)


@settings(max_examples=25, derandomize=True)
@given(MACHINES, DEPLOYMENTS, FAULTS, st.booleans())
def test_one_fault_again_and_again_comes_to_an_end(
    report: HardwareReport, wanted: Deployment, fault: Fault, ranked: bool
) -> None:
    """Also with the ranking at hand: then every step but the last leads to something that can be started."""
    plan = plan_for(wanted, report, Changes(avoid=("nothing",)), known=CATALOG)
    first = choose(plan, Changes(), wanted, None)
    chosen, changes, seen = first, Changes(), [Changes()]
    while chosen is not None:
        more = next_changes(
            chosen,
            fault,
            changes,
            wanted,
            report=report,
            known=CATALOG,
            plan=plan if ranked else None,
            first=first,
            repeated=True,
        )
        if more is None:
            break
        assert more not in seen
        seen.append(more)
        changes = more
        plan = plan_for(wanted, report, changes, known=CATALOG)
        chosen = choose(plan, changes, wanted, first)
        if ranked and changes.rungs[-1] in ("layout", "candidate"):
            assert chosen is not None
    assert len(seen) <= MAX_STEPS + 1
