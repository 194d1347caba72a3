"""The shipped accelerators: all of them, found by the names their drivers report."""

from __future__ import annotations

import pytest

from selector.catalog import Catalog
from selector.facts import AcceleratorFacts
from selector.hardware import Accelerator
from selector.machines import hardware_names, report_from_spec

CATALOG = Catalog()
MIB = 1 << 20

#: id -> NVML's total in MiB, memory bandwidth in GB/s, compute capability.
NVIDIA: dict[str, tuple[int | None, float, tuple[int, int]]] = {
    "t4": (15_360, 320, (7, 5)),
    "v100-32gb": (32_768, 900, (7, 0)),
    "a10": (23_028, 600, (8, 6)),
    "rtx3090": (24_576, 936, (8, 6)),
    "a100-40gb": (40_960, 1_555, (8, 0)),
    "a100-80gb": (81_920, 2_039, (8, 0)),
    "a100-pcie-80gb": (81_920, 1_935, (8, 0)),
    "rtx4090": (24_564, 1_008, (8, 9)),
    "l40s": (46_068, 864, (8, 9)),
    "h100": (81_559, 3_350, (9, 0)),
    "h100-pcie": (81_559, 2_000, (9, 0)),
    "h100-nvl": (95_830, 3_938, (9, 0)),
    "h20": (97_871, 4_000, (9, 0)),
    "h200": (143_771, 4_800, (9, 0)),
    "b200": (183_359, 8_000, (10, 0)),
    "b300": (275_040, 8_000, (10, 3)),
    "gb200": (189_471, 8_000, (10, 0)),
    "gb300": (284_208, 8_000, (10, 3)),
    "gb10": (None, 273, (12, 1)),
    "rtx5090": (32_607, 1_792, (12, 0)),
    "rtx-pro-6000": (97_887, 1_792, (12, 0)),
    "rtx-pro-6000-server": (97_887, 1_597, (12, 0)),
}

NVML_NAMES = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H20": "h20",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "A100-SXM4-40GB": "a100-40gb",  # before the driver said NVIDIA
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "GeForce RTX 3090": "rtx3090",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "rtx-pro-6000-max-q",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000-server",
    "NVIDIA B200": "b200",
    "NVIDIA GB10": "gb10",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "Tesla T4": "t4",
    "NVIDIA T4": "t4",
    "Tesla V100-SXM2-32GB": "v100-32gb",
}


def by_id(accelerator_id: str) -> AcceleratorFacts:
    return next(each for each in CATALOG.every_accelerator() if each.id == accelerator_id)


def test_all_58_accelerators_are_described_and_named_once() -> None:
    every = CATALOG.every_accelerator()
    assert {vendor: len(CATALOG.accelerators(vendor)) for vendor in ("nvidia", "amd", "apple")} == {
        "nvidia": 36,
        "amd": 6,
        "apple": 16,
    }
    names = [name.lower() for each in every for name in (each.id, *each.aliases)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("accelerator_id", NVIDIA)
def test_memory_bandwidth_and_capability_are_carried_exactly(accelerator_id: str) -> None:
    facts = by_id(accelerator_id)
    assert (facts.memory_total_mib, facts.bandwidth_gb_per_second, facts.compute_capability) == NVIDIA[accelerator_id]


def test_links_and_pcie_are_one_direction() -> None:
    assert by_id("h100").link_gb_per_second == 450
    assert by_id("h800").link_gb_per_second == 200
    assert by_id("b200").link_gb_per_second == 900
    assert by_id("mi300x").link_gb_per_second == 448
    assert (by_id("t4").pcie_gb_per_second, by_id("h100").pcie_gb_per_second) == (15.75, 63)


def test_only_baseboards_are_taken_for_switched() -> None:
    switched = {each.id for each in CATALOG.accelerators("nvidia") if each.link_kind == "nvswitch"}
    assert switched == {"a100-40gb", "a100-80gb", "h100", "h800", "h20", "h20-3e", "h200", "b200", "b300"}
    assert by_id("rtx4090").link_kind is None


def test_only_machines_that_share_their_memory_are_unified() -> None:
    unified = {each.id for each in CATALOG.every_accelerator() if each.memory_kind == "unified"}
    assert unified == {"gb10", "strix-halo", *(each.id for each in CATALOG.accelerators("apple"))}


def test_cuda_never_hands_out_more_than_the_driver_sees() -> None:
    for facts in CATALOG.every_accelerator():
        if facts.cuda_total_mib is not None and facts.memory_total_mib is not None:
            assert 0.98 * facts.memory_total_mib < facts.cuda_total_mib < facts.memory_total_mib, facts.id


@pytest.mark.parametrize("name", NVML_NAMES)
def test_a_name_that_nvml_prints_is_found(name: str) -> None:
    found = CATALOG.accelerator_for(Accelerator(index=0, vendor="nvidia", name=name))
    assert found is not None
    assert found.id == NVML_NAMES[name]


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4080", "NVIDIA A10G", "NVIDIA", "", "GPU-0", "h100", "\x00"])
def test_a_card_that_nobody_described_stays_unknown(name: str) -> None:
    found = CATALOG.accelerator_for(Accelerator(index=0, vendor="nvidia", name=name))
    assert found is None or (name, found.id) == ("h100", "h100")


@pytest.mark.parametrize("name", hardware_names(CATALOG))
def test_a_described_machine_is_found_again_by_what_its_driver_would_say(name: str) -> None:
    report = report_from_spec(name, CATALOG)
    for device in report.accelerators:
        facts = CATALOG.accelerator_for(device)
        assert facts is not None
        assert name.startswith(facts.id)
