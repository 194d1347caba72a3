"""The nodes of a cluster as one machine: nothing that one of them lacks is a crash, and all of it is said."""

from __future__ import annotations

import msgspec
import pytest

from autolaunch.cluster.answers import Answer, dead
from autolaunch.cluster.merging import merged
from selector.errors import ClusterError
from selector.hardware import Driver, Finding, HardwareReport, NetworkPort
from selector.machines import checked_report
from tests.fakes.members import VERSION, answer, member, recorded


def said(report: HardwareReport) -> list[str]:
    return [f"{each.outcome}: {each.reason}" for each in report.findings if each.probe == "cluster"]


def of(*answers: Answer) -> HardwareReport:
    return checked_report(merged(answers, ray="Ray 2.60.0 at 10.0.0.1:6379", version=VERSION))


def driver(report: HardwareReport, version: str | None, runtime: str | None = None) -> HardwareReport:
    return msgspec.structs.replace(report, drivers=(Driver(vendor="nvidia", version=version, runtime=runtime),))


def test_equal_nodes_are_one_report_without_a_word_on_them() -> None:
    report = of(answer(1), answer(0))
    assert report.nodes == 2
    assert [each.index for each in report.accelerators] == list(range(16))
    assert [each.node for each in report.accelerators] == [0] * 8 + [1] * 8
    assert [(each.index, each.name, each.address) for each in report.hosts] == [
        (0, "gpu-0", "10.0.0.1"),
        (1, "gpu-1", "10.0.0.2"),
    ]
    assert said(report) == []
    assert report.findings[0] == Finding(probe="ray", outcome="found", reason="Ray 2.60.0 at 10.0.0.1:6379")


def test_what_all_nodes_say_is_said_once() -> None:
    one = of(answer(0))
    assert of(*(answer(number) for number in range(100))).findings == one.findings


