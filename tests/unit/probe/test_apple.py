"""Macs, from recorded outputs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from selector.hardware import Finding, HardwareReport
from selector.probe.collect import collect
from selector.probe.system import Completed, System
from tests.fakes.macs import Mac, mac

GIB = 1 << 30


def probed(machine: Mac) -> tuple[HardwareReport, Finding]:
    report = collect(machine.system())
    (finding,) = (finding for finding in report.findings if finding.probe == "apple")
    return report, finding


def changed(name: str, **sysctl: str | None) -> Mac:
    machine = mac(name)
    values: dict[str, Any] = {**machine.sysctl, **{key.replace("__", "."): text for key, text in sysctl.items()}}
    return msgspec.structs.replace(machine, sysctl={key: text for key, text in values.items() if text is not None})


@pytest.mark.parametrize(
    ("name", "chip", "gib", "cores", "metal", "working_set_gib", "wired_gib"),
    [
        ("m3-ultra-512", "Apple M3 Ultra", 512, 80, "3", 384, 0),
        ("m4-max-128", "Apple M4 Max", 128, 40, "4", 96, 0),
        ("m2-ultra-192", "Apple M2 Ultra", 192, 76, "3", 176, 176),
    ],
)
def test_a_mac_tells_its_chip_memory_and_limit(
    name: str, chip: str, gib: int, cores: int, metal: str, working_set_gib: int, wired_gib: int
) -> None:
    report, finding = probed(mac(name))
    (device,) = report.accelerators
    assert (finding.outcome, finding.reason) == ("found", None)
    assert (device.name, device.vendor, device.memory_kind) == (chip, "apple", "unified")
    assert device.memory_total_bytes == report.host.memory_total_bytes == gib * GIB
    assert device.memory_free_bytes == report.host.memory_available_bytes
    assert device.metal is not None
    assert (device.metal.gpu_cores, device.metal.version) == (cores, metal)
    assert device.metal.recommended_working_set_bytes == working_set_gib * GIB
    assert device.metal.wired_limit_bytes == wired_gib * GIB


def test_a_small_mac_may_wire_two_thirds() -> None:
    report, _ = probed(changed("m4-max-128", hw__memsize=str(48 * GIB)))
    metal = report.accelerators[0].metal
    assert metal is not None
    assert metal.recommended_working_set_bytes == 32 * GIB


def test_a_wired_limit_above_the_memory_grants_no_more_than_there_is() -> None:
    report, _ = probed(changed("m2-ultra-192", iogpu__wired_limit_mb="900000"))
    metal = report.accelerators[0].metal
    assert metal is not None
    assert metal.recommended_working_set_bytes == 192 * GIB


def test_a_macos_without_the_limit_leaves_it_unknown() -> None:
    report, _ = probed(changed("m3-ultra-512", iogpu__wired_limit_mb=None))
    metal = report.accelerators[0].metal
    assert metal is not None
    assert (metal.wired_limit_bytes, metal.recommended_working_set_bytes) == (None, 384 * GIB)


def test_an_intel_mac_has_no_gpu_for_mlx() -> None:
    report, finding = probed(mac("intel"))
    assert report.accelerators == ()
    assert finding.outcome == "absent"
    assert "is not Apple silicon" in (finding.reason or "")
    assert report.host.memory_total_bytes == 64 * GIB


def test_a_virtual_mac_without_metal_has_no_gpu() -> None:
    report, finding = probed(mac("virtual"))
    assert (report.accelerators, finding.outcome) == ((), "absent")


def test_garbage_is_unknown_and_said() -> None:
    report, finding = probed(mac("garbage"))
    (device,) = report.accelerators
    assert device.name == "[2JApple M3 Ultra"
    assert (device.memory_total_bytes, device.memory_free_bytes) == (None, None)
    assert device.metal is not None
    assert device.metal.recommended_working_set_bytes is None
    assert (finding.outcome, "Metal version are unknown" in (finding.reason or "")) == ("found", True)


@pytest.mark.parametrize(
    "displays", ["", "[]", '{"SPDisplaysDataType": {}}', '{"SPDisplaysDataType": [7]}', "[" * 5000]
)
def test_a_profiler_that_answers_something_else_costs_only_its_figures(displays: str) -> None:
    report, finding = probed(msgspec.structs.replace(mac("m3-ultra-512"), system_profiler=displays))
    assert finding.outcome == "found"
    assert report.accelerators[0].memory_total_bytes == 512 * GIB


def test_a_mac_that_tells_nothing_is_a_failure() -> None:
    def silent(argv: tuple[str, ...]) -> Completed:
        return Completed("", f"{argv[0]} did not answer")

    system: System = msgspec.structs.replace(mac("m3-ultra-512").system(), run=silent)
    outcomes = {finding.probe: finding.outcome for finding in collect(system).findings}
    assert outcomes["apple"] == "failed"


def test_rosetta_is_said() -> None:
    _, finding = probed(changed("m3-ultra-512", sysctl__proc_translated="1"))
    assert "Rosetta" in (finding.reason or "")
