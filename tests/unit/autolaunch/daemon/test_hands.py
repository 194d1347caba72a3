"""What is remembered of a try, and of what it is not: what the user gave it, and what others did meanwhile."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from autolaunch.daemon.deployment import Deployment, Fault
from autolaunch.daemon.hands import Decided, Hands, Run
from autolaunch.daemon.store import Store, where_of
from selector.catalog import Catalog
from selector.hardware import Accelerator
from selector.measured import Measured
from tests.fakes.plans import candidate, plan

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