def test_links_stay_inside_their_node_and_are_numbered_with_it() -> None:
    alone = recorded("8xh100")
    report = of(answer(0), answer(1))
    assert len(report.links) == 2 * len(alone.links)
    assert {(each.from_ - 8, each.to - 8) for each in report.links if each.from_ >= 8} == {
        (each.from_, each.to) for each in alone.links
    }
    assert all(each.from_ // 8 == each.to // 8 for each in report.links)


def test_the_head_is_first_then_who_asks_then_addresses_as_numbers() -> None:
    head = answer(5, is_head=True, address="10.0.0.200")
    asking = answer(4, is_here=True, address="10.0.0.100")
    report = of(answer(1, address="10.0.0.10"), answer(2, address="10.0.0.9"), asking, head, answer(3, address="ten"))
    assert [each.name for each in report.hosts] == ["gpu-5", "gpu-4", "gpu-2", "gpu-1", "gpu-3"]


def test_the_network_of_each_node_is_kept_and_the_first_ones_is_the_reports() -> None:
    port = NetworkPort(kind="infiniband", device="mlx5_0:1", bandwidth_bytes_per_second=50_000_000_000)
    wired = msgspec.structs.replace(recorded("8xh100"), network=(port,))
    report = of(answer(0, wired), answer(1))
    assert report.network == (port,)
    assert [each.network for each in report.hosts] == [(port,), recorded("8xh100").network]


def test_a_node_without_gpus_is_said_and_not_planned_with_even_as_the_head() -> None:
    report = of(answer(0, "cpu-only", name="login"), answer(1), answer(2))
    assert report.nodes == 2
    assert [each.name for each in report.hosts] == ["gpu-1", "gpu-2"]
    assert report.host == recorded("8xh100").host
    assert said(report) == ["absent: login: no GPU that can be used, and not planned with"]


def test_a_cluster_without_any_gpu_is_its_first_machine() -> None:
    report = of(answer(1, "cpu-only"), answer(0, "cpu-only"))
    assert (report.nodes, len(report.hosts), report.accelerators) == (1, 1, ())
    assert report.hosts[0].name == "gpu-0"
    assert said(report) == []


def test_nodes_that_did_not_answer_are_findings_with_their_names() -> None:
    silent = [Answer(member=member(number), trouble="did not answer within 45 s") for number in (3, 2)]
    gone = dead(member(7, alive=False, gpus=None, why_dead="health check failed"))
    report = of(answer(0), *silent, gone, Answer(member=member(8), trouble="has no autolaunch"))
    assert report.nodes == 1
    assert said(report) == [
        "failed: gpu-2 and gpu-3: did not answer within 45 s",
        "failed: gpu-8: has no autolaunch",
        "failed: gpu-7: is dead: health check failed",
    ]


def test_of_many_names_some_stand_and_the_others_are_counted() -> None:
    silent = [Answer(member=member(number), trouble="did not answer") for number in range(1, 101)]
    (told,) = said(of(answer(0), *silent))
    assert told.startswith("failed: gpu-1, gpu-2, ")
    assert told.endswith(" and 88 more: did not answer")


def test_another_version_of_autolaunch_is_said_and_its_report_used() -> None:
    newer = msgspec.structs.replace(answer(1, version="0.2.0"), unknown=("fabric",))
    report = of(answer(0), newer, answer(2, version="0.2.0"))
    assert report.nodes == 3
    assert said(report) == [
        "found: gpu-1: its report has keys that this release does not know, left out: fabric",
        "found: gpu-1 and gpu-2: autolaunch 0.2.0, 0.1.0 here",
    ]


def test_the_drivers_of_the_report_are_the_oldest_and_a_difference_is_said() -> None:
    base = recorded("8xh100")
    report = of(
        answer(0, driver(base, "570.86.15", "12.8")),
        answer(1, driver(base, "535.183.06", "12.2")),
        answer(2, driver(base, None)),
        answer(3, driver(base, "570.86.15", "12.8")),
    )
    assert report.drivers == (Driver(vendor="nvidia", version="535.183.06", runtime="12.2"),)
    assert said(report) == [
        "found: gpu-2: the nvidia driver is of unknown version, and others have another",
        "found: gpu-1: the nvidia driver is 535.183.06, and others have another",
        "found: gpu-0 and gpu-3: the nvidia driver is 570.86.15, and others have another",
    ]


def test_the_driver_of_a_node_that_is_not_planned_with_counts_for_nothing() -> None:
    old = driver(recorded("8xh100"), "470.1")
    report = of(answer(0), answer(1, old, gpus=0.0))
    assert report.drivers == recorded("8xh100").drivers
    assert said(report) == [
        "found: gpu-1: Ray counts 0 GPUs and the probe found 8: 8 left out",
        "absent: gpu-1: no GPU that can be used, and not planned with",
    ]


@pytest.mark.parametrize(("gpus", "used", "words"), [(4.0, 4, "4 left out"), (4.9, 4, "4 left out"), (9.0, 8, "those")])
def test_no_more_gpus_are_used_than_ray_counts(gpus: float, used: int, words: str) -> None:
    report = of(answer(0), answer(1, gpus=gpus))
    assert len(report.accelerators) == 8 + used
    assert [each.index for each in report.accelerators] == list(range(8 + used))
    assert max((each.to for each in report.links), default=0) < 8 + used
    (told,) = said(report)
    assert told.startswith(f"found: gpu-1: Ray counts {int(gpus)} GPUs and the probe found 8: {words}")


def test_where_ray_does_not_count_all_are_used() -> None:
    assert len(of(answer(0, gpus=None)).accelerators) == 8


def test_a_trouble_of_one_nodes_own_probe_names_it() -> None:
    base = recorded("8xh100")
    failing = msgspec.structs.replace(
        base, findings=(Finding(probe="nvidia", outcome="failed", reason="GPU 3 is lost"),)
    )
    report = of(answer(0), answer(1, failing))
    assert Finding(probe="nvidia", outcome="failed", reason="gpu-1: GPU 3 is lost") in report.findings


def test_nodes_of_one_name_are_told_apart() -> None:
    report = of(answer(0, name="box"), answer(1, name="box"), answer(2))
    assert [each.name for each in report.hosts] == ["box (10.0.0.1)", "box (10.0.0.2)", "gpu-2"]
    same = of(answer(0, name="box", address="10.0.0.1"), answer(1, name="box", address="10.0.0.1"))
    assert [each.name for each in same.hosts] == ["box (00000000)", "box (00010001)"]


def test_where_no_node_could_be_probed_that_is_the_error() -> None:
    with pytest.raises(ClusterError, match="gpu-0 and gpu-1: has no autolaunch") as told:
        merged([Answer(member=member(number), trouble="has no autolaunch") for number in range(2)])
    assert told.value.exit_code == 4
    with pytest.raises(ClusterError, match="it has none"):
        merged([])
