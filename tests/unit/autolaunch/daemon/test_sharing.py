"""Deployments that are planned together: nothing is dealt twice, and everybody is served where that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch.daemon import sharing
from autolaunch.daemon.deployment import Changes, Deployment
from autolaunch.daemon.planning import Share, plan_for
from autolaunch.daemon.sharing import MOST_TRIALS, share, without_share
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.errors import AutolaunchError, UsageError
from selector.hardware import HardwareReport
from selector.machines import report_from_file, report_from_spec
from selector.request import Pins
from selector.search import decide
from tests.fakes.drawn import links

CATALOG = Catalog()
MACHINES = Path(__file__).parents[3] / "data/machines"


def recorded(name: str) -> HardwareReport:
    return report_from_file(MACHINES / f"{name}.json")


def deployments(*models: str, **wishes: Any) -> tuple[Deployment, ...]:
    return tuple(Deployment(name=f"{model}-{place}", model=model, **wishes) for place, model in enumerate(models))


def dealt(report: HardwareReport, wanted: tuple[Deployment, ...]) -> list[Share]:
    found = share(report, wanted, CATALOG)
    assert list(found) == [each.name for each in wanted]
    given = [each.devices for each in found.values() if each.devices is not None]
    assert sum(map(len, given)) == len(frozenset().union(*given))
    return list(found.values())


def chosen(report: HardwareReport, wanted: Deployment, part: Share) -> Candidate:
    found = plan_for(wanted, report, Changes(), known=CATALOG, share=part).chosen
    assert found is not None
    assert part.devices is None or part.devices.issuperset(found.parallel.devices)
    return found


def test_one_deployment_has_everything() -> None:
    assert dealt(recorded("8xh200"), deployments("glm-4.6")) == [Share(devices=frozenset(range(8)))]
    assert dealt(recorded("cpu-only"), deployments("glm-4.6")) == [Share()]
    assert share(recorded("8xh200"), (), CATALOG) == {}


def test_two_deployments_share_eight_devices_and_both_are_served() -> None:
    report, wanted = recorded("8xh200"), deployments("glm-4.6", "glm-4.5v")
    parts = dealt(report, wanted)
    assert [sorted(each.devices or ()) for each in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [chosen(report, *each).parallel.tensor for each in zip(wanted, parts, strict=True)] == [4, 4]


def test_what_is_spare_is_dealt_in_turns_and_not_all_to_the_first() -> None:
    """Every further replica of the first would make its plan better, and leave the second with the least."""
    parts = dealt(recorded("8xh200"), deployments("glm-4.5v", "glm-4.5-air"))
    assert [len(each.devices or ()) for each in parts] == [4, 4]


def test_replicas_that_were_pinned_are_dealt_devices_for_all_of_them() -> None:
    first, second = deployments("glm-4.5v", "glm-4.5-air")
    first = msgspec.structs.replace(first, pinned=Pins(data_parallel=3, tensor_parallel=2))
    parts = dealt(recorded("8xh200"), (first, second))
    assert [len(each.devices or ()) for each in parts] == [6, 2]


def test_devices_that_were_pinned_are_dealt_first() -> None:
    first, second, third = deployments("glm-4.6", "glm-4.6", "glm-4.5v")
    second = msgspec.structs.replace(second, pinned=Pins(gpus=(0, 1, 2, 3)))
    third = msgspec.structs.replace(third, pinned=Pins(gpu_count=2))
    parts = dealt(recorded("8xh200"), (first, second, third))
    assert parts[1].devices == frozenset({0, 1, 2, 3})
    assert parts[2].devices is not None
    assert len(parts[2].devices) == 2
    assert parts[0].devices is not None
    assert not parts[0].reason


def test_a_device_that_two_pin_is_the_firsts_and_the_other_is_told() -> None:
    first, second = deployments("glm-4.5v", "glm-4.5v", pinned=Pins(gpus=(3,)))
    parts = dealt(recorded("8xh200"), (first, second))
    assert parts[0] == Share(devices=frozenset({3}))
    assert parts[1] == Share(devices=frozenset(), reason="device 3 is pinned by glm-4.5v-0")
    fault = without_share(second, parts[1])
    assert fault is not None
    assert (fault.reason, fault.permanent) == ("no plan", True)
    assert "nothing of this machine is left for glm-4.5v-1" in fault.message
    assert without_share(first, parts[0]) is None
    gone = dealt(recorded("8xh200"), deployments("glm-4.5v", "glm-4.5v", pinned=Pins(gpus=(11,))))
    assert gone[0].reason == "device 11 is not there"


def test_a_third_that_finds_no_room_leaves_the_others_theirs() -> None:
    report = report_from_spec("2xh200", CATALOG)
    wanted = deployments("glm-4.5v", "glm-4.5-air", "glm-4.5v")
    parts = dealt(report, wanted)
    assert [each.reason is None for each in parts] == [True, True, False]
    assert parts[2].reason == "it fits alone, and not beside the deployments before it"
    alone = dealt(report, deployments("glm-4.6", "glm-4.5v", pinned=Pins(quantization="BF16")))
    why = alone[0].reason or ""
    assert why.startswith("it does not fit, with nothing beside it either; nearest is zai-org/GLM-4.6 (BF16) with ")
    assert "GiB" in why
    assert alone[1].devices == frozenset({0, 1})


def test_fewer_for_the_first_makes_room_for_the_second() -> None:
    """Alone the first would take all; each gets what it needs before anybody gets more."""
    report = recorded("8xh100")
    wanted = deployments("glm-4.6", "glm-4.5v")
    assert len(chosen(report, wanted[0], Share()).parallel.devices) == 8
    for one, part in zip(wanted, dealt(report, wanted), strict=True):
        assert chosen(report, one, part).parallel.devices


def test_nobody_is_put_on_the_processor_while_devices_hold_both() -> None:
    """One 4090 holds neither, and the processor would, slowly."""
    report = recorded("8x4090")
    parts = dealt(report, deployments("glm-4.5v", "glm-4.5-air"))
    assert [len(each.devices or ()) for each in parts] == [4, 4]


def test_a_miniature_takes_no_device_from_the_others() -> None:
    parts = dealt(recorded("8xh100"), deployments("glm-tiny", "glm-4.6"))
    assert parts == [Share(devices=frozenset()), Share(devices=frozenset(range(8)))]


def test_devices_with_fast_links_stay_together() -> None:
    """Pairs of A100s that NVLink joins: (0, 1), (2, 3) and so on, dealt so that nobody has halves of two."""
    report = recorded("4xa100-busy")
    idle = msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(each, memory_free_bytes=each.memory_total_bytes, processes=())
            for each in report.accelerators
        ),
        links=links(4, 2),
    )
    parts = dealt(idle, deployments("glm-4.5-air", "glm-4.5v", pinned=Pins(gpu_count=2)))
    assert [sorted(each.devices or ()) for each in parts] == [[0, 1], [2, 3]]


def test_a_small_model_leaves_the_large_devices_to_the_large_one() -> None:
    small, large = recorded("8x4090").accelerators[0], recorded("8xh200").accelerators
    report = msgspec.structs.replace(
        recorded("8xh200"),
        accelerators=(large[0], msgspec.structs.replace(small, index=1)),
        links=links(2, 1),
        host=msgspec.structs.replace(recorded("8xh200").host, memory_total_bytes=None, memory_available_bytes=None),
    )
    parts = dealt(report, deployments("glm-tiny", "glm-4.5v"))
    assert [each.devices for each in parts] == [frozenset({1}), frozenset({0})]


def test_without_devices_main_memory_is_dealt() -> None:
    report = report_from_spec("cpu-64gb", CATALOG)
    wanted = deployments("glm-tiny", "glm-tiny-v")
    parts = dealt(report, wanted)
    amounts = [each.memory_bytes for each in parts]
    assert all(each.devices is None for each in parts)
    assert sum(amount or 0 for amount in amounts) <= 64 << 30
    assert all(amount and amount >= 8 << 30 for amount in amounts)
    for one, part in zip(wanted, parts, strict=True):
        chosen(report, one, part)
    unknown = msgspec.structs.replace(report, host=msgspec.structs.replace(report.host, memory_available_bytes=None))
    assert dealt(unknown, wanted) == [Share(), Share()]


def test_the_same_machine_is_dealt_in_the_same_way_in_whatever_order_it_is_told() -> None:
    report, wanted = recorded("8xh100"), deployments("glm-4.6", "glm-4.5v", "glm-4.5-air")
    turned = msgspec.structs.replace(
        report, accelerators=tuple(reversed(report.accelerators)), links=tuple(reversed(report.links))
    )
    assert dealt(report, wanted) == dealt(turned, wanted)


def test_it_costs_a_few_dozen_plans_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def counted(*given: Any) -> Any:
        nonlocal made
        made += 1
        return decide(*given)

    monkeypatch.setattr(sharing, "decide", counted)
    dealt(recorded("8xh200"), deployments("glm-4.6", "glm-4.5v"))
    assert made <= 12
    made = 0
    dealt(recorded("4xa100-busy"), deployments("glm-4.6", "glm-4.5v", "glm-4.5-air", "glm-4.6", "glm-4.6"))
    assert made <= MOST_TRIALS


def test_wishes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="context is 0"):
        dealt(recorded("8xh200"), deployments("glm-4.6", "glm-4.5v", context_tokens=0))


def test_one_whose_wishes_cannot_be_takes_nothing_from_the_others(tmp_path: Path) -> None:
    report, (first, second, third) = recorded("8xh200"), deployments("glm-4.6", "glm-4.6", "glm-4.5v")
    second = msgspec.structs.replace(second, engine_path=tmp_path / "gone")
    with pytest.raises(AutolaunchError, match="gone"):
        share(report, (first, second, third), CATALOG)
    found = share(report, (first, second, third), CATALOG, tolerant=True)
    assert list(found) == [first.name, second.name, third.name]
    assert {**found, second.name: Share()} == {**share(report, (first, third), CATALOG), second.name: Share()}
    with pytest.raises(AutolaunchError, match="gone"):
        plan_for(second, report, Changes(), known=CATALOG, share=found[second.name])
