"""Builds the stub of NVIDIA's library, writes its scenarios, and asks the real probe about them.

pynvml loads its library once a process, so every scenario is asked about in a new one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from autolaunch.daemon.device_memory import Holders
from autolaunch.daemon.devices import DeviceTrouble
from selector.hardware import HardwareReport
from tests.fakes import ports

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST, VERSION_MISMATCH, UNKNOWN = 3, 4, 9, 15, 18, 999
TO_GPU, TO_SWITCH = 0, 2
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NvLink:
    """``version`` is nvmlNvlinkVersion_t, 0 a link that is down; ``speed`` in MB/s, 0 is not told."""

    version: int
    speed: int = 0
    remote: int = TO_SWITCH
    bus: str = "00000000:CC:00.0"


@dataclass(frozen=True)
class Xid:
    """An error that is told ``times`` times, once the events were waited for ``after`` times."""

    number: int
    after: int = 1
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What is ``None`` or empty is "not supported" to the stub. Memory in bytes: total, reserved, free.

    Time goes by questions about the memory: ``lost_after`` (questions, code), ``frees`` (questions, bytes free from
    then on, and no process), ``recovery`` (action, questions). ``slowdown`` is nvmlClocksEventReasons, ``fabric``
    nvmlGpuFabricState_t, ``chip_generation`` PCIe's that the GPU can (``pcie`` is the slot's).
    """

    name: bytes | None = None
    uuid: bytes | None = None
    bus: str | None = None
    memory: tuple[int, int, int] | None = None
    capability: tuple[int, int] | None = None
    architecture: int = 0
    pcie: tuple[int, int] | None = None
    links: tuple[NvLink, ...] = ()
    compute: tuple[tuple[int, int], ...] = ()
    graphics: tuple[tuple[int, int], ...] = ()
    mig: bool | None = None
    slices: tuple[Gpu, ...] = ()
    lost: int = 0
    handle_error: int = 0
    memory_error: int = 0
    has_memory_v2: bool = True
    tells_events: bool = True
    xids: tuple[Xid, ...] = ()
    lost_after: tuple[int, int] | None = None
    frees: tuple[int, int] | None = None
    recovery: tuple[int, int] | None = None
    persistence: int | None = None
    slowdown: int = 0
    compute_mode: int = 0
    chip_generation: int = 0
    fabric: int = 0
    ecc_errors: int = 0
    remapped: int = 0

    def statements(self) -> list[str]:
        lines = [
            f"text {key} {value.hex()}"
            for key, value in (("name", self.name), ("uuid", self.uuid), ("bus", (self.bus or "").encode()))
            if value
        ]
        if self.memory is not None:
            lines.append("memory {} {} {}".format(*self.memory))
        if self.capability is not None:
            lines.append("capability {} {}".format(*self.capability))
        if self.pcie is not None:
            lines.append("pcie {} {}".format(*self.pcie))
        if not self.has_memory_v2:
            lines.append("no_memory_v2")
        if self.tells_events:
            lines.append("events 8")
        lines += [f"xid {xid.number} {xid.after} {xid.times}" for xid in self.xids]
        for key in ("lost_after", "frees", "recovery"):
            if (pair := getattr(self, key)) is not None:
                lines.append("{} {} {}".format(key, *pair))
        lines += [f"compute {pid} {used}" for pid, used in self.compute]
        lines += [f"graphics {pid} {used}" for pid, used in self.graphics]
        switches = (("mig", self.mig), ("persistence", self.persistence))
        lines += [f"{key} {int(value)}" for key, value in switches if value is not None]
        told = ("slowdown", "compute_mode", "chip_generation", "fabric", "ecc_errors", "remapped")
        for key in ("architecture", "lost", "handle_error", "memory_error", *told):
            if value := getattr(self, key):
                lines.append(f"{key} {value}")
        lines += [
            f"nvlink {place} {link.version} {link.speed} {link.remote} {link.bus}"
            for place, link in enumerate(self.links)
        ]
        for part in self.slices:
            lines += ["slice", *part.statements()]
        return lines


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One machine as its driver tells it. ``numa`` is by GPU, ``process_names`` by process id.

    ``vanish``: after so many questions about memory every call answers a code, until so many initialisations failed.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: bytes = b"570.133.20"
    cuda: int = 12080
    init: int = 0
    count_error: int = 0
    numa: tuple[int, ...] = ()
    process_names: Mapping[int, str] = field(default_factory=dict)
    wait_error: int = 0
    vanish: tuple[int, int, int] | None = None

    def text(self) -> str:
        lines = [f"init {self.init}", f"count_error {self.count_error}", f"cuda {self.cuda}"]
        lines.append(f"text driver {self.driver.hex()}")
        lines.append(f"wait_error {self.wait_error}")
        if self.vanish is not None:
            lines.append("vanish {} {} {}".format(*self.vanish))
        for gpu in self.gpus:
            lines += ["gpu", *gpu.statements()]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class LinuxHost:
    """The files of a host that the probe reads, written under a root of their own. Arm's kernel names no brand.

    ``network`` is what of :mod:`tests.fakes.ports` writes its ports.
    """

    brand: str | None
    flags: str
    memory_total_kib: int
    memory_available_kib: int
    cores: int
    disk_free_bytes: int
    distribution: str = "Ubuntu 24.04.1 LTS"
    kernel: str = "6.8.0-51-generic"
    machine: str = "x86_64"
    network: Literal["server", "workstation", "spark", "virtual"]

    def write(self, root: Path, scenario: Scenario) -> None:
        processor = "" if self.brand is None else f"model name\t: {self.brand}\n"
        flags = "Features" if self.machine == "aarch64" else "flags\t"
        files = {
            "proc/cpuinfo": f"processor\t: 0\n{processor}{flags}\t: {self.flags}\n\n",
            "proc/meminfo": f"MemTotal: {self.memory_total_kib} kB\nMemAvailable: {self.memory_available_kib} kB\n",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
            "etc/os-release": f'PRETTY_NAME="{self.distribution}"\n',
        }
        for gpu, node in zip(scenario.gpus, scenario.numa, strict=False):
            address = (gpu.bus or "").lower().removeprefix("0000")
            files[f"sys/bus/pci/devices/{address}/numa_node"] = f"{node}\n"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        write: dict[str, Callable[[Path], None]] = {
            "server": ports.server,
            "workstation": ports.workstation,
            "spark": ports.spark,
            "virtual": ports.virtual,
        }
        write[self.network](root)


