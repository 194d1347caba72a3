"""Replicas: a plan of several is as many engines, each with devices, a key and a plan of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from autolaunch import api
from autolaunch.daemon.deployment import Changes, Deployment, Fault, KeptDeployment, fingerprint
from autolaunch.daemon.faults import Refusal
from autolaunch.daemon.hands import Hands
from autolaunch.daemon.host import Host
from autolaunch.daemon.journal import Journal
from autolaunch.daemon.planning import Share
from autolaunch.daemon.replicas import divided, kept_for, one_replica, replicas_of, settled
from autolaunch.daemon.report import Report
from autolaunch.daemon.supervisor import Supervisor
from selector.catalog import Catalog
from selector.contract import Candidate, Command, LaunchPlan
from selector.hardware import HardwareReport
from selector.machines import report_from_file, report_from_spec
from selector.request import Pins

CATALOG = Catalog()
MACHINES = Path(__file__).parents[3] / "data/machines"
TEXT, VISION = Deployment(name="text", model="glm-4.6"), Deployment(name="vision", model="glm-4.5v")
EVERYTHING = Share(devices=frozenset(range(8)))
GIB = 1 << 30


def recorded(name: str) -> HardwareReport:
    report = report_from_file(MACHINES / f"{name}.json")
    devices = tuple(msgspec.structs.replace(each, uuid=f"GPU-{each.index}") for each in report.accelerators)
    return msgspec.structs.replace(report, accelerators=devices)


def less(report: HardwareReport, *gone: int) -> HardwareReport:
    return msgspec.structs.replace(
        report,
        accelerators=tuple(each for each in report.accelerators if each.index not in gone),
        links=tuple(each for each in report.links if not {each.from_, each.to} & set(gone)),
    )


def wish(one: Deployment, **pins: Any) -> Deployment:
    return msgspec.structs.replace(one, pinned=Pins(**pins))


def devices(host: Host) -> dict[str, list[int]]:
    return {key: sorted(part.devices or ()) for key, part in host.shares.items()}


def planned(report: HardwareReport, model: str = "glm-4.5v") -> LaunchPlan:
    found = api.plan(model, hardware=report, here=True, known=CATALOG)
    assert found.chosen is not None
    assert found.chosen.parallel.data > 1
    return found


def chosen(host: Host, one: Deployment) -> Candidate:
    return host(one, Changes()).candidate


# --- how many, and where ------------------------------------------------------------------------------


def test_a_plan_of_several_replicas_is_as_many_engines_with_devices_of_their_own() -> None:
    report = recorded("8xh200")
    whole = planned(report).chosen
    assert whole is not None
    host = Host(CATALOG, lambda: report)
    host.divide((VISION,), {})
    assert [each.key for each in host.engines] == ["vision", "vision#2", "vision#3", "vision#4"]
    assert {each.name for each in host.engines} == {"vision"}
    assert devices(host) == {"vision": [0, 1], "vision#2": [2, 3], "vision#3": [4, 5], "vision#4": [6, 7]}
    for one in host.engines:
        found = chosen(host, one)
        assert found.parallel.data == 1
        assert sorted(found.parallel.devices) == devices(host)[one.key]
        # As it is planned by itself is how it was planned beside the others.
        assert (found.engine.name, found.checkpoint, found.parallel.tensor) == (
            whole.engine.name,
            whole.checkpoint,
            whole.parallel.tensor,
        )


def test_a_plan_of_one_replica_has_the_whole_share() -> None:
    host = Host(CATALOG, lambda: recorded("8xh100"))
    host.divide((TEXT,), {})
    assert devices(host) == {"text": list(range(8))}


def test_as_many_as_were_pinned_are_started() -> None:
    host = Host(CATALOG, lambda: recorded("8xh200"))
    host.divide((wish(VISION, data_parallel=2),), {})
    assert devices(host) == {"vision": [0, 1, 2, 3], "vision#2": [4, 5, 6, 7]}
    host.divide((wish(VISION, data_parallel=1),), {})
    assert devices(host) == {"vision": list(range(8))}
    assert chosen(host, host.engines[0]).parallel.data == 1


@pytest.mark.parametrize(
    ("machine", "pins", "said"),
    [
        ("8xh100", {"data_parallel": 3, "tensor_parallel": 4}, "needs 12 devices, 8 are there"),
        ("1xh200", {"data_parallel": 2}, "needs 2 devices, 1 are there"),
    ],
)
def test_more_than_there_is_room_for_is_no_plan_and_never_fewer(machine: str, pins: dict[str, Any], said: str) -> None:
    report = recorded(machine) if machine.startswith("8") else report_from_spec(machine, CATALOG)
    host = Host(CATALOG, lambda: report)
    host.divide((wish(VISION, **pins),), {})
    (one,) = host.engines
    assert one.pinned == Pins(**pins)
    with pytest.raises(Refusal) as refused:
        chosen(host, one)
    assert refused.value.fault.reason == "no plan"
    assert said in refused.value.fault.message


def test_of_pinned_devices_each_replica_is_pinned_to_its_own() -> None:
    for pins in (Pins(gpus=tuple(range(8)), data_parallel=2), Pins(gpu_count=8, data_parallel=2)):
        found = divided(msgspec.structs.replace(VISION, pinned=pins), EVERYTHING, recorded("8xh100"), CATALOG)
        assert [part.devices for _, part in found] == [frozenset(range(4)), frozenset(range(4, 8))]
        numbers = [one.pinned.gpu_count if pins.gpus is None else one.pinned.gpus for one, _ in found]
        assert numbers == ([4, 4] if pins.gpus is None else [(0, 1, 2, 3), (4, 5, 6, 7)])


def test_what_is_offered_to_all_is_shared_out() -> None:
    one = msgspec.structs.replace(wish(VISION, data_parallel=2), concurrency=33)
    assert [each.concurrency for each, _ in divided(one, EVERYTHING, recorded("8xh100"), CATALOG)] == [17, 17]
    batch = msgspec.structs.replace(wish(VISION, data_parallel=2), workload="batch")
    assert [each.concurrency for each, _ in divided(batch, EVERYTHING, recorded("8xh100"), CATALOG)] == [128, 128]


def test_one_port_is_the_first_engines() -> None:
    found = divided(msgspec.structs.replace(VISION, port=9000), EVERYTHING, recorded("8xh100"), CATALOG)
    assert [each.port for each, _ in found] == [9000, None]


def test_from_main_memory_as_many_are_served_as_were_pinned() -> None:
    tiny = Deployment(name="tiny", model="glm-tiny")
    report = report_from_spec("cpu-64gb", CATALOG)
    free_bytes = report.host.memory_available_bytes
    assert free_bytes is not None
    assert divided(tiny, Share(), report, CATALOG) == ((wish(tiny, data_parallel=1), Share()),)
    host = Host(CATALOG, lambda: report)
    host.divide((wish(tiny, data_parallel=2),), {})
    assert list(host.shares.values()) == [Share(memory_bytes=free_bytes // 2)] * 2
    assert [chosen(host, each).parallel.devices for each in host.engines] == [(), ()]
    many = Host(CATALOG, lambda: report)
    many.divide((wish(tiny, data_parallel=10), Deployment(name="other", model="glm-tiny-v")), {})
    assert len(many.engines) == 11
    beside = Host(CATALOG, lambda: report)
    beside.divide((wish(tiny, data_parallel=2), VISION), {})
    assert sum(each.memory_bytes or 0 for each in beside.shares.values()) <= free_bytes
    assert [chosen(beside, each).parallel.devices for each in beside.engines[:2]] == [(), ()]


def test_replicas_that_leave_the_devices_alone_are_served_from_main_memory() -> None:
    host = Host(CATALOG, lambda: recorded("8xh100"))
    host.divide((wish(Deployment(name="tiny", model="glm-tiny"), data_parallel=2), VISION), {})
    assert devices(host) == {"tiny": [], "tiny#2": [], "vision": [0, 1, 2, 3], "vision#2": [4, 5, 6, 7]}
    assert [chosen(host, each).parallel.devices for each in host.engines[:2]] == [(), ()]


def test_devices_that_others_hold_for_now_still_count() -> None:
    report = recorded("8xh100")
    held = tuple(msgspec.structs.replace(each, memory_free_bytes=GIB) for each in report.accelerators)
    host = Host(CATALOG, lambda: msgspec.structs.replace(report, accelerators=held))
    host.divide((VISION,), {})
    assert devices(host) == {"vision": [0, 1, 2, 3], "vision#2": [4, 5, 6, 7]}
    with pytest.raises(Refusal) as refused:
        chosen(host, host.engines[1])
    assert (refused.value.fault.reason, refused.value.fault.permanent) == ("devices held", False)


def test_wishes_that_cannot_be_are_told_by_the_plan_of_one(tmp_path: Path) -> None:
    gone = msgspec.structs.replace(VISION, engine_path=tmp_path / "gone")
    assert [each.key for each, _ in divided(gone, EVERYTHING, recorded("8xh100"), CATALOG)] == ["vision"]
    without = Share(devices=frozenset(), reason="device 3 is pinned by text")
    assert divided(VISION, without, recorded("8xh100"), CATALOG) == ((wish(VISION, data_parallel=1), without),)


@pytest.mark.parametrize(
    "machine", ["8xh100", "8xh200", "8x4090", "4xa100-busy", "mig", "gb10", "m3-ultra-512", "cpu-only"]
)
@pytest.mark.parametrize("pins", [{}, {"data_parallel": 2}, {"data_parallel": 3}])
def test_no_two_engines_ever_share_a_key_a_device_or_main_memory(machine: str, pins: dict[str, Any]) -> None:
    report = recorded(machine)
    tiny = Deployment(name="tiny", model="glm-tiny")
    for wanted in ((VISION,), (TEXT, VISION), (wish(VISION, **pins), tiny), (wish(tiny, **pins),)):
        host = Host(CATALOG, lambda: report)
        host.divide(wanted, {})
        assert len({each.key for each in host.engines}) == len(host.engines) == len(host.shares)
        assert {each.name for each in host.engines} == {each.name for each in wanted}
        given = [part.devices for part in host.shares.values() if part.devices is not None]
        assert sum(map(len, given)) == len(frozenset().union(*given))
        if not report.accelerators and len(host.shares) > 1:
            free_bytes = report.host.memory_available_bytes or 0
            assert sum(part.memory_bytes or 0 for part in host.shares.values()) <= free_bytes
        for one in host.engines:
            try:
                found = chosen(host, one)
            except Refusal:
                continue
            assert found.parallel.data == 1
            mine = host.shares[one.key].devices
            assert mine is None or mine.issuperset(found.parallel.devices)


# --- when the machine or the wish is another ------------------------------------------------------------


def test_the_first_engine_stays_as_it_is_when_others_join_or_leave() -> None:
    one, two = (divided(wish(VISION, data_parallel=n), EVERYTHING, recorded("8xh200"), CATALOG) for n in (2, 4))
    assert one[0][0] == two[0][0]
    assert [fingerprint(each) for each, _ in two[:2]] == [fingerprint(each) for each, _ in one]
    assert len({fingerprint(each) for each, _ in two}) == 4


def test_with_fewer_devices_there_are_fewer_replicas() -> None:
    machine = [recorded("8xh100")]
    host = Host(CATALOG, lambda: machine[0])
    host.divide((VISION,), {})
    assert len(host.engines) == 2
    machine[0] = less(machine[0], 5)
    host.divide((VISION,), {})
    assert 5 not in {index for mine in devices(host).values() for index in mine}
    assert chosen(host, host.engines[0]).parallel.devices


def test_an_engine_keeps_its_devices_when_they_are_dealt_in_another_order() -> None:
    found = divided(wish(VISION, data_parallel=2, gpu_count=8), EVERYTHING, recorded("8xh100"), CATALOG)
    first, second = (part for _, part in found)
    turned = settled(found, {"vision": second, "vision#2": first})
    assert [part for _, part in turned] == [second, first]
    assert [one.key for one, _ in turned] == ["vision", "vision#2"]
    assert settled(found, {}) == found
    assert settled(found, {"vision#2": first}) == ((found[0][0], second), (found[1][0], first))


def test_a_lost_device_is_the_concern_of_the_replica_on_it() -> None:
    host = Host(CATALOG, lambda: recorded("8xh100"))
    host.divide((VISION,), {})
    first, second = host.engines
    found = host(first, Changes(without_devices=("GPU-2",))).candidate
    assert set(found.parallel.devices) <= {0, 1, 3}
    assert chosen(host, second).parallel.devices == (4, 5, 6, 7)


def test_main_memory_that_our_engines_have_is_not_others() -> None:
    report = [report_from_spec("cpu-64gb", CATALOG)]
    host, tiny = Host(CATALOG, lambda: report[0]), wish(Deployment(name="tiny", model="glm-tiny"), data_parallel=2)
    host.divide((tiny,), {})
    before = dict(host.shares)
    report[0] = msgspec.structs.replace(
        report[0], host=msgspec.structs.replace(report[0].host, memory_available_bytes=9 * GIB)
    )
    host.divide((tiny,), {})
    assert host.shares == before


def test_a_replica_that_was_not_there_before_is_wanted_as_the_first_is() -> None:
    (first, _), (second, _) = divided(wish(VISION, data_parallel=2), EVERYTHING, recorded("8xh100"), CATALOG)
    stopped = KeptDeployment(wanted="stopped", failures=(1.0,), of=fingerprint(first))
    assert kept_for(first, {"vision": stopped}) == stopped
    assert kept_for(second, {"vision": stopped}) == KeptDeployment(wanted="stopped")
    own = KeptDeployment(failures=(2.0,), of=fingerprint(second))
    assert kept_for(second, {"vision": stopped, "vision#2": own}) == own
    assert kept_for(first, {}) is None


# --- a plan that was made already ------------------------------------------------------------------------


def test_a_candidate_is_narrowed_to_one_of_its_replicas() -> None:
    whole = planned(recorded("8xh100")).chosen
    assert whole is not None
    whole = msgspec.structs.replace(whole, command=Command(argv=("vllm",), env={}))
    first, second = one_replica(whole, 1), one_replica(whole, 2)
    assert [each.parallel.devices for each in (first, second)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [each.parallel.data for each in (first, second)] == [1, 1]
    assert (first.command, second.command) == (whole.command, None)
    assert (first.limits, first.checkpoint) == (whole.limits, whole.checkpoint)
    assert [part.devices for _, part in replicas_of(VISION, Share(), whole)] == [
        frozenset(range(4)),
        frozenset(range(4, 8)),
    ]


def test_the_engines_of_a_plan_that_was_made_just_now_begin_as_it_says() -> None:
    report, asked = recorded("8xh100"), 0

    def probe() -> HardwareReport:
        nonlocal asked
        asked += 1
        return report

    made = planned(report)
    host = Host(CATALOG, probe)
    first, second = host.deal(VISION, made)
    assert [chosen(host, each).parallel.devices for each in (first, second)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert asked == 0
    again = host(second, Changes(without_devices=("GPU-4",))).candidate
    assert set(again.parallel.devices) <= {5, 6, 7}
    assert asked == 1


# --- what is said ----------------------------------------------------------------------------------------


def test_the_status_of_replicas_reads_in_one_line() -> None:
    report = Report(Journal.__new__(Journal))
    fault = Fault(reason="out of memory", permanent=False, message="CUDA out of memory")
    engines = []
    for number, phase in enumerate(("ready", "backing off", "ready", "ready"), start=1):
        one = msgspec.structs.replace(TEXT, replica=None if number == 1 else number)
        engines.append(Supervisor(one, cast("Hands", None)))
        state = engines[-1].state
        engines[-1].state = msgspec.structs.replace(state, phase=phase, fault=fault if number == 2 else None)
    alone = Supervisor(VISION, cast("Hands", None))
    assert report.status([*engines, alone]) == (
        "text ready, 3 of 4 replicas; text#2 backing off: CUDA out of memory; vision planned"
    )
    engines[1].state = engines[0].state
    assert report.status(engines) == "text ready, 4 of 4 replicas"
    for each in engines:
        each.state = msgspec.structs.replace(each.state, phase="loading")
    assert report.status(engines) == "text loading, 4 of 4 replicas"
