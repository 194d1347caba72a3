"""Laws of a cluster's report, over nodes that nobody listed."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from autolaunch.cluster.answers import Answer
from autolaunch.cluster.merging import merged
from selector.machines import checked_report
from tests.fakes.drawn import machines
from tests.fakes.members import member

NODES = st.lists(
    st.tuples(machines(), st.none() | st.integers(0, 10), st.sampled_from(["0.1.0", "0.2.0", None])),
    min_size=1,
    max_size=5,
)


def answers(drawn: list[tuple[object, int | None, str | None]]) -> list[Answer]:
    return [
        Answer(
            member=member(number, gpus=None if gpus is None else float(gpus)),
            version=version,
            report=machine,  # type: ignore[arg-type]  # drawn as one
        )
        for number, (machine, gpus, version) in enumerate(drawn)
    ]


@given(NODES)
def test_a_merged_report_is_one_that_a_machine_can_have(drawn: list[tuple[object, int | None, str | None]]) -> None:
    report = checked_report(merged(answers(drawn)))
    assert [each.index for each in report.accelerators] == list(range(len(report.accelerators)))
    assert [each.index for each in report.hosts] == list(range(report.nodes))
    node_of = {each.index: each.node for each in report.accelerators}
    assert all(node_of[each.from_] == node_of[each.to] for each in report.links)
    if report.accelerators:
        assert set(node_of.values()) == set(range(report.nodes))


@given(NODES)
def test_no_device_is_lost_or_made_up(drawn: list[tuple[object, int | None, str | None]]) -> None:
    every = answers(drawn)
    report = merged(every)
    kept = {each.member.id: each for each in every}
    for node in report.hosts:
        told = kept[node.id or ""]
        assert told.report is not None
        count = len(told.report.accelerators) if told.member.gpus is None else int(told.member.gpus)
        bare = [
            msgspec.structs.replace(each, index=0, node=0) for each in report.accelerators if each.node == node.index
        ]
        seen = sorted(told.report.accelerators, key=lambda each: each.index)[:count]
        assert bare == [msgspec.structs.replace(each, index=0, node=0) for each in seen]


@given(NODES, st.randoms(use_true_random=False))
def test_it_does_not_matter_in_which_order_nodes_answer(
    drawn: list[tuple[object, int | None, str | None]], random: Random
) -> None:
    every = answers(drawn)
    shuffled = list(every)
    random.shuffle(shuffled)
    assert merged(shuffled, version="0.1.0") == merged(every, version="0.1.0")
