"""Plans of deployments: on what is left of a machine, on the indices of the whole, and what stands in their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.daemon.deployment import Changes, Deployment
from autolaunch.daemon.planning import Share, available, devices_held, infeasible, narrowed, plan_for
from autolaunch.pinning import pins_of
from engines.base import first_replica, visible_devices
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import DevicesTaken
from selector.hardware import HardwareReport
from selector.machines import report_from_file, report_from_spec
from selector.request import Pins

CATALOG = Catalog()
MACHINES = Path(__file__).parents[3] / "data/machines"


def recorded(name: str) -> HardwareReport:
    return report_from_file(MACHINES / f"{name}.json")


def deployment(**wishes: Any) -> Deployment:
    return Deployment(name="a", **({"model": "glm-4.6"} | wishes))


def uuid(report: HardwareReport, index: int) -> str:
    found = next(each.uuid for each in report.accelerators if each.index == index)
    assert found is not None
    return found


def plan(wanted: Deployment, report: HardwareReport, changes: Changes | None = None, **more: Any) -> LaunchPlan:
    return plan_for(wanted, report, changes or Changes(), known=CATALOG, **more)


def test_one_replica_is_planned_unless_more_were_asked_for() -> None:
    """As a launch starts one, and refuses plans of more."""
    report = recorded("8xh200")
    both = api.plan("glm-4.6", hardware=report, known=CATALOG).chosen
    one = plan(deployment(), report).chosen
    assert both is not None
    assert one is not None
    assert both.parallel.data == 2
    assert one.parallel.data == 1
    asked = plan(deployment(pinned=Pins(data_parallel=2)), report).chosen
    assert asked is not None
    assert asked.parallel.data == 2


def test_a_plan_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that lie here are told of, as in any plan of this machine; of another machine they are unknown."""
    repo = "zai-org/GLM-4.6-FP8"
    monkeypatch.setattr(api, "weights_here", lambda *_: frozenset({repo}))
    chosen = plan(deployment(pinned=Pins(repo=repo)), recorded("8xh200")).chosen
    assert chosen is not None
    assert chosen.checkpoint.local is True
    elsewhere = api.plan("glm-4.6", hardware=recorded("8xh200"), pins=Pins(repo=repo), known=CATALOG).chosen
    assert elsewhere is not None
    assert elsewhere.checkpoint.local is None


def test_a_lost_device_leads_to_a_plan_of_what_is_left() -> None:
    report = recorded("8xh100")
    before = plan(deployment(), report).chosen
    assert before is not None
    assert before.parallel.devices == tuple(range(8))
    after = plan(deployment(), report, Changes(without_devices=(uuid(report, 2),))).chosen
    assert after is not None
    assert 2 not in after.parallel.devices
    assert len(after.parallel.devices) == after.parallel.ranks <= 7


def test_devices_keep_their_index_and_their_uuid_where_others_are_left_out() -> None:
    report = recorded("8xh200")
    decided = plan(deployment(), report, taken=frozenset({0, uuid(report, 2), 3, 5}))
    assert decided.chosen is not None
    assert decided.hardware == report
    assert decided.chosen.parallel.devices == (1, 4, 6, 7)
    devices = first_replica(decided.hardware, decided.chosen)
    assert [each.index for each in devices] == [1, 4, 6, 7]
    assert visible_devices(report, devices, launched=True) == tuple(uuid(report, each) for each in (1, 4, 6, 7))
    assert decided.chosen.command is not None
    assert decided.chosen.command.env["CUDA_VISIBLE_DEVICES"] == "1,4,6,7"


def test_a_vendors_own_count_holds_where_its_first_device_is_left_out() -> None:
    """AMD's devices are counted from the first of the report: it has to be in it, also when it is another's."""
    report = report_from_spec("4xmi300x", CATALOG)
    decided = plan(deployment(model="glm-4.5-air"), report, taken=frozenset({0, 1}))
    assert decided.chosen is not None
    assert decided.chosen.parallel.devices[0] == 2
    assert decided.chosen.command is not None
    assert decided.chosen.command.env["HIP_VISIBLE_DEVICES"].startswith("2")


def test_a_report_with_devices_left_out_is_one_that_may_be_planned_on() -> None:
    report = narrowed(recorded("8xh100"), {1, 6})
    assert {(each.from_, each.to) for each in report.links} <= {(1, 6), (6, 1)}
    assert api.plan("glm-tiny", hardware=report, known=CATALOG).feasible


def test_a_device_that_was_pinned_and_is_anothers_is_told_by_name() -> None:
    wanted, report = deployment(pinned=Pins(gpus=(0, 1))), recorded("8xh200")
    with pytest.raises(DevicesTaken, match="device 1, which a is pinned to"):
        plan(wanted, report, taken=frozenset({uuid(report, 1)}))
    with pytest.raises(DevicesTaken, match="device 0"):
        plan(wanted, report, share=Share(devices=frozenset({1, 2})))


def test_what_was_changed_is_planned_as_it_is() -> None:
    report = recorded("8xh100")
    chosen = plan(deployment(), report).chosen
    assert chosen is not None
    pins = msgspec.structs.replace(pins_of(chosen, report, CATALOG), max_sequences=7)
    changed = plan(deployment(), report, Changes(pinned=pins, context_tokens=65_536)).chosen
    assert changed is not None
    assert (changed.limits.max_sequences, changed.limits.context_tokens) == (7, 65_536)
    assert (changed.parallel, changed.engine) == (chosen.parallel, chosen.engine)


