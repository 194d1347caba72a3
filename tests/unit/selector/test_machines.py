"""``--hardware``: described machines and recorded reports."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selector.catalog import Catalog
from selector.errors import UnknownHardware
from selector.hardware import Accelerator, Cpu, Finding, HardwareReport, Host, Link, Metal, NetworkPort, Node
from selector.machines import MAXIMUM_BYTES, hardware_names, report_from_file, report_from_spec

GIB = 1 << 30
MIB = 1 << 20
CATALOG = Catalog()


def refusal(spec: str) -> UnknownHardware:
    with pytest.raises(UnknownHardware) as caught:
        report_from_spec(spec, CATALOG)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
    return caught.value


# --- specifications ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name", "nodes", "count", "total_mib"),
    [
        ("8xh100", "NVIDIA H100 80GB HBM3", 1, 8, 81_559),
        ("h100", "NVIDIA H100 80GB HBM3", 1, 1, 81_559),
        ("4xa100-40gb", "NVIDIA A100-SXM4-40GB", 1, 4, 40_960),
        ("8xa100", "NVIDIA A100-SXM4-80GB", 1, 8, 81_920),
        ("2x8xh200", "NVIDIA H200", 2, 8, 143_771),
        (" 8X4090 ", "NVIDIA GeForce RTX 4090", 1, 8, 24_564),
        ("4090", "NVIDIA GeForce RTX 4090", 1, 1, 24_564),
        ("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 1, 1, 97_887),
        ("b200", "NVIDIA B200", 1, 1, 183_359),
        ("8xmi300x", "AMD Instinct MI300X", 1, 8, 196_592),
        ("gb10", "NVIDIA GB10", 1, 1, 124_610),
        ("dgx-spark", "NVIDIA GB10", 1, 1, 124_610),
        ("m3-ultra-512gb", "Apple M3 Ultra", 1, 1, 512 * 1024),
        ("m4-max-128gb", "Apple M4 Max", 1, 1, 128 * 1024),
        ("m2-ultra-192gb", "Apple M2 Ultra", 1, 1, 192 * 1024),
        ("m4-max-32", "Apple M4 Max", 1, 1, 36 * 1024),
        ("1024x8xh100", "NVIDIA H100 80GB HBM3", 1024, 8, 81_559),
    ],
)
def test_a_described_machine_is_an_idle_one_of_what_the_driver_would_say(
    spec: str, name: str, nodes: int, count: int, total_mib: int
) -> None:
    report = report_from_spec(spec, CATALOG)
    assert (report.nodes, len(report.accelerators)) == (nodes, nodes * count)
    assert [device.index for device in report.accelerators] == list(range(nodes * count))
    assert [device.node for device in report.accelerators] == [node for node in range(nodes) for _ in range(count)]
    for device in report.accelerators:
        assert (device.name, device.memory_total_bytes) == (name, total_mib * MIB)
        assert device.memory_free_bytes == device.memory_total_bytes
    assert report.findings == (Finding(probe="specification", outcome="found", reason=spec.strip()),)


def test_a_described_machine_survives_its_own_recording(tmp_path: Path) -> None:
    for name in hardware_names(CATALOG):
        path = tmp_path / "report.json"
        path.write_text(report_from_spec(name, CATALOG).to_json())
        assert report_from_file(path) == report_from_spec(name, CATALOG)


def test_every_pair_of_a_baseboard_is_switched_and_nodes_are_not_joined() -> None:
    report = report_from_spec("2x8xh200", CATALOG)
    assert len(report.links) == 2 * 28
    assert {(link.kind, link.bandwidth_bytes_per_second) for link in report.links} == {("nvswitch", 450_000_000_000)}
    assert all(link.from_ // 8 == link.to // 8 for link in report.links)
    assert len({(link.from_, link.to) for link in report.links}) == len(report.links)


def test_cards_without_a_bridge_talk_over_pcie() -> None:
    for spec in ("8x4090", "4xrtx3090", "4xrtx-pro-6000"):
        links = report_from_spec(spec, CATALOG).links
        assert {link.kind for link in links} == {"pcie"}, spec
    assert report_from_spec("8x4090", CATALOG).links[0].bandwidth_bytes_per_second == 31_500_000_000


def test_a_bridge_joins_pairs_only() -> None:
    links = report_from_spec("4xh100-nvl", CATALOG).links
    assert [(link.from_, link.to) for link in links if link.kind == "nvlink"] == [(0, 1), (2, 3)]
    assert len(links) == 6


def test_instinct_cards_are_joined_by_infinity_fabric() -> None:
    links = report_from_spec("8xmi300x", CATALOG).links
    assert {(link.kind, link.bandwidth_bytes_per_second) for link in links} == {("infinity-fabric", 448_000_000_000)}


def test_a_mac_shares_its_memory_and_wires_what_older_macos_allows() -> None:
    report = report_from_spec("m3-ultra-512gb", CATALOG)
    device = report.accelerators[0]
    assert (report.host.os, report.host.memory_total_bytes) == ("darwin", 512 * GIB)
    assert device.memory_kind == "unified"
    assert device.metal == Metal(recommended_working_set_bytes=384 * GIB)
    small = report_from_spec("m4-max-32", CATALOG).accelerators[0]
    assert small.metal == Metal(gpu_cores=32, recommended_working_set_bytes=24 * GIB)


def test_a_spark_shares_its_memory_with_linux() -> None:
    report = report_from_spec("gb10", CATALOG)
    device = report.accelerators[0]
    assert (report.host.os, device.memory_kind, device.metal) == ("linux", "unified", None)
    assert report.host.memory_total_bytes == device.memory_total_bytes == 124_610 * MIB


def test_the_main_memory_beside_a_card_is_unknown() -> None:
    assert report_from_spec("8xh100", CATALOG).host.memory_total_bytes is None


def test_a_machine_without_a_gpu_has_only_memory() -> None:
    report = report_from_spec("cpu-64gb", CATALOG)
    assert report.accelerators == ()
    assert (report.host.memory_total_bytes, report.host.memory_available_bytes) == (64 * GIB, 64 * GIB)


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("h10", "no accelerator is called 'h10'", "did you mean h100?"),
        ("8xrtx4080", "no accelerator is called 'rtx4080'", "did you mean 8xrtx4090?"),
        ("m3-ulta-512gb", "no accelerator is called 'm3-ulta-512gb'", "did you mean m3-ultra-512gb?"),
        ("8xh100x2", "no accelerator is called 'h100x2'", "did you mean 8xh100? write 8xh100, h200, 2x8xh200"),
        ("8x", "no accelerator is called '8x'", "write 8xh100"),
        ("x8h100", "no accelerator is called 'x8h100'", "8xh100"),
        ("0xh100", "a node has 1 to 64 GPUs", "write 8xh100"),
        ("65xh100", "a node has 1 to 64 GPUs", "write 8xh100"),
        ("0x8xh100", "nodes are 1 to 1024", "write 8xh100"),
        ("1025x8xh100", "nodes are 1 to 1024", "write 8xh100"),
        ("1024x64xh100", "more than 8192 GPUs in all", "write 8xh100"),
        ("9" * 30 + "xh100", "is no number of machines or GPUs", "write 8xh100"),
        ("", "is no machine", "write 8xh100"),
        ("   ", "is no machine", "write 8xh100"),
        ("-8xh100", "is no machine", "write 8xh100"),
        ("8xh100\x1b[0m", "is no machine", "write 8xh100"),
        ("8xh100\0", "is no machine", "write 8xh100"),
        ("\uff48100", "is no machine", "write 8xh100"),
        ("\u0668xh100", "is no machine", "write 8xh100"),
        ("h" * 100_000, "is no machine", "write 8xh100"),
        (
            "m3-ultra",
            "comes with 96, 256, 512 GB: say which",
            "write m3-ultra-96gb or m3-ultra-256gb or m3-ultra-512gb",
        ),
        ("m3-ultra-300gb", "there is no Apple M3 Ultra with 300 GB, only 96, 256, 512", "write m3-ultra-96gb"),
        ("m4-max-36gb", "only 48, 64, 128", "did you mean m4-max-32-36gb?"),
        ("h100-96gb", "there is no H100 SXM 80GB with 96 GB", "write h100"),
        ("m3-ultra-" + "9" * 50 + "gb", "there is no Apple M3 Ultra", "write m3-ultra-96gb"),
        ("2xgb10", "a machine has one GB10", "write 2x1xgb10 for 2 machines"),
        ("cpu", "named with its memory", "write cpu-64gb"),
        ("cpu-0gb", "memory is 1 to 16384 GB", "write cpu-64gb"),
        ("cpu-99999999999gb", "memory is 1 to 16384 GB", "write cpu-64gb"),
        ("2xcpu-64gb", "takes no count", "write cpu-64gb"),
        ("8xh201", "no accelerator is called 'h201'", "did you mean 8xh200?"),
        ("8xh201+64gb", "no accelerator is called 'h201'", "did you mean 8xh200+64gb?"),
        ("cpu-64gb+64gb", "takes its memory once", "write cpu-64gb"),
        ("gb10+64gb", "shares the memory of its machine", "write gb10"),
        ("2x8xh100+64gb", "main memory is told of one machine alone", "write 8xh100"),
        ("h100+0gb", "main memory is 1 to 16384 GB", "write 8xh100"),
        ("h100+99999999999gb", "main memory is 1 to 16384 GB", "write 8xh100"),
    ],
)
def test_what_names_no_machine_is_told_what_would(spec: str, message: str, hint: str) -> None:
    error = refusal(spec)
    assert message in error.message
    assert error.hint is not None
    assert hint in error.hint
    assert error.exit_code == 2


@given(st.text(alphabet="0123456789xhgbm-.a ", max_size=24))
def test_any_text_is_a_machine_or_a_clear_refusal(spec: str) -> None:
    try:
        report = report_from_spec(spec, CATALOG)
    except UnknownHardware as error:
        assert error.hint
    else:
        assert report.accelerators or report.host.memory_total_bytes


def test_every_listed_name_is_a_machine_and_sizes_are_spelled_out() -> None:
    names = hardware_names(CATALOG)
    assert {"h100", "a100-40gb", "gb10", "m3-ultra-512gb", "cpu-64gb", "mi300x", "m4-max-32"} <= set(names)
    assert "m3-ultra" not in names
    assert len(names) == len(set(names))
    for name in names:
        report_from_spec(name, CATALOG)


# --- recorded reports --------------------------------------------------------------------------------

PORT = NetworkPort(
    kind="infiniband",
    interface="ib0",
    device="mlx5_0:1",
    bandwidth_bytes_per_second=50_000_000_000,
    addresses=("10.0.0.1", "fd00::1"),
)

REPORT = HardwareReport(
    host=Host(
        os="linux", cpu=Cpu(brand="A CPU", cores=8), memory_total_bytes=64 * GIB, memory_available_bytes=60 * GIB
    ),
    accelerators=(
        Accelerator(
            index=0,
            vendor="nvidia",
            name="NVIDIA H200",
            memory_total_bytes=100,
            memory_free_bytes=90,
            compute_capability=(9, 0),
            metal=Metal(wired_limit_bytes=0),
        ),
        Accelerator(index=1, vendor="nvidia", name="NVIDIA H200"),
    ),
    links=(Link(from_=0, to=1, kind="pcie", bandwidth_bytes_per_second=1),),
    network=(PORT,),
)
#: Two machines, each asked, with what the second has beside the first's.
CLUSTER = msgspec.structs.replace(
    REPORT,
    nodes=2,
    accelerators=(*REPORT.accelerators, Accelerator(index=2, vendor="nvidia", name="NVIDIA H200", node=1)),
    hosts=(
        Node(index=0, name="gpu-a", address="10.0.0.1", id="f00", host=REPORT.host, network=(PORT,)),
        Node(index=1, name="gpu-b", host=Host(os="linux"), network=(NetworkPort(kind="ethernet", interface="eth0"),)),
    ),
)


def recorded(tmp_path: Path, changes: Mapping[str, object] | None = None, report: HardwareReport = REPORT) -> Path:
    """The report as a file, with values at paths like ``accelerators__0__index`` changed."""
    document: Any = msgspec.to_builtins(report)
    for path, value in (changes or {}).items():
        *steps, last = path.split("__")
        place = document
        for step in steps:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    file = tmp_path / "machine.json"
    file.write_bytes(msgspec.json.encode(document))
    return file


def test_a_recorded_report_is_taken_back_as_it_was(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    assert report_from_file(path) == REPORT
    assert report_from_spec(str(path), CATALOG) == REPORT


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accelerators__0__memory_total_bytes", -1, "accelerators[0].memory_total_bytes: cannot be -1"),
        ("accelerators__0__memory_total_bytes", 0, "accelerators[0].memory_total_bytes: cannot be 0; unknown is null"),
        ("accelerators__0__memory_total_bytes", 1 << 62, "accelerators[0].memory_total_bytes: cannot be"),
        ("accelerators__0__memory_free_bytes", -5, "accelerators[0].memory_free_bytes: cannot be -5"),
        ("accelerators__0__memory_free_bytes", 101, "accelerators[0].memory_free_bytes: cannot be 101 of 100"),
        (
            "accelerators__0__memory_free_bytes",
            "90",
            "accelerators[0].memory_free_bytes: expected `int | null`, got `str`",
        ),
        ("accelerators__1__index", 0, "accelerators[1].index: 0 is that of accelerators[0] already"),
        ("accelerators__1__index", -1, "accelerators[1].index: cannot be -1"),
        ("accelerators__1__node", 1, "accelerators[1].node: is 1, but there are 1 nodes"),
        ("accelerators__0__compute_capability", [0, 0], "accelerators[0].compute_capability: cannot be [0, 0]"),
        ("accelerators__0__compute_capability", [9, -1], "accelerators[0].compute_capability: cannot be [9, -1]"),
        (
            "accelerators__0__compute_capability",
            [9],
            "accelerators[0].compute_capability: expected `array` of length 2",
        ),
        ("accelerators__0__vendor", "intel", "accelerators[0].vendor: invalid enum value 'intel'"),
        ("accelerators__0__name", "H100\x1b[2J", "accelerators[0].name: has characters that cannot be shown"),
        ("accelerators__0__nmae", "H100", "accelerators[0].nmae: unknown key, did you mean 'name'?"),
        ("accelerators__0__metal__wired_limit_bytes", -1, "accelerators[0].metal.wired_limit_bytes: cannot be -1"),
        ("host__memory_total_bytes", 0, "host.memory_total_bytes: cannot be 0"),
        ("host__memory_available_bytes", 65 * GIB, "host.memory_available_bytes: cannot be"),
        ("host__disk_free_bytes", -1, "host.disk_free_bytes: cannot be -1"),
        ("host__cpu__cores", 0, "host.cpu.cores: cannot be 0"),
        ("host__cpu__brand", "a\nb", "host.cpu.brand: has characters that cannot be shown"),
        ("links__0__to", 7, "links[0].to: there is no accelerator of index 7"),
        ("links__0__to", 0, "links[0]: joins accelerator 0 to itself"),
        ("links__0__bandwidth_bytes_per_second", 0, "links[0].bandwidth_bytes_per_second: cannot be 0"),
        ("links__0__form", 0, "links[0].form: unknown key, did you mean 'from'?"),
        ("nodes", 0, "nodes: must be 1 to 1024, is 0"),
        ("schema", 2, "schema: invalid enum value 2"),
        ("host", None, "host: expected `object`, got `null`"),
    ],
)
def test_a_report_that_no_machine_has_is_refused_by_file_and_key(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = recorded(tmp_path, {key: value})
    with pytest.raises(UnknownHardware) as caught:
        report_from_file(path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.message.isprintable()


def test_a_report_of_several_machines_is_taken_back_as_it_was(tmp_path: Path) -> None:
    assert report_from_file(recorded(tmp_path, report=CLUSTER)) == CLUSTER


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hosts__1__index", 0, "hosts[1].index: 0 is that of hosts[0] already"),
        ("hosts__1__index", 2, "hosts[1].index: is 2, but there are 2 nodes, counted from 0"),
        ("hosts__1__index", -1, "hosts[1].index: is -1, but"),
        ("hosts__1__name", "", "hosts[1].name: must have 1 to 253 characters"),
        ("hosts__1__name", "n" * 254, "hosts[1].name: must have 1 to 253 characters"),
        ("hosts__1__name", "gpu\x1b[2J", "hosts[1].name: has characters that cannot be shown"),
        ("hosts__1__address", "a" * 300, "hosts[1].address: must have 1 to 253 characters"),
        ("hosts__1__id", " ", "hosts[1].id: must have 1 to 253 characters"),
        ("hosts__1__host__memory_total_bytes", 0, "hosts[1].host.memory_total_bytes: cannot be 0"),
        ("hosts__0__network__0__bandwidth_bytes_per_second", 0, "hosts[0].network[0].bandwidth_bytes_per_second: cann"),
        ("network__0__bandwidth_bytes_per_second", -1, "network[0].bandwidth_bytes_per_second: cannot be -1"),
        ("network__0__bandwidth_bytes_per_second", 1 << 60, "network[0].bandwidth_bytes_per_second: cannot be"),
        ("network__0__interface", "eth0,eth1", "network[0].interface: is no interface's name"),
        ("network__0__interface", "^docker0", "network[0].interface: is no interface's name"),
        ("network__0__interface", "", "network[0].interface: is no interface's name"),
        ("network__0__device", "mlx5_0", "network[0].device: is no RDMA device with its port"),
        ("network__0__addresses", ["10.0.0.1%eth0"], "network[0].addresses[0]: is no IP address without a scope"),
        ("network__0__addresses", ["gpu-a"], "network[0].addresses[0]: is no IP address"),
        ("network__0__addresses", ["10.0.0.1"] * 65, "network[0].addresses: are 65, more than 64"),
        ("network__0__kind", "token-ring", "network[0].kind: invalid enum value 'token-ring'"),
        ("network", [{"kind": "ethernet"}] * 257, "network: are 257 ports, more than 256"),
        ("nodes", 1, "hosts: are 2, and there are 1 nodes"),
    ],
)
def test_nodes_and_ports_that_cannot_be_are_refused_by_key(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = recorded(tmp_path, {key: value}, CLUSTER)
    with pytest.raises(UnknownHardware) as caught:
        report_from_file(path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"host": {"os": "linux", "os_version": "\xff"}}', "not JSON"),
        (b"[]", "expected `object`, got `array`"),
        (b"{}", "host: missing"),
        (b"[" * 100_000, ""),
        (b" " * (MAXIMUM_BYTES + 1), "larger than 32 MiB, which no report is"),
    ],
)
def test_a_file_that_is_no_report_is_refused_in_bounds(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    with pytest.raises(UnknownHardware) as caught:
        report_from_file(path)
    assert caught.value.message.startswith(f"{path}: {message}")


@pytest.mark.parametrize("spec", ["none.json", "no/such/machine", "./h100", "a\0.json", "x" * 5_000 + ".json"])
def test_a_path_without_a_file_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(spec)
    assert "no such file" in error.message or "not a path" in error.message or "too long" in error.message
    assert error.hint == "record one with `autolaunch probe --json`"


def test_a_report_can_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    report = report_from_spec("2xh100", CATALOG)
    writer = threading.Thread(target=pipe.write_text, args=(report.to_json(),), daemon=True)
    writer.start()
    assert report_from_spec(str(pipe), CATALOG) == report
    writer.join()


def test_a_folder_is_no_report(tmp_path: Path) -> None:
    error = refusal(f"{tmp_path}/")
    assert "a folder" in error.message
    assert error.exit_code == 2


def test_main_memory_is_known_only_where_it_is_written(catalog: Catalog) -> None:
    assert report_from_spec("4xh100", catalog).host.memory_total_bytes is None
    host = report_from_spec("4xH100+512GB", catalog).host
    assert host.memory_total_bytes == host.memory_available_bytes == 512 << 30
