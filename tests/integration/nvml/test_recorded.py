"""The kept reports are what the probe yields today, and each can be read back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from selector.hardware import HardwareReport
from tests.fakes import machines


@pytest.mark.parametrize("name", machines.NAMES)
def test_a_recorded_machine_is_what_the_probe_yields(
    name: str, tmp_path: Path, library: Path, no_library: Path, update_golden: bool
) -> None:
    report = machines.record(name, tmp_path, library, no_library)
    path = machines.DATA / f"{name}.json"
    if update_golden:
        path.write_text(report.to_json() + "\n")
    assert path.read_text() == report.to_json() + "\n"


def test_every_kept_report_is_one_of_the_recorded() -> None:
    assert sorted(path.stem for path in machines.DATA.glob("*.json")) == sorted(machines.NAMES)


@pytest.mark.parametrize("path", sorted(machines.DATA.glob("*.json")), ids=lambda path: path.stem)
def test_a_kept_report_can_be_read_back(path: Path) -> None:
    report = msgspec.json.decode(path.read_bytes(), type=HardwareReport)
    assert report.to_json() + "\n" == path.read_text()
    indices = [device.index for device in report.accelerators]
    assert len(indices) == len(set(indices))
