"""What a machine is: the HardwareReport that the probe writes and the planner reads.

The JSON form (schema 1) is a contract: ``autolaunch probe --json`` prints it and
``--hardware FILE`` takes it back. Unknown is ``None``, never 0 and never "N/A".
"""

from __future__ import annotations

from typing import Literal

import msgspec

from selector.values import Value

SCHEMA = 1

MAXIMUM_NODES = 1024
#: Of all nodes together: more would only be a slip of the finger, and the links grow with the square of a node.
MAXIMUM_DEVICES = 8192

Vendor = Literal["nvidia", "amd", "apple"]
MemoryKind = Literal["dedicated", "unified"]
LinkKind = Literal["nvlink", "nvswitch", "pcie", "infinity-fabric", "network"]
NetworkKind = Literal["infiniband", "roce", "ethernet"]
Outcome = Literal["found", "absent", "failed"]


class Cpu(Value, frozen=True, kw_only=True):
    """``cores`` are logical processors this process may use; ``features`` are the kernel's flag names."""

    brand: str | None = None
    cores: int | None = None
    features: tuple[str, ...] = ()


class Host(Value, frozen=True, kw_only=True):
    """The machine around the accelerators.

    ``memory_*`` is the smaller of the host's and the control group's limit. ``disk_free_bytes`` is at
    the place of the model cache.
    """

    os: Literal["linux", "darwin", "windows", "other"]
    os_version: str | None = None
    machine: str | None = None
    cpu: Cpu = Cpu()
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    disk_free_bytes: int | None = None


class DeviceProcess(Value, frozen=True, kw_only=True):
    """A process that holds memory of a device, as far as the driver tells."""

    pid: int
    name: str | None = None
    used_bytes: int | None = None


class Metal(Value, frozen=True, kw_only=True):
    """Apple's side of a GPU: what may be wired, by the device and by ``iogpu.wired_limit_mb`` (0 is unset)."""

    gpu_cores: int | None = None
    recommended_working_set_bytes: int | None = None
    wired_limit_bytes: int | None = None
    version: str | None = None


class Accelerator(Value, frozen=True, kw_only=True):
    """One device that an engine can be given.

    ``index`` is unique in the report and counts over all nodes; ``node`` is the host it sits in.
    ``memory_total_bytes`` is the driver's figure (NVML's), which is a little more than CUDA can allocate.
    ``mig_parent_uuid`` is set for a MIG slice: slices cannot be joined by tensor parallelism.
    """

    index: int
    uuid: str | None = None
    vendor: Vendor
    name: str
    node: int = 0
    memory_kind: MemoryKind = "dedicated"
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    architecture: str | None = None
    metal: Metal | None = None
    pci_bus_id: str | None = None
    numa_node: int | None = None
    mig_parent_uuid: str | None = None
    processes: tuple[DeviceProcess, ...] = ()


class Link(Value, frozen=True, kw_only=True):
    """A way between two devices. ``bandwidth_bytes_per_second`` is one direction."""

    from_: int = msgspec.field(name="from")
    to: int
    kind: LinkKind
    bandwidth_bytes_per_second: int | None = None


class Driver(Value, frozen=True, kw_only=True):
    """A vendor's driver: ``version`` as it says, ``runtime`` is the newest CUDA or ROCm it takes."""

    vendor: Vendor
    version: str | None = None
    runtime: str | None = None


class NetworkPort(Value, frozen=True, kw_only=True):
    """A port by which a machine reaches other machines; loopback and what is virtual are none.

    ``interface`` is the kernel's name of it, as ``NCCL_SOCKET_IFNAME`` and ``GLOO_SOCKET_IFNAME`` take it (``None``: an
    InfiniBand port without IP), ``device`` the RDMA device with its port (``mlx5_0:1``), as ``NCCL_IB_HCA`` takes it.
    ``bandwidth_bytes_per_second`` is one direction. ``addresses`` are IP addresses without scopes, IPv4 first.
    """

    kind: NetworkKind
    interface: str | None = None
    device: str | None = None
    bandwidth_bytes_per_second: int | None = None
    addresses: tuple[str, ...] = ()


class Node(Value, frozen=True, kw_only=True):
    """One machine of several. ``index`` is what :attr:`Accelerator.node` says; ``name`` is its host name.

    ``address`` is the one by which the others reach it; ``id`` is its cluster's name for it.
    """

    index: int
    name: str
    address: str | None = None
    id: str | None = None
    host: Host
    network: tuple[NetworkPort, ...] = ()


class Finding(Value, frozen=True, kw_only=True):
    """What one probe came back with. "There is none" and "it could not be asked" are different answers."""

    probe: str
    outcome: Outcome
    reason: str | None = None


class HardwareReport(Value, frozen=True, kw_only=True):
    """Everything the planner knows of a machine, or of ``nodes`` equal or unequal machines.

    Of several machines ``host`` and ``network`` are the first one's, and ``hosts`` has each of them where they were
    asked (not where a name as ``2x8xh100`` says it all). ``drivers`` are then the oldest of each vendor's.
    """

    schema: Literal[1] = 1
    host: Host
    accelerators: tuple[Accelerator, ...] = ()
    links: tuple[Link, ...] = ()
    drivers: tuple[Driver, ...] = ()
    network: tuple[NetworkPort, ...] = ()
    nodes: int = 1
    hosts: tuple[Node, ...] = ()
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> str:
        """The report as indented JSON, ending without a newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()
