"""The machines whose reports are kept in ``tests/data/machines``, and how each report is made."""

from __future__ import annotations

from pathlib import Path

from selector.hardware import HardwareReport
from selector.probe.collect import collect
from tests.fakes.macs import mac
from tests.fakes.nvml import stub
from tests.fakes.nvml.scenarios import RECORDED

DATA = Path(__file__).parents[1] / "data/machines"
MACS = ("m3-ultra-512", "m4-max-128", "m2-ultra-192")
NAMES = (*RECORDED, *MACS)


def record(name: str, directory: Path, library: Path, no_library: Path) -> HardwareReport:
    """Probe one machine. ``directory`` is scratch; the others are those of :mod:`tests.fakes.nvml.stub`."""
    if name in MACS:
        return collect(mac(name).system())
    scenario, host = RECORDED[name]
    if scenario is None:
        return stub.ask(no_library, stub.Scenario(), directory, host=host).report
    return stub.ask(library, scenario, directory, host=host).report
