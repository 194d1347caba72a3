"""Every check of the doctor over facts that are made up: that it fires, and that it spares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from autolaunch.doctor import checks_gpu, checks_host, checks_place
from autolaunch.doctor.facts import (
    UNLIMITED,
    DeviceNode,
    DiskRead,
    Facts,
    Finding,
    Folder,
    Gpu,
    Holder,
    Host,
    Limit,
    Nvidia,
    Port,
    Secret,
    Space,
    Wanted,
)
from autolaunch.doctor.floors import Floors, floors
from autolaunch.doctor.judge import CHECKS, exit_code, judged
from selector.hardware import Accelerator, HardwareReport, Metal
from selector.hardware import Finding as Probed
from selector.hardware import Host as ProbedHost

GIB = 1024**3
FLOORS = floors()
PLENTY = Limit(soft=1 << 20, hard=1 << 20)


def device(index: int, **changes: Any) -> Accelerator:
    values: dict[str, Any] = {"index": index, "vendor": "nvidia", "name": "NVIDIA Test 80GB"}
    return Accelerator(**{**values, **changes})


def report(*devices: Accelerator, failed: str | None = None) -> HardwareReport:
    outcome: Any = "failed" if failed else "found" if devices else "absent"
    return HardwareReport(
        host=ProbedHost(os="linux"),
        accelerators=devices,
        findings=(Probed(probe="nvidia", outcome=outcome, reason=failed),),
    )


TWO = report(device(0), device(1))
GPUS = (
    Gpu(index=0, name="NVIDIA Test 80GB", persistence=True, links_up=18, fabric="completed", width=16, full_width=16),
    Gpu(index=1, name="NVIDIA Test 80GB", persistence=True, links_up=18, fabric="completed", width=16, full_width=16),
)
HOST = Host(
    os="linux",
    user="ada",
    limits={"nofile": PLENTY, "nproc": PLENTY, "memlock": Limit(soft=UNLIMITED, hard=UNLIMITED)},
    shared_memory=Space(total_bytes=64 * GIB, free_bytes=64 * GIB),
    transparent_hugepages="madvise",
    hugepages_bytes=0,
    memory_total_bytes=512 * GIB,
    memory_limit_bytes=512 * GIB,
    swap_total_bytes=8 * GIB,
    swap_used_bytes=0,
    overcommit=0,
    iommu="passthrough",
    clock_synchronised=True,
    clock_year=2027,
    python="3.12.0",
    uv="/usr/bin/uv",
)
WEIGHTS = Folder(
    purpose="weights",
    path="/data/hub",
    writable=True,
    space=Space(total_bytes=4000 * GIB, free_bytes=2000 * GIB),
    filesystem="ext4",
)
ENVIRONMENTS = Folder(
    purpose="environments", path="/home/ada/engines", writable=True, space=Space(total_bytes=GIB, free_bytes=GIB)
)
WANTED = Wanted(
    model="glm-4.6",
    feasible=True,
    devices=2,
    uses_gpus=True,
    download_bytes=361_000_000_000,
    environment_bytes=9_000_000_000,
    installed=True,
    memory_bytes=70 * GIB,
    load_seconds=120.0,
)
#: A host on which nothing is wrong.
WELL = Facts(
    report=TWO,
    host=HOST,
    nvidia=Nvidia(version="580.95.05", kernel_version="580.95.05", gpus=GPUS),
    nodes=(DeviceNode(path="/dev/nvidia0", usable=True, group="root"),),
    folders=(WEIGHTS, ENVIRONMENTS),
    disk=DiskRead(path="/data/hub/x", bytes_per_second=5e9, read_bytes=GIB),
    ports=(Port(port=8000, purpose="of a launch", taken=False),),
    wanted=WANTED,
)


def but(facts: Facts = WELL, **changes: Any) -> Facts:
    """``facts`` with other values; ``host=dict(...)`` and the like change single fields of a part."""
    parts = {
        name: msgspec.structs.replace(getattr(facts, name), **value)
        if isinstance(value, dict) and name != "hubs"
        else value
        for name, value in changes.items()
    }
    return msgspec.structs.replace(facts, **parts)


def gpu(**changes: Any) -> Facts:
    return but(nvidia={"gpus": (msgspec.structs.replace(GPUS[0], **changes), GPUS[1])})


def found(check: Any, facts: Facts, against: Floors = FLOORS) -> list[Finding]:
    return list(check(facts, against))


def only(check: Any, facts: Facts) -> Finding:
    (finding,) = found(check, facts)
    return finding


def test_a_host_on_which_nothing_is_wrong_has_only_the_disks_speed_to_tell() -> None:
    findings = judged(WELL, FLOORS)
    assert [(each.code, each.severity) for each in findings] == [("disk.speed", "info")]
    assert exit_code(findings) == 0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_passes_over_what_is_unknown(check: Any) -> None:
    nothing = Facts(
        report=HardwareReport(host=ProbedHost(os="other")),
        host=Host(os="other", user="ada", clock_year=2027, python="3.12.0", uv="uv"),
    )
    assert found(check, nothing) == []


Fires = Iterator[tuple[Any, Facts, str, str, int]]


def fires() -> Fires:
    """A check, facts in which something is wrong, the finding's code and severity, and the exit code of a launch."""
    yield from of_gpus()
    yield from of_hosts()
    yield from of_places()


