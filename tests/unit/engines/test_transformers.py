"""The command of Transformers, token by token."""

from __future__ import annotations

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
    assert command_of().argv[:3] == ("/env/bin/transformers", "serve", "glm-tiny")


def test_without_a_gpu_it_is_told_to_use_the_cpu() -> None:
    argv = command_of().argv
    assert argv[argv.index("--device") + 1] == "cpu"


def test_the_planned_gpus_are_named_by_uuid() -> None:
    command = command_of((2, 3))
    assert command.argv[command.argv.index("--device") + 1] == "auto"
    assert command.env["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"


def test_it_does_not_look_for_a_newer_release_at_every_start() -> None:
    assert command_of().env["HF_HUB_DISABLE_UPDATE_CHECK"] == "1"
