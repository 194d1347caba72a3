"""AMD GPUs, from the kernel's files and a stand-in of amdsmi."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from selector.hardware import Accelerator
from selector.probe.amd import probe_amd
from selector.probe.collect import _numbered_after
from selector.probe.system import Probed, System, this_system

TOTAL, USED = 206_141_652_992, 300_000_000
ADDRESS = "0000:05:00.0"


def system(root: Path) -> System:
    return msgspec.structs.replace(this_system({}), root=root, platform="linux")


def card(root: Path, **files: str) -> None:
    device = root / "sys/devices/pci0000:00" / ADDRESS
    device.mkdir(parents=True)
    told = {"vendor": "0x1002", "mem_info_vram_total": str(TOTAL), "mem_info_vram_used": str(USED), **files}
    for name, text in told.items():
        (device / name).write_text(f"{text}\n")
    place = root / "sys/class/drm/card1"
    place.mkdir(parents=True)
    (place / "device").symlink_to(device)
    (root / "sys/class/drm/card1-DP-1").mkdir()


def compute_node(root: Path, simd_count: int) -> None:
    node = root / "sys/class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text(f"cpu_cores_count 0\nsimd_count {simd_count}\n")


class AmdSmiException(Exception):
    pass


@pytest.fixture
def amdsmi(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("amdsmi")
    answers = {
        "AmdSmiException": AmdSmiException,
        "amdsmi_init": lambda: None,
        "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: [object()],
        "amdsmi_get_gpu_device_bdf": lambda _: ADDRESS,
        "amdsmi_get_gpu_asic_info": lambda _: {"market_name": "AMD Instinct MI300X"},
        "amdsmi_get_gpu_driver_info": lambda _: {"driver_version": "6.10.5"},
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    return module


@pytest.fixture
def no_amdsmi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)


def test_no_card_is_an_absence(tmp_path: Path) -> None:
    assert [finding.outcome for finding in probe_amd(system(tmp_path)).findings] == ["absent"]


def test_another_vendors_card_is_an_absence(tmp_path: Path) -> None:
    card(tmp_path, vendor="0x10de")
    compute_node(tmp_path, 0)
    assert [finding.outcome for finding in probe_amd(system(tmp_path)).findings] == ["absent"]


def test_a_card_is_found_with_its_memory_and_amdsmis_name(tmp_path: Path, amdsmi: ModuleType) -> None:
    card(tmp_path, numa_node="1")
    probed = probe_amd(system(tmp_path))
    (device,) = probed.accelerators
    assert (device.vendor, device.name) == ("amd", "AMD Instinct MI300X")
    assert (device.memory_total_bytes, device.memory_free_bytes) == (TOTAL, TOTAL - USED)
    assert (device.pci_bus_id, device.numa_node) == (ADDRESS, 1)
    assert probed.drivers[0].version == "6.10.5"
    assert [(finding.outcome, finding.reason) for finding in probed.findings] == [("found", None)]


@pytest.mark.usefixtures("no_amdsmi")
def test_without_amdsmi_a_card_is_still_found_and_that_is_said(tmp_path: Path) -> None:
    card(tmp_path)
    probed = probe_amd(system(tmp_path))
    assert [device.name for device in probed.accelerators] == ["AMD GPU"]
    (finding,) = probed.findings
    assert (finding.outcome, "amdsmi cannot be imported" in (finding.reason or "")) == ("found", True)


def test_an_amdsmi_that_fails_costs_only_names(
    tmp_path: Path, amdsmi: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AmdSmiException("no permission")

    monkeypatch.setattr(amdsmi, "amdsmi_init", fail)
    card(tmp_path)
    probed = probe_amd(system(tmp_path))
    assert len(probed.accelerators) == 1
    assert "no permission" in (probed.findings[0].reason or "")


def test_more_used_than_there_is_leaves_free_unknown(tmp_path: Path, amdsmi: ModuleType) -> None:
    card(tmp_path, mem_info_vram_used=str(TOTAL + 1))
    assert probe_amd(system(tmp_path)).accelerators[0].memory_free_bytes is None


def test_a_compute_node_without_a_readable_card_is_a_failure(tmp_path: Path) -> None:
    compute_node(tmp_path, 1216)
    assert [finding.outcome for finding in probe_amd(system(tmp_path)).findings] == ["failed"]


def test_indices_go_on_after_another_vendors() -> None:
    nvidia = Probed(accelerators=(Accelerator(index=4, vendor="nvidia", name="a"),), findings=())
    amd = Probed(accelerators=(Accelerator(index=0, vendor="amd", name="b"),), findings=())
    assert [device.index for device in _numbered_after(nvidia, amd).accelerators] == [5]
