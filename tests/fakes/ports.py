"""Network ports as Linux's kernel shows them: ``/sys/class/net`` and ``/sys/class/infiniband`` below a root.

Written after what an H100 server with ConnectX-7 cards, a bonded pair and a virtual machine show.
"""

from __future__ import annotations

from pathlib import Path

NDR = "400 Gb/sec (4X NDR)"


def put(place: Path, **values: str) -> None:
    """One file a name, ended as the kernel ends them."""
    place.mkdir(parents=True, exist_ok=True)
    for name, text in values.items():
        (place / name).write_text(f"{text}\n")


def interface(
    root: Path,
    name: str,
    *,
    speed: str = "10000",
    state: str = "up",
    kind: int = 1,
    hardware: bool = True,
    port: int = 0,
) -> Path:
    """A network interface; without ``hardware`` it is virtual, as lo, docker0 and veths are."""
    place = root / "sys/class/net" / name
    put(place, type=str(kind), speed=speed, operstate=state, carrier="1", dev_port=str(port), phys_port_name="")
    if hardware:
        (place / "device").mkdir(exist_ok=True)
    return place


def rdma(
    root: Path,
    device: str,
    *interfaces: str,
    rate: str = NDR,
    layer: str = "InfiniBand",
    state: str = "4: ACTIVE",
    number: int = 1,
    shown: str | None = None,
) -> Path:
    """An RDMA device with one more port, the interfaces of its card, and the one that its GIDs name (``shown``)."""
    (root / "dev/infiniband").mkdir(parents=True, exist_ok=True)
    (root / "dev/infiniband/uverbs0").touch()
    place = root / "sys/class/infiniband" / device
    put(place, node_type="1: CA")
    for each in interfaces:
        (place / "device/net" / each).mkdir(parents=True, exist_ok=True)
    (place / "device").mkdir(exist_ok=True)
    port = place / "ports" / str(number)
    put(port, rate=rate, link_layer=layer, state=state)
    if shown is not None:
        put(port / "gid_attrs/ndevs", **{"0": shown})
    return port


def bond(root: Path, name: str, *members: str, speed: str = "50000") -> Path:
    """A bond, of interfaces that are there."""
    place = interface(root, name, speed=speed, hardware=False)
    put(place / "bonding", slaves=" ".join(members))
    for member in members:
        (place.parent / member / "master").symlink_to(f"../{name}")
    return place


def above(root: Path, lower: str, upper: str) -> None:
    """That ``upper`` (a bridge, a VLAN) stands on ``lower``."""
    place = root / "sys/class/net" / lower
    (place / f"upper_{upper}").symlink_to(f"../{upper}")


def server(root: Path) -> None:
    """A server of eight GPUs: a ConnectX-7 for each over InfiniBand, and one port of Ethernet."""
    for place in range(8):
        interface(root, f"ib{place}", kind=32, speed="400000")
        rdma(root, f"mlx5_{place}", f"ib{place}")
    interface(root, "eno1", speed="25000")
    interface(root, "lo", kind=772, speed="0", state="unknown", hardware=False)
    interface(root, "docker0", speed="10000", hardware=False)


def workstation(root: Path) -> None:
    """One port of Ethernet in use, one not."""
    interface(root, "enp5s0", speed="10000")
    interface(root, "enp6s0", speed="-1", state="down")


def spark(root: Path) -> None:
    """A DGX Spark's ConnectX-7, of whose ports one is connected, and its Ethernet."""
    interface(root, "enp1s0f0np0", speed="200000")
    interface(root, "enp1s0f1np1", speed="-1", state="down", port=1)
    rdma(root, "rocep1s0f0", "enp1s0f0np0", rate="200 Gb/sec (4X HDR)", layer="Ethernet", shown="enp1s0f0np0")
    rdma(root, "rocep1s0f1", "enp1s0f1np1", rate="40 Gb/sec (4X QDR)", layer="Ethernet", state="1: DOWN")
    interface(root, "enP7s7", speed="10000")


def virtual(root: Path) -> None:
    """A virtual machine's virtio, which tells no speed."""
    interface(root, "eth0", speed="-1")