def test_a_changed_configuration_moves_when_its_devices_are_anothers() -> None:
    """Those were the planner's choice. What the user pinned stays where it is."""
    report = recorded("8xh200")
    share = Share(devices=frozenset({0, 1, 2, 3}))
    chosen = plan(deployment(), report, share=share).chosen
    assert chosen is not None
    changes = Changes(pinned=pins_of(chosen, report, CATALOG), context_tokens=chosen.limits.context_tokens)
    moved = plan(deployment(), report, changes, share=Share(devices=frozenset({4, 5, 6, 7}))).chosen
    assert moved is not None
    assert moved.parallel.devices == (4, 5, 6, 7)
    assert moved.limits == chosen.limits


def test_everything_is_kept_once_something_is_avoided() -> None:
    report = recorded("8xh100")
    few, all_of_them = plan(deployment(), report), plan(deployment(), report, Changes(avoid=("x",)))
    assert len(all_of_them.alternatives) > len(few.alternatives)


def test_main_memory_of_a_share_bounds_a_plan() -> None:
    report = report_from_spec("cpu-256gb", CATALOG)
    bound = available(report, deployment(), Changes(), share=Share(memory_bytes=64 << 30))
    assert bound.host.memory_available_bytes == 64 << 30
    assert bound.host.memory_total_bytes == 256 << 30
    assert not plan(deployment(model="glm-4.5-air"), report, share=Share(memory_bytes=64 << 30)).feasible


def test_the_fault_of_a_plan_that_fits_nowhere_names_what_came_nearest() -> None:
    report = report_from_spec("1x4090", CATALOG)
    fault = infeasible(plan(deployment(), report), report)
    assert (fault.reason, fault.permanent) == ("no plan", True)
    assert fault.hint == "autolaunch advise glm-4.6"
    assert "no plan for glm-4.6 fits; nearest is " in fault.message
    assert "GiB" in fault.message
    empty = msgspec.structs.replace(plan(deployment(), report), rejected=())
    assert "nothing of 1 devices" in infeasible(empty, report).message


# --- memory that others hold -------------------------------------------------------------------------


def busy(**wishes: Any) -> tuple[Deployment, HardwareReport, LaunchPlan]:
    """A100s of which others fill two."""
    wanted = deployment(**({"model": "glm-4.5-air", "pinned": Pins(tensor_parallel=4)} | wishes))
    report = recorded("4xa100-busy")
    return wanted, report, plan(wanted, report)


def test_who_holds_the_memory_is_named_with_what_they_hold() -> None:
    wanted, report, decided = busy()
    assert not decided.feasible
    fault = devices_held(decided, wanted, report, Changes(), known=CATALOG)
    assert fault is not None
    assert fault.reason == "devices held"
    assert "device 0 (NVIDIA A100-SXM4-80GB): 61.0 GiB by VLLM::EngineCore (process 4242)" in fault.message
    assert "device 3 (NVIDIA A100-SXM4-80GB): 29.0 GiB by python3 (process 4243)" in fault.message
    assert "a process without a name (process 9999999)" in fault.message
    assert "device 1" not in fault.message


@pytest.mark.parametrize("wait", [True, False])
def test_it_is_waited_for_unless_the_user_said_not_to(wait: bool) -> None:
    wanted, report, decided = busy(wait_for_devices=wait)
    fault = devices_held(decided, wanted, report, Changes(), known=CATALOG)
    assert fault is not None
    assert fault.permanent is not wait


def test_memory_that_is_ours_is_held_by_nobody_else() -> None:
    wanted, report, decided = busy(pinned=Pins(gpus=(0,)))
    assert not decided.feasible
    assert devices_held(decided, wanted, report, Changes(), known=CATALOG) is not None
    ours = frozenset({4242})
    assert devices_held(decided, wanted, report, Changes(), known=CATALOG, ours=ours) is None


def test_processes_that_the_driver_does_not_name_hold_memory_too() -> None:
    wanted, report, decided = busy()
    unnamed = msgspec.structs.replace(
        report,
        accelerators=tuple(msgspec.structs.replace(each, processes=()) for each in report.accelerators),
    )
    fault = devices_held(decided, wanted, unnamed, Changes(), known=CATALOG)
    assert fault is not None
    assert "61.9 GiB by processes that the driver does not name" in fault.message or "62." in fault.message


def test_a_model_that_would_not_fit_an_empty_machine_is_nobodys_fault() -> None:
    wanted, report, decided = busy(model="glm-4.6", pinned=Pins(quantization="BF16", engine="vllm"))
    assert not decided.feasible
    assert devices_held(decided, wanted, report, Changes(), known=CATALOG) is None


def test_a_plan_that_is_as_good_is_taken_beside_others() -> None:
    wanted, report, decided = busy(pinned=Pins(quantization="AWQ-4bit"))
    assert decided.feasible
    assert devices_held(decided, wanted, report, Changes(), known=CATALOG) is None


@pytest.mark.parametrize(
    ("model", "pins"), [("glm-4.5v", Pins(engine="sglang")), ("glm-4.6", Pins(quantization="UD-Q4_K_XL"))]
)
def test_a_plan_with_lesser_weights_or_in_main_memory_for_others_sake_waits(model: str, pins: Pins) -> None:
    wanted, report, decided = busy(model=model, pinned=pins)
    assert decided.feasible
    fault = devices_held(decided, wanted, report, Changes(), known=CATALOG)
    assert fault is not None
    assert fault.reason == "devices held"
