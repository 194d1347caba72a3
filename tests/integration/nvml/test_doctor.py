"""The doctor over the real NVML client and the stub of NVIDIA's library, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvml import scenarios, stub
from tests.fakes.nvml.stub import NvLink, Scenario

pytestmark = pytest.mark.integration


def examined(library: Path, scenario: Scenario, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of ``autolaunch doctor --json``."""
    text = folder / "scenario.txt"
    text.write_text(scenario.text())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "autolaunch", "doctor", "--json", *arguments],
        env={
            "HOME": str(folder),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(stub.ROOT),
            "LD_LIBRARY_PATH": str(library),
            "NVML_STUB_SCENARIO": str(text),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    return done.returncode, document


def codes(document: dict[str, Any], begins: str) -> list[str]:
    return [each["code"] for each in document["findings"] if each["code"].startswith(begins)]


def test_a_driver_without_a_fault_has_none_told_of_it(library: Path, tmp_path: Path) -> None:
    gpus = tuple(scenarios.h100(place, persistence=1, fabric=3, chip_generation=5) for place in range(8))
    _, document = examined(library, Scenario(gpus=gpus, driver=b"580.95.05"), tmp_path)
    assert codes(document, "gpu.") == []
    assert codes(document, "driver") == []


def test_a_new_driver_is_held_against_what_engines_are_built_for(library: Path, tmp_path: Path) -> None:
    _, document = examined(library, Scenario(gpus=(scenarios.h100(0),), driver=b"570.133.20"), tmp_path)
    assert codes(document, "driver") == ["driver.wheel"]
    code, document = examined(library, Scenario(gpus=(scenarios.h100(0),), driver=b"470.1"), tmp_path)
    assert (code, codes(document, "driver")) == (4, ["driver.old"])


@pytest.mark.parametrize(
    ("fault", "code", "exits"),
    [
        ({"fabric": 2}, "gpu.fabric", True),
        ({"compute_mode": 2}, "gpu.compute_mode", True),
        ({"persistence": 0}, "gpu.persistence", False),
        ({"slowdown": 0x40}, "gpu.slowdown", False),
        ({"ecc_errors": 2}, "gpu.ecc", False),
        ({"remapped": 1}, "gpu.ecc", False),
        ({"remapped": 102}, "gpu.memory", False),
        ({"chip_generation": 5, "pcie": (3, 16)}, "gpu.pcie", False),
        ({"pcie": (5, 8)}, "gpu.pcie", False),
        ({"links": (NvLink(version=6),) * 17 + (NvLink(version=0),)}, "gpu.nvlink", False),
        ({"lost": stub.GPU_IS_LOST}, "gpu.lost", False),
        ({"recovery": (1, 0)}, "gpu.lost", False),
        ({"compute": ((1, 5 << 30),)}, "gpu.held", False),
    ],
)
def test_what_a_gpu_tells_is_found(
    library: Path, tmp_path: Path, fault: dict[str, Any], code: str, exits: bool
) -> None:
    well: dict[str, Any] = {"persistence": 1, "fabric": 3}
    gpus = (scenarios.h100(0, **well), scenarios.h100(1, **{**well, **fault}))
    exited, document = examined(library, Scenario(gpus=gpus, driver=b"580.95.05"), tmp_path)
    assert codes(document, "gpu.") == [code]
    (finding,) = (each for each in document["findings"] if each["code"] == code)
    assert "1" in finding["title"]
    if exits:
        assert exited == 5
        assert finding["severity"] == "stops"


@pytest.mark.parametrize(
    ("init", "command"),
    [(stub.DRIVER_NOT_LOADED, "sudo modprobe nvidia"), (stub.VERSION_MISMATCH, "sudo reboot")],
)
def test_a_driver_that_cannot_be_asked_stops_a_launch_as_a_failed_probe(
    library: Path, tmp_path: Path, init: int, command: str
) -> None:
    code, document = examined(library, Scenario(init=init), tmp_path, "glm-4.6")
    assert code == 4
    first = document["findings"][0]
    assert (first["code"], first["severity"], first["command"]) == ("driver.nvidia", "stops", command)


def test_whether_weights_can_be_fetched_is_not_known_until_the_hubs_are_asked(library: Path, tmp_path: Path) -> None:
    gpus = tuple(scenarios.h100(place) for place in range(8))
    _, document = examined(library, Scenario(gpus=gpus), tmp_path, "glm-4.6")
    told = [each["why"] for each in document["unknown"] if "can be fetched" in each["what"]]
    assert told == ["--online asks the hubs"]
    _, document = examined(library, Scenario(gpus=gpus), tmp_path, "glm-tiny")  # it is made, not fetched
    assert not [each for each in document["unknown"] if "can be fetched" in each["what"]]
