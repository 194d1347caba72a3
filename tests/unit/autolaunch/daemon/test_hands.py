"""What is remembered of a try, and of what it is not: what the user gave it, and what others did meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from autolaunch.daemon.deployment import Deployment, Fault
from autolaunch.daemon.faults import Refusal
from autolaunch.daemon.hands import PORTS_TRIED, Decided, Hands, Run
from autolaunch.daemon.health import NotReady
from autolaunch.daemon.store import Store, where_of
from engines.logs import Diagnosis
from engines.logs.patterns import Cause
from selector.catalog import Catalog
from selector.errors import PortTaken
from selector.hardware import Accelerator
from selector.measured import Measured
from tests.fakes.plans import candidate, plan

if TYPE_CHECKING:
    from autolaunch.launching import Prepared

PLAIN = Deployment(name="glm-tiny", model="glm-tiny")
FAULT = Fault(reason="does not complete", permanent=True, message="500 no such template")
OOM = Fault(reason="out of memory", permanent=True, message="CUDA out of memory")


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    def planner(deployment: Deployment, changes: object) -> Decided:
        raise NotImplementedError

    return Hands(home=tmp_path, catalog=Catalog(), planner=planner, store=Store(tmp_path / "learned.sqlite3"))


def tried(hands: Hands, run: Run) -> int:
    assert hands.store is not None
    assert run.decided is not None
    return len(hands.store.tried(where_of(run.decided.candidate, run.decided.plan.hardware)))


def on_a_gpu(free_bytes: int) -> Run:
    """A try that was planned on a GPU with 80 GB free."""
    chosen = candidate("vllm", "glm-tiny", devices=(0,))
    device = Accelerator(index=0, uuid="GPU-a", vendor="nvidia", name="H100", memory_free_bytes=80 * 10**9)
    run = Run(1, Decided(plan(chosen, accelerators=(device,)), chosen))
    run.free_before = {"GPU-a": free_bytes}
    return run


@pytest.mark.parametrize(
    "given",
    [
        {"engine_options": ("--chat-template", "x")},
        {"engine_path": Path("/opt/venv")},
        {"model_path": Path("/models/x")},
    ],
)
def test_what_the_user_gave_says_nothing_of_the_plan(hands: Hands, given: dict[str, object]) -> None:
    chosen = candidate("mlx", "glm-tiny")
    run = Run(1, Decided(plan(chosen), chosen))
    assert hands.remember(run, msgspec.structs.replace(PLAIN, **given), FAULT) is None
    assert tried(hands, run) == 0
    hands.remember(run, PLAIN, FAULT)
    assert tried(hands, run) == 1


def test_memory_that_others_took_between_the_plan_and_the_start_is_not_held_against_it(hands: Hands) -> None:
    taken, free = on_a_gpu(30 * 10**9), on_a_gpu(80 * 10**9)
    hands.remember(taken, PLAIN, OOM)
    assert tried(hands, taken) == 0
    hands.remember(free, PLAIN, OOM)
    assert tried(hands, free) == 1


def test_main_memory_that_ran_out_is_nobodys_plan(hands: Hands) -> None:
    chosen = candidate("mlx", "glm-tiny")
    run = Run(1, Decided(plan(chosen), chosen))
    hands.remember(run, PLAIN, Fault(reason="out of host memory", permanent=True, message="ulimit -v"))
    assert tried(hands, run) == 0


def test_only_what_is_of_the_deployments_model_is_forgotten(hands: Hands) -> None:
    mine, others = candidate("mlx", "glm-tiny"), candidate("mlx", "glm-tiny-v")
    runs = [Run(1, Decided(plan(each, model), each)) for each, model in ((mine, "glm-tiny"), (others, "glm-tiny-v"))]
    for run in runs:
        hands.remember(run, PLAIN, FAULT)
    assert "is forgotten" in (hands.forget(PLAIN) or "")
    assert [tried(hands, run) for run in runs] == [0, 1]


def test_what_was_measured_is_kept_unless_it_is_the_users_own_or_others_came(hands: Hands) -> None:
    seen = Measured(source="served", at=1.0, samples=9, decode_tokens_per_second=30.0)
    assert hands.store is not None
    for run, deployment in (
        (on_a_gpu(80 * 10**9), msgspec.structs.replace(PLAIN, engine_options=("--x",))),
        (on_a_gpu(70 * 10**9), PLAIN),
        (Run(1), PLAIN),
    ):
        assert hands.measure(run, deployment, seen) is None
        assert hands.store.measurements() == ()
    assert hands.measure(on_a_gpu(80 * 10**9), PLAIN, None) is None
    assert hands.store.measurements() == ()
    assert hands.measure(on_a_gpu(80 * 10**9), PLAIN, seen) is None
    assert [row.measured for row in hands.store.measurements()] == [seen]


class Started:
    """FAKE: an engine whose start ends in ``error``, or in a token."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.stopped, self.process = error, False, self
        self.exit_code = 1

    def first_token(self) -> float:
        if self.error is not None:
            raise self.error
        return 2.5

    def explain(self, error: Exception, code: int) -> None: ...

    def process_ids(self) -> frozenset[int]:
        return frozenset()

    def stop(self) -> None:
        self.stopped = True


def said(cause: Cause) -> NotReady:
    return NotReady("it ended", how="ended", diagnosis=Diagnosis(cause=cause, permanent=False))


def launches(hands: Hands, monkeypatch: pytest.MonkeyPatch, *errors: Exception | None, port: int | None = None) -> Run:
    """A launch of engines that end so, one after the other; an error that no process makes comes of their start."""
    chosen = candidate("mlx", "glm-tiny")
    run = Run(1, Decided(plan(chosen), chosen))
    run.prepared = cast("Prepared", SimpleNamespace(place=None))
    left = list(errors)

    def start(*_: object, **__: object) -> Started:
        error = left.pop(0)
        if isinstance(error, PortTaken) and "bind" in error.message:
            raise error
        return Started(error)

    monkeypatch.setattr("autolaunch.daemon.hands.start", start)
    told: list[Started] = []
    try:
        hands.launch(run, msgspec.structs.replace(PLAIN, port=port), lambda: told.append(cast("Started", run.server)))
    finally:
        assert left == [], "each of them was started"
        assert all(each.stopped for each in told[:-1]), "none is left beside the next"
        assert not told or not told[-1].stopped
    return run


@pytest.mark.parametrize(
    "taken", [PortTaken("another program answers on port 1"), PortTaken("no bind"), said("port in use")], ids=str
)
def test_a_port_of_the_engines_own_that_somebody_else_took_is_changed(
    hands: Hands, monkeypatch: pytest.MonkeyPatch, taken: Exception
) -> None:
    assert launches(hands, monkeypatch, *[taken] * (PORTS_TRIED - 1), None).load_seconds == 2.5
    with pytest.raises(Refusal) as refused:
        launches(hands, monkeypatch, *[taken] * PORTS_TRIED)
    assert refused.value.fault.reason == "port in use"


def test_a_port_that_the_user_chose_is_not_changed_and_nothing_else_is_tried_again_so(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refusal) as refused:
        launches(hands, monkeypatch, said("port in use"), port=8001)
    assert "port 8001" in (refused.value.fault.hint or "")
    with pytest.raises(Refusal):
        launches(hands, monkeypatch, said("bad weights"))