def build(directory: Path) -> Path:
    """Compile the stub into ``directory`` as libnvidia-ml.so.1, and give the directory."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("a C compiler is needed to build the stub of NVML")
    library = directory / "libnvidia-ml.so.1"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-stringop-truncation")
    subprocess.run([compiler, *flags, "-o", str(library), str(HERE / "nvml_stub.c")], check=True, timeout=60)
    return directory


def build_none(directory: Path) -> Path:
    """A folder whose libnvidia-ml.so.1 cannot be loaded: no driver, even on a machine that has one."""
    (directory / "libnvidia-ml.so.1").touch()
    return directory


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The report, what else the process wrote, and how often NVML was left open."""

    report: HardwareReport
    output: str
    left_open: int


def ask(
    library: Path,
    scenario: Scenario,
    directory: Path,
    *,
    host: LinuxHost | None = None,
    environment: Mapping[str, str] | None = None,
) -> Asked:
    """Drive the real probe and the real pynvml over a scenario. ``host`` ``None`` is this machine's own."""
    root = directory / "root"
    if host is not None:
        host.write(root, scenario)
    request = {
        "root": None if host is None else str(root),
        "host": None if host is None else asdict(host),
        "environment": dict(environment or {}),
        "process_names": {str(pid): name for pid, name in scenario.process_names.items()},
    }
    told, output = in_child("ask.py", library, scenario, directory, request)
    return Asked(
        report=msgspec.json.decode(json.dumps(told["report"]), type=HardwareReport),
        output=output,
        left_open=told["left_open"],
    )


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a watch told, and how it ended. ``cpu_share`` of one processor, after the last trouble that was expected."""

    troubles: tuple[DeviceTrouble, ...]
    outcome: str
    reason: str | None
    lived: bool
    lives: bool
    ended: bool
    close_seconds: float
    cpu_share: float
    left_open: int
    sets_left: int
    output: str


def watch(
    library: Path,
    scenario: Scenario,
    directory: Path,
    *,
    expected: int,
    linger_seconds: float = 0.3,
    period_seconds: float = 0.05,
    wait_seconds: float = 0.02,
    retry_seconds: float = 0.05,
) -> Watched:
    """Drive a real watch and the real pynvml over a scenario, until so many troubles were told and a little longer."""
    options = {"period_seconds": period_seconds, "wait_seconds": wait_seconds, "retry_seconds": retry_seconds}
    request = {"expected": expected, "linger_seconds": linger_seconds, "options": options}
    told, output = in_child("watch.py", library, scenario, directory, request)
    troubles = msgspec.convert(told.pop("troubles"), tuple[DeviceTrouble, ...])
    return Watched(troubles=troubles, output=output, **told)


@dataclass(frozen=True, kw_only=True)
class Waited:
    """What was free, what a wait for memory came to, and how it slept (its clock is not the machine's)."""

    free: dict[str, int]
    holders: Holders
    slept: tuple[float, ...]
    left_open: int


def wait(
    library: Path,
    scenario: Scenario,
    directory: Path,
    *,
    uuids: Iterable[str],
    process_ids: Iterable[int] = (),
    free_before: Mapping[str, int],
) -> Waited:
    """Ask for the free memory once, then wait for it, with the real pynvml over a scenario."""
    request = {"uuids": list(uuids), "process_ids": list(process_ids), "free_before": dict(free_before)}
    told, _ = in_child("wait.py", library, scenario, directory, request)
    return Waited(
        free=told["free"],
        holders=msgspec.convert(told["holders"], Holders),
        slept=tuple(told["slept"]),
        left_open=told["left_open"],
    )


def in_child(
    program: str, library: Path, scenario: Scenario, directory: Path, request: Mapping[str, object]
) -> tuple[dict[str, Any], str]:
    """Run one of the programs beside this file over a scenario. Gives what it answered, and what it printed."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "scenario.txt"
    text.write_text(scenario.text())
    answer = directory / "answer.json"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / program), json.dumps({**request, "answer": str(answer)})],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": str(library),
            "NVML_STUB_SCENARIO": str(text),
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{program} ended with {done.returncode}: {done.stderr}")
    told: dict[str, Any] = json.loads(answer.read_text())
    return told, done.stdout + done.stderr
