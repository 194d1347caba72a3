"""The ports of a host, from trees of the kernel's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from selector.hardware import Finding, NetworkPort
from selector.machines import checked_report
from selector.probe.collect import collect
from selector.probe.interfaces import Interface, interfaces, is_reachable
from selector.probe.network import MAXIMUM_PORTS, probe_network
from selector.probe.system import System, this_system
from tests.fakes import ports
from tests.fakes.macs import mac

Told = Mapping[str, Interface]
NDR_BYTES = 50_000_000_000


def linux(root: Path, told: Told | None = None) -> System:
    found = {} if told is None else told
    system: System = msgspec.structs.replace(
        this_system({}), root=root, platform="linux", interfaces=lambda: found, run=mac("m3-ultra-512").run
    )
    return system


def probed(root: Path, told: Told | None = None) -> tuple[tuple[NetworkPort, ...], Finding]:
    (root / "sys/class/net").mkdir(parents=True, exist_ok=True)
    return probe_network(linux(root, told))


def shown(root: Path, told: Told | None = None) -> list[tuple[str, str | None, str | None, int | None]]:
    found, _ = probed(root, told)
    return [(each.kind, each.interface, each.device, each.bandwidth_bytes_per_second) for each in found]


def reason(root: Path) -> str:
    return probed(root)[1].reason or ""


# --- what is there ----------------------------------------------------------------------------------


def test_a_server_tells_each_infiniband_port_once_with_its_ip_interface(tmp_path: Path) -> None:
    ports.server(tmp_path)
    found = shown(tmp_path)
    assert found[:8] == [("infiniband", f"ib{each}", f"mlx5_{each}:1", NDR_BYTES) for each in range(8)]
    assert found[8:] == [("ethernet", "eno1", None, 3_125_000_000)]
    assert probed(tmp_path)[1] == Finding(probe="network", outcome="found")


def test_more_than_ten_devices_stand_in_their_own_order(tmp_path: Path) -> None:
    for place in range(12):
        ports.rdma(tmp_path, f"mlx5_{place}")
    assert [each.device for each in probed(tmp_path)[0]] == [f"mlx5_{place}:1" for place in range(12)]


def test_infiniband_without_ip_has_no_interface(tmp_path: Path) -> None:
    ports.rdma(tmp_path, "mlx5_0", rate="2.5 Gb/sec (1X SDR)")
    assert shown(tmp_path) == [("infiniband", None, "mlx5_0:1", 312_500_000)]


def test_an_rdma_device_over_ethernet_is_roce(tmp_path: Path) -> None:
    ports.spark(tmp_path)
    assert shown(tmp_path) == [
        ("roce", "enp1s0f0np0", "rocep1s0f0:1", 25_000_000_000),
        ("ethernet", "enP7s7", None, 1_250_000_000),
    ]
    assert reason(tmp_path) == "rocep1s0f1:1 is not active (1: DOWN)"


def test_two_ports_of_one_card_have_each_their_own_interface(tmp_path: Path) -> None:
    for place in (0, 1):
        ports.interface(tmp_path, f"eth{place}", port=place, speed="40000")
        ports.rdma(tmp_path, "mlx4_0", "eth0", "eth1", number=place + 1, layer="Ethernet", rate="40 Gb/sec (4X QDR)")
    assert [each[1:3] for each in shown(tmp_path)] == [("eth0", "mlx4_0:1"), ("eth1", "mlx4_0:2")]


def test_a_bond_stands_for_its_members(tmp_path: Path) -> None:
    for each in ("eth0", "eth1"):
        ports.interface(tmp_path, each, speed="25000")
    ports.bond(tmp_path, "bond0", "eth0", "eth1")
    assert shown(tmp_path, {"bond0": Interface(addresses=("10.0.0.1",))}) == [
        ("ethernet", "bond0", None, 6_250_000_000)
    ]


def test_roce_over_a_bond_goes_by_the_bonds_name(tmp_path: Path) -> None:
    for each in ("eth0", "eth1"):
        ports.interface(tmp_path, each, speed="100000")
    ports.bond(tmp_path, "bond0", "eth0", "eth1", speed="200000")
    ports.rdma(tmp_path, "mlx5_bond_0", "eth0", "eth1", layer="Ethernet", rate="200 Gb/sec (4X HDR)")
    assert shown(tmp_path) == [("roce", "bond0", "mlx5_bond_0:1", 25_000_000_000)]


@pytest.mark.parametrize("speed", ["-1", "65535", "4294967295", "0", "", "fast", "9" * 40])
def test_a_virtual_machines_port_is_ethernet_of_unknown_rate(tmp_path: Path, speed: str) -> None:
    ports.virtual(tmp_path)
    ports.put(tmp_path / "sys/class/net/eth0", speed=speed)
    assert shown(tmp_path) == [("ethernet", "eth0", None, None)]


def test_a_port_without_an_address_goes_by_the_bridge_or_vlan_above_it_that_has_one(tmp_path: Path) -> None:
    ports.interface(tmp_path, "eno1")
    ports.interface(tmp_path, "eno1.7", hardware=False)
    ports.interface(tmp_path, "br0", hardware=False)
    ports.above(tmp_path, "eno1", "eno1.7")
    ports.above(tmp_path, "eno1.7", "br0")
    ports.above(tmp_path, "br0", "eno1")  # no kernel has such a ring, and it must not hold us
    (port,) = probed(tmp_path, {"br0": Interface(addresses=("192.0.2.7",))})[0]
    assert (port.interface, port.addresses) == ("br0", ("192.0.2.7",))
    assert probed(tmp_path)[0][0].interface == "eno1"
    assert (
        probed(tmp_path, {"br0": Interface(addresses=("10.1.1.1",)), "eno1": Interface(addresses=("10.0.0.1",))})[0][
            0
        ].interface
        == "eno1"
    )


# --- what is none -----------------------------------------------------------------------------------


def test_what_is_virtual_or_down_is_no_port(tmp_path: Path) -> None:
    ports.interface(tmp_path, "lo", kind=772, hardware=False)
    for name in ("docker0", "veth12ab", "tun0", "br-0a1b"):
        ports.interface(tmp_path, name, hardware=False)
    ports.interface(tmp_path, "eth1", state="down")
    place = ports.interface(tmp_path, "eth2", state="unknown")
    ports.put(place, carrier="0")
    ports.interface(tmp_path, "can0", kind=280)
    ports.put(ports.interface(tmp_path, "eth3"), phys_port_name="pf0vf12")
    found, finding = probed(tmp_path)
    assert (found, finding.outcome) == ((), "absent")
    ports.put(place, carrier="1")
    assert [each.interface for each in probed(tmp_path)[0]] == ["eth2"]


def test_software_rdma_and_iwarp_are_ethernet(tmp_path: Path) -> None:
    ports.interface(tmp_path, "eth0")
    ports.rdma(tmp_path, "irdma0", "eth0", layer="Ethernet")
    ports.put(tmp_path / "sys/class/infiniband/irdma0", node_type="4: RNIC")
    ports.rdma(tmp_path, "rxe0", layer="Ethernet", shown="eth0")
    (tmp_path / "sys/class/infiniband/rxe0/device").rmdir()
    assert [each[:2] for each in shown(tmp_path)] == [("ethernet", "eth0")]


def test_rdma_that_this_process_may_not_open_is_not_counted(tmp_path: Path) -> None:
    ports.server(tmp_path)
    (tmp_path / "dev/infiniband/uverbs0").unlink()
    kinds = {kind for kind, *_ in shown(tmp_path)}
    assert kinds == {"ethernet"}
    assert "no /dev/infiniband for this process" in reason(tmp_path)


def test_roce_whose_interface_another_namespace_has_is_told_and_left_out(tmp_path: Path) -> None:
    ports.rdma(tmp_path, "mlx5_0", layer="Ethernet")
    assert probed(tmp_path)[1].outcome == "absent"
    assert "mlx5_0:1 (RoCE) has no network interface that is seen here" in reason(tmp_path)


def test_a_list_that_cannot_be_read_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    found, finding = probe_network(linux(tmp_path))
    assert (found, finding.outcome) == ((), "failed")
    assert "/sys/class/net" in (finding.reason or "")


# --- junk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("rate", "quick", "the rate of mlx5_0:1 is not told"),
        ("rate", "99999 Gb/sec (9X ZDR)", "the rate of mlx5_0:1 is not told"),
        ("link_layer", "Unspecified", "mlx5_0:1 has neither InfiniBand nor Ethernet below it (Unspecified)"),
        ("link_layer", "\x1b[2J", "neither InfiniBand nor Ethernet below it ([2J)"),
        ("state", "2: INIT", "mlx5_0:1 is not active (2: INIT)"),
        ("state", "", "it does not tell its state"),
    ],
)
def test_junk_in_a_ports_files_is_told(tmp_path: Path, file: str, text: str, why: str) -> None:
    port = ports.rdma(tmp_path, "mlx5_0")
    ports.put(port, **{file: text})
    assert why in reason(tmp_path)


@pytest.mark.parametrize("name", ["..", "a/b", "", "eth0\x1b", "x" * 100])
def test_a_name_in_a_file_is_no_way_out_of_the_tree(tmp_path: Path, name: str) -> None:
    ports.rdma(tmp_path, "mlx5_0", shown=name)
    assert shown(tmp_path) == [("infiniband", None, "mlx5_0:1", NDR_BYTES)]


def test_names_that_no_engine_could_be_told_are_left_out_and_said(tmp_path: Path) -> None:
    ports.interface(tmp_path, "eth,0")
    ports.rdma(tmp_path, "mlx 5")
    ports.rdma(tmp_path, "mlx5_0").rename(tmp_path / "sys/class/infiniband/mlx5_0/ports/junk")
    assert probed(tmp_path)[0] == ()
    assert "left out for its name: mlx 5:1" in reason(tmp_path)
    assert "left out for its name: eth,0" in reason(tmp_path)


def test_folders_in_the_place_of_files_and_the_reverse_are_no_fault(tmp_path: Path) -> None:
    place = ports.interface(tmp_path, "eth0")
    for name in ("speed", "operstate", "phys_port_name"):
        (place / name).unlink()
        (place / name).mkdir()
    (tmp_path / "sys/class/infiniband").write_text("x")
    (tmp_path / "dev").write_text("x")
    assert probed(tmp_path)[1].outcome == "absent"


def test_a_host_of_very_many_ports_has_a_bound(tmp_path: Path) -> None:
    for place in range(MAXIMUM_PORTS + 3):
        ports.interface(tmp_path, f"eth{place}")
    found, finding = probed(tmp_path)
    assert len(found) == MAXIMUM_PORTS
    assert f"{MAXIMUM_PORTS + 3} ports are up" in (finding.reason or "")


# --- addresses, macOS -------------------------------------------------------------------------------


def test_addresses_that_others_may_call_are_kept_and_no_others() -> None:
    assert all(map(is_reachable, ("10.0.0.1", "192.0.2.1", "fd00::2", "2001:db8::1")))
    assert not any(map(is_reachable, ("127.0.0.1", "169.254.1.1", "::1", "fe80::1", "FE80::1%eth0", "fd00::1%en0")))


def test_the_addresses_of_this_machine_can_be_asked() -> None:
    for name, each in interfaces().items():
        assert name
        assert all(map(is_reachable, each.addresses))


def test_a_mac_tells_its_ports(tmp_path: Path) -> None:
    told = {
        "lo0": Interface(addresses=(), up=True, megabits_per_second=0),
        "en0": Interface(addresses=("192.0.2.4",), up=True, megabits_per_second=10_000),
        "en1": Interface(addresses=(), up=True, megabits_per_second=0),
        "en5": Interface(addresses=(), up=False, megabits_per_second=0),
        "utun3": Interface(addresses=("100.64.0.1",), up=True, megabits_per_second=0),
        "bridge0": Interface(addresses=(), up=True, megabits_per_second=0),
    }
    system = msgspec.structs.replace(mac("m3-ultra-512").system(), interfaces=lambda: told)
    found, finding = probe_network(system)
    assert [(each.interface, each.bandwidth_bytes_per_second, each.addresses) for each in found] == [
        ("en0", 1_250_000_000, ("192.0.2.4",)),
        ("en1", None, ()),
    ]
    assert finding.outcome == "found"


@pytest.mark.parametrize("write", [ports.server, ports.workstation, ports.spark, ports.virtual])
def test_what_is_probed_can_be_recorded_and_taken_back(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    report = collect(linux(tmp_path, {"eno1": Interface(addresses=("10.0.0.1", "fd00::1"))}))
    assert report.network
    assert checked_report(report) is report
    assert msgspec.json.decode(report.to_json(), type=type(report)) == report
