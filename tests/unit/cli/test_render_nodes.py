"""What a person reads of ports and of several machines."""

from __future__ import annotations

import click
import pytest

from autolaunch import api
from autolaunch.cli.render_plan import render_plan
from autolaunch.cli.render_probe import render_probe
from autolaunch.cli.terminal import Terminal
from selector.catalog import Catalog
from selector.hardware import HardwareReport
from selector.machines import report_from_file, report_from_spec
from selector.request import Pins
from tests.fakes.clusters import cluster, port
from tests.fakes.machines import DATA

KNOWN = Catalog()
IB, TEN = port("infiniband", 400), port("ethernet", 10)


def probed(report: HardwareReport, *, verbose: bool = False) -> str:
    text = click.unstyle(render_probe(report, Terminal(), verbose=verbose))
    assert max(map(len, text.splitlines())) <= 80
    return text


def planned(report: HardwareReport) -> str:
    plan = api.plan("glm-4.6", hardware=report, pins=Pins(format="bf16"), known=KNOWN)
    text = click.unstyle(render_plan(plan, Terminal()))
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_alike_ports_of_a_machine_stand_in_one_line() -> None:
    text = probed(report_from_file(DATA / "8xh100.json"))
    assert "  8 × InfiniBand, 400 Gbit/s: ib0 mlx5_0:1, ib1 mlx5_1:1" in text
    assert "  Ethernet, 25 Gbit/s: eno1" in text


def test_every_port_has_a_row_where_more_is_asked_for() -> None:
    text = probed(report_from_file(DATA / "gb10.json"), verbose=True)
    assert "RoCE, 200 Gbit/s     enp1s0f0np0  rocep1s0f0:1" in text


def test_machines_that_a_name_describes_are_counted_and_joined_by_nothing_known() -> None:
    text = probed(report_from_spec("2x8xh100", KNOWN))
    assert "Host  the first of 2 nodes" in text
    assert "Network\n  how the 2 nodes are joined is not known: a network is assumed" in text


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (report_from_spec("2x8xh100", KNOWN), "  how the 2 nodes are joined is not known: a network is assumed"),
        (cluster(KNOWN, "8xh100", "8xh100", ports=((IB, TEN),)), "  all nodes are joined by InfiniBand, 400 Gbit/s"),
        (
            cluster(KNOWN, "8xh100", "8xh100", ports=((IB, TEN), (TEN,))),
            "  all nodes have Ethernet, 10 Gbit/s in common",
        ),
        (cluster(KNOWN, "8xh100", "8xh100", ports=((IB,), (TEN,))), "  no kind of port is known that all nodes have"),
    ],
)
def test_a_plan_over_machines_says_first_how_they_are_joined(report: HardwareReport, line: str) -> None:
    text = planned(report)
    assert text.splitlines()[1].startswith(line)
    assert "2 nodes a replica" in text


def test_where_devices_are_what_is_short_that_is_what_comes_nearest() -> None:
    report = cluster(KNOWN, "8xh100", "4xh100", "4xh100", memory_gib=64)
    pins = Pins(format="bf16", tensor_parallel=8, pipeline_parallel=2)
    text = click.unstyle(render_plan(api.plan("glm-4.6", hardware=report, pins=pins, known=KNOWN), Terminal()))
    nearest = " ".join(text.partition("What comes nearest")[2].split())
    assert nearest.startswith(
        "zai-org/GLM-4.6 (BF16) with vllm TP8 PP2: needs 2 groups of 8 devices, each inside a node; there is room "
        "for 1 (gpu-b has 4, gpu-c has 4)"
    )