def of_gpus() -> Fires:
    gpus = checks_gpu
    no_driver = but(report=report(failed="Driver Not Loaded"), nvidia=Nvidia(code=9, reason="Driver Not Loaded"))
    yield gpus.driver, no_driver, "driver.nvidia", "stops", 4
    yield gpus.driver, but(nvidia={"kernel_version": "575.1"}), "driver.mismatch", "stops", 4
    old = but(nvidia={"version": "470.1", "kernel_version": "470.1"})
    yield gpus.driver, old, "driver.old", "stops", 4
    yield gpus.driver, but(nvidia={"version": "570.1", "kernel_version": "570.1"}), "driver.wheel", "info", 0
    barred = but(nodes=(DeviceNode(path="/dev/kfd", usable=False, group="render"),))
    yield gpus.device_nodes, barred, "devices.permission", "stops", 5
    yield gpus.health, gpu(ailment="GPU is lost", lost=True), "gpu.lost", "slows", 0
    yield gpus.health, gpu(ailment="the driver asks for a reset", lost=False), "gpu.ailing", "slows", 0
    yield gpus.health, gpu(ecc_uncorrected=3), "gpu.ecc", "slows", 0
    yield gpus.health, gpu(remap_pending=True), "gpu.ecc", "slows", 0
    yield gpus.health, gpu(remap_failed=True), "gpu.memory", "slows", 0
    yield gpus.health, gpu(compute_mode=2), "gpu.compute_mode", "stops", 5
    yield gpus.health, gpu(compute_mode=3), "gpu.compute_mode", "info", 0
    yield gpus.clocks, gpu(slowdowns=("for heat",)), "gpu.slowdown", "slows", 0
    yield gpus.clocks, gpu(persistence=False), "gpu.persistence", "slows", 0
    yield gpus.links, gpu(fabric="in progress"), "gpu.fabric", "stops", 5
    yield gpus.links, gpu(links_up=16, links_down=2), "gpu.nvlink", "slows", 0
    yield gpus.links, gpu(width=4), "gpu.pcie", "slows", 0
    yield gpus.links, gpu(generation=5, slot_generation=3), "gpu.pcie", "slows", 0
    bare = tuple(msgspec.structs.replace(each, links_up=0) for each in GPUS)
    yield gpus.links, but(nvidia={"gpus": bare}, host={"iommu": "translating"}), "host.iommu", "slows", 0
    yield gpus.holders, but(holders=(Holder(pid=7, device=0, name="python"),)), "gpu.held", "slows", 0
    left = Holder(pid=7, device=0, ours=True, attended=False)
    yield gpus.holders, but(holders=(left,)), "gpu.left", "slows", 0


