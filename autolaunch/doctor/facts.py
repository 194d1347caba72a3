"""What the doctor reads of a machine, and what it says of it. Unknown is ``None``; why stands in ``Facts.unknown``."""

from __future__ import annotations

from typing import Literal

import msgspec

from selector.hardware import HardwareReport
from selector.values import Value

Severity = Literal["stops", "slows", "info"]
#: A limit that is none.
UNLIMITED = 2**63 - 1


class Finding(Value, frozen=True, kw_only=True):
    """One thing to know.

    ``stops``: a launch would end in it; ``slows``: it costs time or speed, or stops some launches only; ``info``: good
    to know. ``code`` is a stable dotted name. ``why`` says why it matters. ``command`` can be typed as it stands;
    ``None`` where no one command mends it (``why`` tells what does). ``numbers`` are the figures by name and unit.
    """

    code: str
    severity: Severity
    title: str
    why: str
    command: str | None = None
    numbers: dict[str, int | float] = msgspec.field(default_factory=dict)


class Unknown(Value, frozen=True, kw_only=True):
    """What could not be read, and why."""

    what: str
    why: str


class Limit(Value, frozen=True, kw_only=True):
    """A limit of this process's (ulimit); :data:`UNLIMITED` is none."""

    soft: int
    hard: int


class Gpu(Value, frozen=True, kw_only=True):
    """What NVML tells of a GPU beside the probe's report. ``slowdowns`` are the reasons by which its clock is lower.

    ``fabric`` is how far the GPU is registered with its NVSwitches (``None``: it has none, or does not tell).
    ``compute_mode`` is NVML's number. Generations and widths are PCIe's; ``slot_generation`` is what the GPU and its
    slot can do together, ``generation`` what the GPU can do by itself.
    """

    index: int
    name: str
    ailment: str | None = None
    lost: bool = False
    persistence: bool | None = None
    slowdowns: tuple[str, ...] = ()
    compute_mode: int | None = None
    generation: int | None = None
    slot_generation: int | None = None
    width: int | None = None
    full_width: int | None = None
    links_up: int = 0
    links_down: int = 0
    fabric: Literal["not started", "in progress", "completed", "failed"] | None = None
    ecc_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None


class Nvidia(Value, frozen=True, kw_only=True):
    """NVIDIA's driver. ``code`` is NVML's, where it could not be asked; ``kernel_version`` the loaded module's."""

    version: str | None = None
    runtime: str | None = None
    kernel_version: str | None = None
    code: int | None = None
    reason: str | None = None
    gpus: tuple[Gpu, ...] = ()


class DeviceNode(Value, frozen=True, kw_only=True):
    """A device's file. ``group`` is the name of the group that owns it."""

    path: str
    usable: bool
    group: str | None = None


class Space(Value, frozen=True, kw_only=True):
    total_bytes: int
    free_bytes: int


class Folder(Value, frozen=True, kw_only=True):
    """A folder that autolaunch writes or reads. ``filesystem`` is the kernel's name of its type."""

    purpose: str
    path: str
    writable: bool | None = None
    space: Space | None = None
    filesystem: str | None = None


class Secret(Value, frozen=True, kw_only=True):
    """A file that holds a key. ``mode`` is of the permission bits."""

    purpose: str
    path: str
    mode: int
    is_ours: bool


class DiskRead(Value, frozen=True, kw_only=True):
    """A bounded read past the page cache: so many bytes a second of the disk under ``path``."""

    path: str
    bytes_per_second: float
    read_bytes: int


class Port(Value, frozen=True, kw_only=True):
    """A port that autolaunch would listen on. ``taken``: somebody does; ``ours``: it is a daemon of autolaunch."""

    port: int
    purpose: str
    taken: bool
    ours: bool = False
    pid: int | None = None
    name: str | None = None


class Holder(Value, frozen=True, kw_only=True):
    """A process that holds a device's memory. ``ours``: it carries the mark of a run of autolaunch's.

    ``attended``: who started it lives; ``None``: it is not ours.
    """

    pid: int
    device: int
    name: str | None = None
    user: str | None = None
    used_bytes: int | None = None
    ours: bool = False
    attended: bool | None = None


class Host(Value, frozen=True, kw_only=True):
    """The host around it. ``memory_total_bytes`` is its own; ``memory_limit_bytes`` what the control group allows."""

    os: str
    user: str
    container: str | None = None
    limits: dict[str, Limit] = msgspec.field(default_factory=dict)
    tasks_limit: int | None = None
    shared_memory: Space | None = None
    transparent_hugepages: str | None = None
    hugepages_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_limit_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    overcommit: int | None = None
    commit_limit_bytes: int | None = None
    committed_bytes: int | None = None
    iommu: Literal["off", "passthrough", "translating"] | None = None
    infiniband: bool = False
    clock_synchronised: bool | None = None
    clock_year: int
    python: str
    uv: str | None = None


class Wanted(Value, frozen=True, kw_only=True):
    """The plan of the model that was named. ``devices`` work together on one request; sizes are of its checkpoint.

    ``memory_bytes`` is what it takes of a device. ``local``: its weights are here already. ``advice`` is a command that
    would make it fit, where there is one.
    """

    model: str
    feasible: bool
    reason: str | None = None
    advice: str | None = None
    engine: str | None = None
    devices: int = 0
    uses_gpus: bool = False
    download_bytes: int = 0
    environment_bytes: int = 0
    installed: bool = False
    local: bool = False
    host_bytes: int = 0
    memory_bytes: int = 0
    load_seconds: float | None = None


class Facts(Value, frozen=True, kw_only=True):
    """Everything that was read."""

    report: HardwareReport
    host: Host
    nvidia: Nvidia = Nvidia()
    nodes: tuple[DeviceNode, ...] = ()
    folders: tuple[Folder, ...] = ()
    secrets: tuple[Secret, ...] = ()
    configuration_error: str | None = None
    disk: DiskRead | None = None
    ports: tuple[Port, ...] = ()
    holders: tuple[Holder, ...] = ()
    daemon_pid: int | None = None
    left_processes: tuple[int, ...] = ()
    stale_runs: tuple[str, ...] = ()
    hubs: dict[str, str | None] | None = None
    wanted: Wanted | None = None
    unknown: tuple[Unknown, ...] = ()
