"""The command of Transformers, token by token."""

from __future__ import annotations

from pathlib import Path

from engines.base import Serving, visible_devices
from engines.registry import engine
from selector.catalog import Catalog
from selector.contract import Command
from selector.hardware import Accelerator, HardwareReport, Host
from tests.fakes.plans import candidate


def command_of(devices: tuple[int, ...] = ()) -> Command:
    there = tuple(Accelerator(index=index, uuid=f"GPU-{index}", vendor="nvidia", name="fake") for index in devices)
    report = HardwareReport(host=Host(os="linux"), accelerators=there)
    serving = Serving(
        model="glm-tiny",
        served_name="glm-tiny",
        executable_directory="/env/bin",
        devices=there,
        visible=visible_devices(report, there, launched=True),
    )
    chosen = candidate("transformers", "glm-tiny", devices=devices)
    return engine("transformers").command(chosen, Catalog().model("glm-tiny"), serving)


def test_the_server_is_pinned_to_one_model() -> None:
    argv = command_of().argv
    assert argv[:2] == ("/env/bin/python", "-P")
    assert Path(argv[2]).is_file()
    assert argv[3:6] == ("transformers", "serve", "glm-tiny")


def test_a_plan_shows_what_a_person_would_type() -> None:
    serving = Serving(model="autolaunch/glm-tiny", served_name="glm-tiny")
    command = engine("transformers").command(
        candidate("transformers", "glm-tiny"), Catalog().model("glm-tiny"), serving
    )
    assert command.argv[:3] == ("transformers", "serve", "autolaunch/glm-tiny")
    assert "AUTOLAUNCH_MAX_MEMORY" not in command.env


def test_every_device_may_hold_the_weights_that_were_planned_for_it_and_leaves_the_cache_its_room() -> None:
    room = 9 * 10**8 - 10**8 - 10**6 - 10**7
    assert command_of((2, 3)).env["AUTOLAUNCH_MAX_MEMORY"] == f"0={room},1={room}"
    assert "AUTOLAUNCH_MAX_MEMORY" not in command_of().env


def test_without_a_gpu_it_is_told_to_use_the_cpu() -> None:
    argv = command_of().argv
    assert argv[argv.index("--device") + 1] == "cpu"


def test_the_planned_gpus_are_named_by_uuid() -> None:
    command = command_of((2, 3))
    assert command.argv[command.argv.index("--device") + 1] == "auto"
    assert command.env["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"


def test_it_does_not_look_for_a_newer_release_at_every_start() -> None:
    assert command_of().env["HF_HUB_DISABLE_UPDATE_CHECK"] == "1"
