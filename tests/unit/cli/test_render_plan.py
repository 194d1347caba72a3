from __future__ import annotations

import shlex
from collections.abc import Callable

import click
import msgspec
import pytest

from autolaunch.cli.render_plan import nearest, render_command, render_plan
from autolaunch.cli.terminal import Terminal
from selector.contract import Command, LaunchPlan
from selector.hardware import Finding

NARROW = Terminal(width_columns=80)


def drawn(plan: LaunchPlan, *, width: int = 80, show_all: bool = False, verbose: bool = False) -> str:
    terminal = Terminal(width_columns=width)
    return click.unstyle(render_plan(plan, terminal, show_all=show_all, verbose=verbose))


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("feasible", [True, False])
def test_no_line_is_wider_than_the_terminal(plan_of: Callable[..., LaunchPlan], width: int, feasible: bool) -> None:
    text = drawn(plan_of(feasible=feasible), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_every_device_has_a_bar_and_every_part_its_figure(plan: LaunchPlan) -> None:
    text = drawn(plan)
    assert "GPU 0  █" in text
    assert "GPU 1  █" in text
    for part in ("weights 50.0 GiB", "KV cache 20.0", "activations 2.0", "graphs 1.0", "runtime 1.0", "reserve 6.0"):
        assert part in text


def test_without_a_gpu_the_memory_is_the_machines(plan_of: Callable[..., LaunchPlan]) -> None:
    text = drawn(plan_of(gpus=0))
    assert "on the CPU" in text
    assert "  memory  █" in text
    assert "GPU 0" not in text


def test_many_devices_do_not_flood_the_terminal(plan_of: Callable[..., LaunchPlan]) -> None:
    assert "and 48 more like these" in drawn(plan_of(gpus=64))


def test_five_alternatives_are_shown_and_all_on_request(plan: LaunchPlan) -> None:
    assert "and 2 more: --all lists them" in drawn(plan)
    assert "--all lists them" not in drawn(plan, show_all=True)


def test_refusals_are_grouped_and_the_nearest_speaks(plan: LaunchPlan) -> None:
    text = drawn(plan)
    assert "2 × memory.weights: some-org/GLM-4.6 (FP8)" in text
    assert "160.0" not in text
    assert "160.0" in drawn(plan, show_all=True)


def test_the_nearest_refusal_lacks_least(plan: LaunchPlan) -> None:
    assert nearest(list(plan.rejected)).quantization == "FP8"


def test_notes_come_worst_first_with_their_severity(plan: LaunchPlan) -> None:
    assert "  crash       it may crash above 1,000 tokens" in drawn(plan)


def test_what_does_not_fit_says_what_would(infeasible: LaunchPlan) -> None:
    text = drawn(infeasible)
    assert text.startswith("No plan for glm-4.6 fits this machine.")
    assert "here is Some CPU, 8 cores, 64.0 GiB, no GPU" in text
    assert "needs 90.0 GiB a GPU, 78.0 usable" in text
    assert "autolaunch glm-4.6 --context 8192" in text
    assert "4xh100" in text
    assert "autolaunch glm-tiny proves this stack" in text


def test_a_probe_that_failed_is_said_and_not_taken_for_no_gpu(infeasible: LaunchPlan) -> None:
    finding = Finding(probe="nvidia", outcome="failed", reason="the driver is not loaded")
    hardware = msgspec.structs.replace(infeasible.hardware, findings=(finding,))
    text = drawn(msgspec.structs.replace(infeasible, hardware=hardware))
    assert "64.0 GiB, its NVIDIA GPUs could not be asked: the driver is not loaded" in " ".join(text.split())
    assert "no GPU" not in text
    assert text.count("could not be asked") == 1


def test_a_machine_with_gpus_of_two_vendors_takes_the_lines_it_needs(plan: LaunchPlan) -> None:
    one, other = plan.hardware.accelerators
    devices = (
        msgspec.structs.replace(one, name="NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
        msgspec.structs.replace(other, name="AMD Instinct MI300X OAM", vendor="amd"),
    )
    text = drawn(msgspec.structs.replace(plan, hardware=msgspec.structs.replace(plan.hardware, accelerators=devices)))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("glm-4.6 on NVIDIA RTX PRO 6000")
    assert "MI300X" in text


def test_the_command_can_be_pasted() -> None:
    argv = ("python", "-m", "server", "--text", "it's $HOME; `x`", *(f"--option-{number}" for number in range(20)))
    text = click.unstyle(render_command(Command(argv=argv, env={"A": "1 2", "B": "x"}), NARROW))
    assert max(map(len, text.splitlines())) <= 80
    assert shlex.split(text.replace("\\\n", " ")) == ["A=1 2", "B=x", *argv]


def test_a_device_name_cannot_drive_the_terminal(plan: LaunchPlan) -> None:
    device = msgspec.structs.replace(plan.hardware.accelerators[0], name="GPU\x1b[2J\x07")
    hardware = msgspec.structs.replace(plan.hardware, accelerators=(device,))
    text = render_plan(msgspec.structs.replace(plan, hardware=hardware), NARROW)
    assert "\x1b[2J" not in text


def test_verbose_says_it_in_words(plan: LaunchPlan) -> None:
    assert "In words" in drawn(plan, verbose=True)
    assert "Chosen: some-org/GLM-4.6-FP8" in drawn(plan, verbose=True)


@pytest.mark.parametrize(("seconds", "shown"), [(3.5, "about 3.5 s to load"), (284.0, "about 4 min 40 s to load")])
def test_a_short_load_is_not_rounded_away(plan: LaunchPlan, seconds: float, shown: str) -> None:
    assert plan.chosen is not None
    speed = msgspec.structs.replace(plan.chosen.speed, load_seconds=seconds)
    assert shown in drawn(msgspec.structs.replace(plan, chosen=msgspec.structs.replace(plan.chosen, speed=speed)))
