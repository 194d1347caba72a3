"""The real NVML client over the stub of NVIDIA's library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from selector.hardware import Finding, HardwareReport, Host, Link
from selector.probe.nvidia import probe_nvidia
from selector.probe.nvml import LIBRARY_NOT_FOUND, Nvml, NvmlFailure
from selector.probe.system import System, process_name, this_system
from tests.fakes.nvml import scenarios, stub
from tests.fakes.nvml.stub import Scenario

Ask = Callable[..., stub.Asked]
MIB = 1 << 20


def findings(report: HardwareReport) -> list[tuple[str, str | None]]:
    return [(finding.outcome, finding.reason) for finding in report.findings if finding.probe == "nvidia"]


def kinds(links: tuple[Link, ...]) -> set[tuple[str, int | None]]:
    return {(link.kind, link.bandwidth_bytes_per_second) for link in links}


# --- what is there ----------------------------------------------------------------------------------


def test_eight_h100_are_told_with_every_pair_over_nvswitch(ask: Ask) -> None:
    report = ask(scenarios.EIGHT_H100).report
    assert findings(report) == [("found", None)]
    assert [device.index for device in report.accelerators] == list(range(8))
    first = report.accelerators[0]
    assert (first.name, first.compute_capability, first.architecture) == ("NVIDIA H100 80GB HBM3", (9, 0), "Hopper")
    assert (first.memory_kind, first.memory_total_bytes) == ("dedicated", 81_559 * MIB)
    assert first.memory_free_bytes == 81_005 * MIB
    assert (first.pci_bus_id, first.numa_node, report.accelerators[7].numa_node) == ("0000:19:00.0", 0, 1)
    assert [(driver.version, driver.runtime) for driver in report.drivers] == [("570.133.20", "12.8")]
    assert len(report.links) == 28
    assert kinds(report.links) == {("nvswitch", 450_000_000_000)}


def test_pcie_is_the_way_between_gpus_without_nvlink(ask: Ask) -> None:
    links = ask(scenarios.EIGHT_4090).report.links
    assert len(links) == 28
    assert kinds(links) == {("pcie", 31_504_000_000)}


def test_a_narrow_slot_bounds_its_pairs_only(ask: Ask) -> None:
    gpus = (scenarios.rtx4090(0), scenarios.rtx4090(1), scenarios.rtx4090(2, pcie=(4, 4)))
    links = {(link.from_, link.to): link.bandwidth_bytes_per_second for link in ask(Scenario(gpus=gpus)).report.links}
    assert links == {(0, 1): 31_504_000_000, (0, 2): 7_876_000_000, (1, 2): 7_876_000_000}


def test_a_bridge_joins_its_pair_at_the_speed_nvml_tells(ask: Ask) -> None:
    pairs = ((0, 1), (1, 0), (2, 3), (3, 2))
    links = ask(Scenario(gpus=tuple(scenarios.rtx3090(place, peer) for place, peer in pairs))).report.links
    joined = {(link.from_, link.to) for link in links if link.kind == "nvlink"}
    assert joined == {(0, 1), (2, 3)}
    assert kinds(links) == {("nvlink", 56_248_000_000), ("pcie", 31_504_000_000)}


def test_a_link_that_is_down_carries_nothing(ask: Ask) -> None:
    links = (stub.NvLink(version=6, speed=26_562), stub.NvLink(version=0)) * 9
    gpus = (scenarios.h100(0, links=links), scenarios.h100(1))
    assert kinds(ask(Scenario(gpus=gpus)).report.links) == {("nvswitch", 225_000_000_000)}


def test_an_nvlink_of_unknown_speed_stays_an_nvlink(ask: Ask) -> None:
    links = (stub.NvLink(version=9),) * 18
    gpus = (scenarios.h100(0, links=links), scenarios.h100(1, links=links))
    assert kinds(ask(Scenario(gpus=gpus)).report.links) == {("nvswitch", None)}


def test_memory_in_use_is_not_free_and_its_holders_are_named(ask: Ask) -> None:
    devices = ask(scenarios.FOUR_A100_BUSY).report.accelerators
    assert [(device.memory_free_bytes or 0) // MIB for device in devices] == [18_400, 81_000, 81_000, 51_100]
    holders = [(each.pid, each.name, each.used_bytes) for device in devices for each in device.processes]
    assert holders == [
        (4242, "VLLM::EngineCore", 62_500 * MIB),
        (4243, "python3", 29_700 * MIB),
        (9_999_999, None, None),  # gone since, and the driver does not tell how much it holds
    ]


def test_a_living_process_is_named_and_a_dead_one_is_not(ask: Ask) -> None:
    gpu = scenarios.rtx4090(0, compute=((os.getpid(), 5), (2_000_000_000, 6)), graphics=((1, 7),))
    processes = ask(Scenario(gpus=(gpu,)), host=None).report.accelerators[0].processes
    assert {each.pid: each.used_bytes for each in processes} == {1: 7, os.getpid(): 5, 2_000_000_000: 6}
    assert {each.pid: each.name for each in processes}[os.getpid()] == psutil.Process().name()
    assert {each.pid: each.name for each in processes}[2_000_000_000] is None


def test_a_driver_without_the_newer_memory_call_is_asked_the_older(ask: Ask) -> None:
    device = ask(Scenario(gpus=(scenarios.h100(0, has_memory_v2=False),))).report.accelerators[0]
    assert (device.memory_total_bytes, device.memory_free_bytes) == (81_559 * MIB, 81_005 * MIB)


def test_a_gpu_that_shares_the_hosts_memory_gets_the_hosts_figures(ask: Ask) -> None:
    report = ask(scenarios.GB10, host=scenarios.SPARK).report
    (device,) = report.accelerators
    assert (device.name, device.memory_kind, device.compute_capability) == ("NVIDIA GB10", "unified", (12, 1))
    assert device.memory_total_bytes == report.host.memory_total_bytes == 125_513_000 * 1024
    assert device.memory_free_bytes == report.host.memory_available_bytes == 118_400_000 * 1024


# --- MIG --------------------------------------------------------------------------------------------


def test_slices_stand_in_the_place_of_their_gpu(ask: Ask) -> None:
    report = ask(scenarios.MIG_ON_ONE_OF_TWO).report
    parent = scenarios.uuid(0).decode()
    assert [(device.index, device.mig_parent_uuid) for device in report.accelerators] == [
        (1, None),
        (2, parent),
        (3, parent),
    ]
    first = report.accelerators[1]
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert first.memory_total_bytes == 40_448 * MIB
    assert (first.compute_capability, first.pci_bus_id) == ((9, 0), "0000:19:00.0")
    assert (first.uuid or "").startswith("MIG-")
    assert report.links == ()


def test_a_gpu_in_mig_mode_without_a_slice_is_left_out_and_named(ask: Ask) -> None:
    report = ask(Scenario(gpus=(scenarios.h100(0, mig=True), scenarios.h100(1)))).report
    assert [device.index for device in report.accelerators] == [1]
    assert findings(report) == [("found", None), ("failed", "GPU 0 is left out: it is in MIG mode and has no slice")]


# --- CUDA_VISIBLE_DEVICES (its rules are in test_visible) -------------------------------------------


def test_a_mask_keeps_the_physical_indices(ask: Ask) -> None:
    report = ask(scenarios.EIGHT_H100, {"CUDA_VISIBLE_DEVICES": "5,2"}).report
    assert [device.index for device in report.accelerators] == [5, 2]
    assert [(link.from_, link.to) for link in report.links] == [(2, 5)]


def test_a_mask_that_hides_all_is_said(ask: Ask) -> None:
    report = ask(scenarios.EIGHT_H100, {"CUDA_VISIBLE_DEVICES": ""}).report
    assert (report.accelerators, report.links) == ((), ())
    assert findings(report) == [("absent", 'CUDA_VISIBLE_DEVICES="" hides every GPU')]


def test_indices_on_a_mixed_machine_are_said_to_be_ambiguous(ask: Ask) -> None:
    mixed = Scenario(gpus=(scenarios.rtx4090(0), scenarios.h100(1)))
    ((outcome, reason),) = findings(ask(mixed, {"CUDA_VISIBLE_DEVICES": "0"}).report)
    assert outcome == "found"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in (reason or "")
    settled = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert findings(ask(mixed, settled).report) == [("found", None)]


# --- what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["lost", "handle_error"])
def test_a_lost_gpu_is_left_out_and_named(ask: Ask, field: str) -> None:
    gpus = tuple(scenarios.h100(place, **({field: stub.GPU_IS_LOST} if place == 3 else {})) for place in range(8))
    report = ask(Scenario(gpus=gpus)).report
    assert [device.index for device in report.accelerators] == [0, 1, 2, 4, 5, 6, 7]
    assert len(report.links) == 21
    assert findings(report) == [("found", None), ("failed", "GPU 3 is left out: GPU is lost")]


def test_a_gpu_whose_memory_cannot_be_asked_is_left_out_and_named(ask: Ask) -> None:
    gpus = (scenarios.h100(0), scenarios.h100(1, memory_error=stub.UNKNOWN))
    report = ask(Scenario(gpus=gpus)).report
    assert [device.index for device in report.accelerators] == [0]
    assert findings(report)[1] == ("failed", "GPU 1 is left out: Unknown Error")


def test_losing_every_gpu_is_a_failure_and_not_an_absence(ask: Ask) -> None:
    report = ask(Scenario(gpus=(scenarios.h100(0, lost=stub.GPU_IS_LOST),))).report
    assert report.accelerators == ()
    assert [outcome for outcome, _ in findings(report)] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (stub.DRIVER_NOT_LOADED, "Driver Not Loaded: the driver's library is installed, but its kernel module"),
        (stub.VERSION_MISMATCH, "mismatch: the driver's library and its kernel module have different versions"),
        (stub.NO_PERMISSION, "Insufficient Permissions: this user may not talk to the driver"),
        (stub.UNKNOWN, "Unknown Error"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_a_failure_with_its_reason(ask: Ask, code: int, words: str) -> None:
    report = ask(Scenario(init=code)).report
    ((outcome, reason),) = findings(report)
    assert outcome == "failed"
    assert words in (reason or "")
    assert (report.accelerators, report.drivers) == ((), ())


def test_a_driver_that_cannot_count_is_a_failure(ask: Ask) -> None:
    ((outcome, reason),) = findings(ask(Scenario(count_error=stub.UNKNOWN)).report)
    assert (outcome, reason) == ("failed", "the driver does not count its GPUs: Unknown Error")


def test_a_loaded_driver_without_a_gpu_is_an_absence(ask: Ask) -> None:
    report = ask(Scenario()).report
    assert findings(report) == [("absent", "the driver is loaded and counts no GPU")]
    assert report.drivers[0].version == "570.133.20"


def test_what_a_driver_cannot_mean_is_unknown(ask: Ask) -> None:
    report = ask(scenarios.HOSTILE).report
    zero, more_free, binary, long, escapes, mute = report.accelerators
    assert (zero.memory_total_bytes, zero.memory_free_bytes) == (None, None)
    assert (more_free.memory_total_bytes, more_free.memory_free_bytes) == (81_559 * MIB, None)
    assert (binary.name, binary.uuid) == ("NVIDIA GPU", None)
    assert len(long.name) <= 120
    assert (long.memory_total_bytes, long.uuid) == (None, None)
    assert escapes.name == "[31mred H100 [0m"
    assert (escapes.compute_capability, escapes.pci_bus_id) == (None, None)
    assert (mute.name, mute.memory_kind, mute.memory_total_bytes, mute.uuid) == ("NVIDIA GPU", "dedicated", None, None)
    assert [(driver.version, driver.runtime) for driver in report.drivers] == [(None, None)]
    assert all(text.isprintable() for text in (device.name for device in report.accelerators))


def test_a_hostile_report_can_be_read_back(ask: Ask) -> None:
    report = ask(scenarios.HOSTILE).report
    assert msgspec.json.decode(report.to_json(), type=HardwareReport) == report


@pytest.mark.parametrize("scenario", [scenarios.EIGHT_H100, scenarios.HOSTILE, Scenario(count_error=stub.UNKNOWN)])
def test_nvml_is_shut_down_and_nothing_is_printed(ask: Ask, scenario: Scenario) -> None:
    asked = ask(scenario)
    assert asked.left_open == 0
    assert asked.output == ""


# --- without the library ----------------------------------------------------------------------------


def alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> Finding:
    """The finding on a machine whose files are below ``root`` and which has no NVML."""

    def missing(cls: type[Nvml]) -> Nvml:
        raise NvmlFailure(LIBRARY_NOT_FOUND, "not found")

    monkeypatch.setattr(Nvml, "open", classmethod(missing))
    system: System = msgspec.structs.replace(this_system({}), root=root, platform="linux")
    (finding,) = probe_nvidia(system, Host(os="linux")).findings
    return finding


def pci_device(root: Path, vendor: str, kind: str) -> None:
    place = root / "sys/bus/pci/devices/0000:01:00.0"
    place.mkdir(parents=True)
    (place / "vendor").write_text(f"{vendor}\n")
    (place / "class").write_text(f"{kind}\n")


def test_no_library_and_no_device_is_an_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alone(tmp_path, monkeypatch).outcome == "absent"


def test_a_network_card_of_nvidia_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pci_device(tmp_path, "0x10de", "0x020000")
    assert alone(tmp_path, monkeypatch).outcome == "absent"


def test_a_gpu_without_a_driver_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pci_device(tmp_path, "0x10de", "0x030200")
    finding = alone(tmp_path, monkeypatch)
    assert (finding.outcome, "no driver is installed" in (finding.reason or "")) == ("failed", True)


def test_a_device_file_without_the_library_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    finding = alone(tmp_path, monkeypatch)
    assert finding.outcome == "failed"
    assert "NVIDIA_DRIVER_CAPABILITIES" in (finding.reason or "")


def test_the_same_scenario_gives_the_same_bytes(ask: Ask) -> None:
    scenario = replace(scenarios.FOUR_A100_BUSY, numa=(0, 0, 1, 1))
    assert ask(scenario).report.to_json() == ask(scenario).report.to_json()


def test_the_holders_of_a_gpu_are_named_without_psutil(library: Path, tmp_path: Path) -> None:
    """Importing it would take longer than all questions to the driver."""
    text = tmp_path / "scenario.txt"
    text.write_text(Scenario(gpus=(scenarios.rtx4090(0, compute=((os.getpid(), 5),)),)).text())
    script = (
        "import sys; from selector.probe import probe; report = probe(environment={});"
        "print(report.accelerators[0].processes[0].name, 'psutil' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(stub.ROOT), "LD_LIBRARY_PATH": str(library), "NVML_STUB_SCENARIO": str(text)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == f"{psutil.Process().name()} False"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil tells the name")
def test_a_name_that_the_kernel_cut_is_made_whole(tmp_path: Path) -> None:
    program = tmp_path / "a-program-of-a-long-name"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process_name(process.pid) == "a-program-of-a-long-name"
        process.communicate(b"\n")


def test_a_driver_that_could_not_be_asked_is_not_taken_for_no_gpu(library: Path, tmp_path: Path) -> None:
    for init in (stub.NO_PERMISSION, stub.VERSION_MISMATCH):
        text = tmp_path / "scenario.txt"
        text.write_text(Scenario(init=init).text())
        environment = {
            "HOME": str(tmp_path),
            "PYTHONPATH": str(stub.ROOT),
            "LD_LIBRARY_PATH": str(library),
            "NVML_STUB_SCENARIO": str(text),
        }
        for line in (["plan", "glm-4.6"], ["glm-4.6"]):
            done = subprocess.run(
                [sys.executable, "-m", "autolaunch", *line],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert done.returncode == 4, done.stderr
            assert "the NVIDIA driver could not be asked, and nothing fits without its GPUs" in done.stderr
            assert done.stdout == ""