def of_hosts() -> Fires:
    host = checks_host
    cgroup = {"memory_limit_bytes": 64 * GIB}
    small = Space(total_bytes=64 << 20, free_bytes=64 << 20)
    yield host.shared_memory, but(host={"shared_memory": small}), "memory.shared", "stops", 5
    middling = Space(total_bytes=2 * GIB, free_bytes=2 * GIB)
    yield host.shared_memory, but(host={"shared_memory": middling}), "memory.shared", "slows", 0
    few = {**HOST.limits, "nofile": Limit(soft=1024, hard=1024)}
    yield host.limits, but(host={"limits": few}), "limit.nofile", "stops", 5
    some = {**HOST.limits, "nofile": Limit(soft=1024, hard=20_000)}
    yield host.limits, but(host={"limits": some}), "limit.nofile", "slows", 0
    threads = {**HOST.limits, "nproc": Limit(soft=1024, hard=UNLIMITED)}
    yield host.limits, but(host={"limits": threads}), "limit.nproc", "stops", 5
    locked = {**HOST.limits, "memlock": Limit(soft=65_536, hard=65_536)}
    yield host.limits, but(host={"limits": locked, "infiniband": True}), "limit.memlock", "slows", 0
    yield host.limits, but(host={"tasks_limit": 512}), "limit.tasks", "stops", 5
    yield host.memory, but(host=cgroup), "memory.cgroup", "info", 0
    yield host.memory, but(host={"hugepages_bytes": 400 * GIB}), "memory.hugepages", "slows", 0
    yield host.memory, but(report=report(), host={"transparent_hugepages": "never"}), "memory.thp", "slows", 0
    yield host.memory, but(host={"swap_used_bytes": 100 * GIB}), "memory.swap", "slows", 0
    strict = {"overcommit": 2, "commit_limit_bytes": 10 * GIB, "committed_bytes": 9 * GIB}
    yield host.memory, but(host=strict), "memory.overcommit", "slows", 0
    yield host.memory, but(host=strict, wanted={"host_bytes": 2 * GIB}), "memory.overcommit", "stops", 5
    yield host.clock, but(host={"clock_synchronised": False}), "host.clock", "slows", 0
    yield host.clock, but(host={"clock_year": 1970}), "host.clock", "stops", 5
    yield host.tools, but(host={"uv": None}, wanted=None), "tools.uv", "stops", 5
    yield host.tools, but(host={"uv": None}), "tools.uv", "slows", 0
    yield host.container, but(report=report(), host={"container": "docker"}), "host.container", "info", 0
    yield host.apple, mac(wired=96, needs=110), "apple.wired", "stops", 3
    yield host.apple, mac(wired=127, needs=110), "apple.wired", "slows", 0


def of_places() -> Fires:
    place = checks_place
    closed = msgspec.structs.replace(WEIGHTS, writable=False)
    yield place.folders, but(folders=(closed,)), "folder.permission", "stops", 5
    full = msgspec.structs.replace(WEIGHTS, space=Space(total_bytes=GIB, free_bytes=GIB))
    yield place.room, but(folders=(full,)), "disk.room", "stops", 6
    yield place.room, but(wanted={"local": True, "installed": False}), "disk.room", "stops", 6
    distant = msgspec.structs.replace(WEIGHTS, filesystem="nfs4")
    yield place.disk, but(folders=(distant,), disk=None), "disk.network", "slows", 0
    slow = DiskRead(path="/data/hub/x", bytes_per_second=2e8, read_bytes=GIB)
    yield place.disk, but(disk=slow), "disk.speed", "slows", 0
    taken = Port(port=8000, purpose="of a launch", taken=True, pid=4711, name="nginx")
    yield place.ports, but(ports=(taken,)), "port.taken", "stops", 5
    token = Secret(purpose="the hub's token", path="/home/ada/token", mode=0o644, is_ours=True)
    yield place.secrets, but(secrets=(token,)), "secret.mode", "slows", 0
    yield place.configuration, but(configuration_error="a.toml: x: is no port"), "configuration", "stops", 78
    yield place.left, but(left_processes=(4711,)), "run.left", "slows", 0
    yield place.left, but(stale_runs=("/home/ada/run/1",)), "run.folders", "info", 0
    mute: dict[str, str | None] = {"Hugging Face": "no route"}
    yield place.hubs, but(hubs=mute), "hub.silent", "stops", 6
    yield place.hubs, but(hubs={**mute, "ModelScope": None}), "hub.silent", "slows", 0
    yield place.plan, but(wanted={"feasible": False}), "plan.fits", "stops", 3


def mac(*, wired: int, needs: int) -> Facts:
    """A Mac of 128 GiB whose GPUs may wire so many GiB, and a model that takes so many."""
    metal = Metal(wired_limit_bytes=0, recommended_working_set_bytes=wired * GIB)
    total = 128 * GIB
    one = device(0, vendor="apple", name="Apple M4 Max", memory_kind="unified", metal=metal, memory_total_bytes=total)
    return but(report=report(one), host={"os": "darwin"}, wanted={"memory_bytes": needs * GIB})


@pytest.mark.parametrize(("check", "facts", "code", "severity", "exits"), tuple(fires()))
def test_what_is_wrong_is_found_and_stops_a_launch_as_the_launch_would_end(
    check: Any, facts: Facts, code: str, severity: str, exits: int
) -> None:
    finding = only(check, facts)
    assert (finding.code, finding.severity) == (code, severity)
    assert exit_code((finding,)) == exits
    assert finding.title
    assert finding.why
    assert finding.command is None or "\n" not in finding.command


