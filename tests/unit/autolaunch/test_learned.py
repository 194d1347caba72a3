"""What failed here is not planned again, and it is told; what somebody pinned wholly is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.cli.app import run
from autolaunch.daemon.deployment import Fault, Reason
from autolaunch.daemon.store import Store, configuration_of, where_of
from autolaunch.pinning import pins_of
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins

#: 2026-11-20, 12:00 UTC.
NOON = 1_795_176_000.0


class Here:
    """A machine that is this one, and what is remembered of it; an hour passes with everything that is kept."""

    def __init__(self, report: HardwareReport, known: Catalog) -> None:
        self.report, self.known = report, known
        self.hours = 0
        self.store = Store(api.learned_path(), clock=self._now)

    def _now(self) -> float:
        self.hours += 1
        return NOON + 3600 * (self.hours - 1)

    def plan(self, model: str = "glm-4.6", **asked: Any) -> LaunchPlan:
        return api.plan(model, hardware=self.report, known=self.known, learned=True, **asked)

    def chosen(self, **asked: Any) -> Candidate:
        chosen = self.plan(**asked).chosen
        assert chosen is not None
        return chosen

    def failed(self, candidate: Candidate, reason: Reason = "out of memory") -> None:
        fault = Fault(reason=reason, permanent=True, message=reason)
        assert self.store.failed(where_of(candidate, self.report), candidate, fault) is None

    def served(self, candidate: Candidate) -> None:
        assert self.store.served(where_of(candidate, self.report), candidate) is None


@pytest.fixture
def here(catalog: Catalog) -> Here:
    return Here(report_from_spec("8xh100", catalog), catalog)


def lowered(candidate: Candidate, **limits: Any) -> Candidate:
    return msgspec.structs.replace(candidate, limits=msgspec.structs.replace(candidate.limits, **limits))


def learned_of(plan: LaunchPlan) -> list[str]:
    return [each.message for each in plan.rejected if each.code == "learned.failed"]


def test_without_a_memory_the_plan_is_what_it_would_be(here: Here, catalog: Catalog) -> None:
    plain = api.plan("glm-4.6", hardware=here.report, known=catalog)
    assert here.plan() == plain
    here.served(here.chosen())
    assert here.plan() == plain


def test_what_failed_here_is_left_out_and_says_so(here: Here) -> None:
    first = here.chosen()
    here.failed(first)
    plan = here.plan()
    assert plan.chosen is not None
    assert configuration_of(plan.chosen) != configuration_of(first) or plan.chosen.checkpoint != first.checkpoint
    (said,) = learned_of(plan)
    context = f"{first.limits.context_tokens:,}"
    version = f"{first.engine.name} {first.engine.version}"
    assert said == f"ran out of memory here on 2026-11-20 ({version}, TP {first.parallel.tensor}, context {context})"
    assert [each.rank for each in (plan.chosen, *plan.alternatives)] == list(range(1, len(plan.alternatives) + 2))
    assert plan.chosen.command is not None
    forgetting = plan.advice[-1]
    assert forgetting.command == f"rm {api.learned_path()}"
    assert "what failed on this machine before is left out" in forgetting.message


def test_the_next_of_all_is_taken_and_not_only_of_those_that_are_shown(here: Here) -> None:
    """A plan shows the best of each checkpoint and engine; the second layout of one may be better than any of these."""
    every = here.plan(keep_all=True)
    assert every.chosen is not None
    here.failed(every.chosen)
    second = here.chosen()
    expected = every.alternatives[0]
    assert (second.checkpoint, configuration_of(second)) == (expected.checkpoint, configuration_of(expected))
    again = here.plan(keep_all=True)
    assert len(again.alternatives) == len(every.alternatives) - 1


def test_a_failure_elsewhere_changes_nothing(here: Here, catalog: Catalog) -> None:
    plain = here.plan()
    other = report_from_spec("8xh200", catalog)
    fault = Fault(reason="out of memory", permanent=True, message="m")
    chosen = here.chosen()
    where = where_of(chosen, here.report)
    for place in (
        where_of(chosen, other),
        msgspec.structs.replace(where, driver="nvidia 1"),
        msgspec.structs.replace(where, engine_version="0.1"),
    ):
        here.store.failed(place, chosen, fault)
    assert here.plan() == plain


def test_what_served_after_it_failed_is_planned_again(here: Here) -> None:
    first = here.chosen()
    here.failed(first)
    here.served(first)
    assert configuration_of(here.chosen()) == configuration_of(first)
    here.failed(first)
    assert learned_of(here.plan())


def test_smaller_limits_that_served_since_take_the_place(here: Here) -> None:
    first = here.chosen()
    smaller = lowered(first, context_tokens=65_536, max_sequences=32)
    here.served(lowered(first, context_tokens=32_768, max_sequences=16))  # before, so it proves nothing
    here.failed(first)
    here.served(lowered(first, context_tokens=16_384, max_sequences=16))
    here.served(smaller)
    plan = here.plan()
    assert plan.chosen is not None
    assert configuration_of(plan.chosen) == configuration_of(smaller)
    assert plan.chosen.checkpoint == first.checkpoint
    (note,) = [each for each in plan.chosen.notes if each.code == "learned.limits"]
    assert note.severity == "info"
    assert "ran out of memory here on 2026-11-20; with 65,536 and 32 it has served since" in note.message
    assert plan.chosen.command is not None
    assert "65536" in plan.chosen.command.argv
    assert learned_of(plan) == []


def test_smaller_limits_that_failed_too_do_not_take_the_place(here: Here) -> None:
    first = here.chosen()
    smaller = lowered(first, context_tokens=65_536)
    here.failed(first)
    here.served(smaller)
    here.failed(smaller)
    plan = here.plan()
    assert plan.chosen is not None
    assert all(note.code != "learned.limits" for note in plan.chosen.notes)
    assert learned_of(plan)


def test_a_context_that_was_asked_for_is_never_lowered(here: Here) -> None:
    first = here.chosen(context_tokens=131_072)
    here.failed(first)
    here.served(lowered(first, context_tokens=65_536))
    assert here.chosen(context_tokens=131_072).limits.context_tokens == 131_072
    assert learned_of(here.plan(context_tokens=131_072))


def test_pinned_sequences_are_never_lowered(here: Here) -> None:
    pins = Pins(max_sequences=64)
    first = here.chosen(pins=pins)
    here.failed(first)
    here.served(lowered(first, max_sequences=32))
    assert here.chosen(pins=pins).limits.max_sequences == 64


@pytest.mark.parametrize(
    ("reason", "change", "left_out"),
    [
        ("out of memory", {"context_tokens": -1024}, True),  # what failed asked for less
        ("out of memory", {"context_tokens": 1024}, False),
        ("out of memory", {"memory_utilization": -0.02}, True),
        ("out of memory", {"memory_utilization": 0.02}, False),
        ("kv cache does not fit", {"memory_utilization": -0.02}, False),
        ("kv cache does not fit", {"memory_utilization": 0.02}, True),
        ("missing kernel", {"memory_utilization": 0.02}, True),
        ("out of memory", {"kv_cache_dtype": "fp8"}, False),
        ("out of memory", {"eager": True}, False),
    ],
)
def test_more_than_what_failed_fails_and_less_may_not(
    here: Here, reason: Reason, change: dict[str, Any], left_out: bool
) -> None:
    first = here.chosen()
    changed = {
        name: value if isinstance(value, str | bool) else getattr(first.limits, name) + value
        for name, value in change.items()
    }
    here.failed(lowered(first, **changed), reason)
    assert bool(learned_of(here.plan())) is left_out


def test_where_everything_failed_there_is_no_plan_and_the_refusals_say_why(here: Here) -> None:
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8, pipeline_parallel=1, data_parallel=1)
    for each in (plan := here.plan(pins=pins, keep_all=True)).alternatives:
        here.failed(each)
    assert plan.chosen is not None
    here.failed(plan.chosen)
    none = here.plan(pins=pins)
    assert (none.feasible, none.chosen, none.alternatives) == (False, None, ())
    assert learned_of(none)
    assert "ran out of memory here on" in none.explain()


@pytest.mark.parametrize(("reason", "severity"), [("out of memory", "oom"), ("missing kernel", "crash")])
def test_what_is_pinned_wholly_is_kept_and_told_that_it_failed(here: Here, reason: Reason, severity: str) -> None:
    first = here.chosen()
    asked: dict[str, Any] = {
        "pins": pins_of(first, here.report, here.known),
        "context_tokens": first.limits.context_tokens,
    }
    here.failed(first, reason)
    plan = here.plan(**asked)
    assert plan.chosen is not None
    assert configuration_of(plan.chosen) == configuration_of(first)
    (note,) = [each for each in plan.chosen.notes if each.code == "learned.failed"]
    assert note.severity == severity
    assert "pinned whole" in note.message


def test_a_memory_that_cannot_be_read_is_said_and_the_plan_stands(here: Here) -> None:
    plain = here.chosen()
    api.learned_path().parent.mkdir(parents=True, exist_ok=True)
    api.learned_path().write_bytes(b"no database" * 100)
    chosen = here.chosen()
    assert [each for each in chosen.notes if each.code != "learned.unread"] == list(plain.notes)
    assert len(chosen.notes) == len(plain.notes) + 1


# --- the command line -------------------------------------------------------------------------------


@pytest.fixture
def told(here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    monkeypatch.setattr(api, "probe", lambda: here.report)

    def answer(line: str) -> str:
        run(line.split())
        return " ".join(capsys.readouterr().out.split())

    return answer


@pytest.mark.parametrize("gpus", ["", " --gpus 0,1,2,3,4,5,6,7"])
def test_a_plan_after_an_oom_says_so(here: Here, told: Callable[[str], str], gpus: str) -> None:
    here.failed(here.chosen())
    assert "learned.failed: " in told(f"plan glm-4.6{gpus}")
    assert "ran out of memory here on 2026-11-20" in told(f"plan glm-4.6{gpus}")
    assert "learned.failed" not in told("plan glm-4.6 --hardware 8xh100")


def test_a_plan_of_limits_that_served_says_so(here: Here, told: Callable[[str], str]) -> None:
    first = here.chosen()
    here.failed(first)
    here.served(lowered(first, context_tokens=65_536))
    assert "with 65,536 and" in told("plan glm-4.6")


def test_where_all_failed_it_comes_nearest(here: Here, told: Callable[[str], str]) -> None:
    line = "--engine vllm --quantization FP8 --tensor-parallel 8 --pipeline-parallel 1 --data-parallel 1"
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8, pipeline_parallel=1, data_parallel=1)
    plan = here.plan(pins=pins, keep_all=True)
    assert plan.chosen is not None
    for each in (plan.chosen, *plan.alternatives):
        here.failed(each)
    said = told(f"plan glm-4.6 {line}")
    assert "No plan for glm-4.6 fits" in said
    assert "What comes nearest" in said
    assert "ran out of memory here on" in said.partition("What comes nearest")[2]


def test_a_plan_without_a_memory_reads_nothing_of_it(here: Here) -> None:
    code = (
        "import sys; from autolaunch import api; api.plan('glm-4.6');"
        "print(*(name for name in sys.modules if name in ('sqlite3', 'autolaunch.learned', 'autolaunch.daemon.store')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