def test_every_check_has_been_seen_to_fire() -> None:
    assert {check for check, *_ in fires()} == set(CHECKS)


@pytest.mark.parametrize(
    ("check", "facts"),
    [
        (
            checks_host.shared_memory,
            but(host={"shared_memory": Space(total_bytes=1, free_bytes=1)}, wanted={"devices": 1}),
        ),
        (checks_host.limits, but(host={"limits": {**HOST.limits, "memlock": Limit(soft=1, hard=1)}})),
        (checks_host.limits, but(host={"limits": {**HOST.limits, "nofile": Limit(soft=1024, hard=UNLIMITED)}})),
        (checks_host.memory, but(host={"transparent_hugepages": "never"})),
        (checks_host.memory, but(host={"overcommit": 1, "commit_limit_bytes": 1, "committed_bytes": 9})),
        (checks_host.container, but(host={"container": "docker"})),
        (checks_host.container, but(report=report(failed="no permission"), host={"container": "docker"})),
        (checks_host.apple, mac(wired=96, needs=90)),
        (checks_place.room, but(wanted={"local": True})),
        (checks_place.ports, but(ports=(Port(port=8000, purpose="of a launch", taken=True, ours=True, pid=1),))),
        (
            checks_place.secrets,
            but(secrets=(Secret(purpose="keys of clients", path="/etc/x", mode=0o640, is_ours=False),)),
        ),
        (checks_place.hubs, but(hubs={"Hugging Face": None})),
        (checks_gpu.links, gpu(links_up=0, links_down=12)),
        (checks_gpu.links, but(host={"iommu": "translating"})),
        (checks_gpu.holders, but(holders=(Holder(pid=7, device=0, ours=True, attended=True),))),
        (checks_gpu.driver, but(report=TWO, nvidia={"kernel_version": None})),
    ],
)
def test_what_is_right_or_does_not_matter_here_is_spared(check: Any, facts: Facts) -> None:
    assert found(check, facts) == []


def test_the_first_that_stops_a_launch_gives_the_exit_code() -> None:
    facts = but(
        report=report(failed="no permission"),
        nvidia=Nvidia(),
        wanted={"feasible": False, "installed": False},
        host={"uv": None},
    )
    findings = judged(facts, FLOORS)
    assert [each.code for each in findings if each.severity == "stops"] == ["driver.nvidia", "plan.fits", "tools.uv"]
    assert exit_code(findings) == 4


def test_the_wired_limit_is_computed_for_the_model() -> None:
    assert only(checks_host.apple, mac(wired=96, needs=110)).command == "sudo sysctl iogpu.wired_limit_mb=112640"
    assert only(checks_host.apple, mac(wired=96, needs=126)).command is None


def test_a_command_quotes_what_it_names() -> None:
    closed = Folder(purpose="weights", path="/data/my hub; rm -rf x", writable=False)
    assert only(checks_place.folders, but(folders=(closed,))).command == "sudo chown -R ada '/data/my hub; rm -rf x'"


def test_weights_and_environments_on_one_disk_need_room_for_both() -> None:
    space = Space(total_bytes=400_000_000_000, free_bytes=365_000_000_000)
    one_disk = tuple(msgspec.structs.replace(each, space=space) for each in (WEIGHTS, ENVIRONMENTS))
    assert found(checks_place.room, but(folders=one_disk)) == []
    finding = only(checks_place.room, but(folders=one_disk, wanted={"installed": False}))
    assert finding.numbers == {"needed_bytes": 370_000_000_000, "free_bytes": 365_000_000_000}


def test_a_disk_is_told_by_the_time_that_the_model_takes_from_it() -> None:
    slow = DiskRead(path="/data/hub/x", bytes_per_second=2e8, read_bytes=GIB)
    assert only(checks_place.disk, but(disk=slow)).title == "361 GB would take 30 min from this disk (0.20 GB/s)"


def test_in_a_container_the_option_of_the_container_is_named() -> None:
    small = Space(total_bytes=64 << 20, free_bytes=64 << 20)
    finding = only(checks_host.shared_memory, but(host={"shared_memory": small, "container": "docker"}))
    assert "--shm-size=8g" in finding.why
    assert finding.command is None


def test_a_process_on_several_gpus_is_told_once() -> None:
    both = (Holder(pid=7, device=0, used_bytes=GIB), Holder(pid=7, device=1, used_bytes=GIB))
    assert only(checks_gpu.holders, but(holders=both)).title == "a process (7) holds GPU 0, 1, 2.0 GiB"
