"""What the doctor reads, from made-up files of a host and from this machine for real."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from autolaunch.doctor import read_disk, read_host, read_nvidia, read_places
from autolaunch.doctor.examine import examine
from autolaunch.doctor.facts import Space
from selector.hardware import Accelerator, DeviceProcess, HardwareReport
from selector.hardware import Host as ProbedHost
from selector.probe.system import System, this_system


def written(root: Path, files: dict[str, str]) -> System:
    """A Linux machine of these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return msgspec.structs.replace(this_system({}), root=root, platform="linux")


def report(*devices: Accelerator) -> HardwareReport:
    return HardwareReport(host=ProbedHost(os="linux", memory_total_bytes=32 << 30), accelerators=devices)


FILES = {
    "proc/meminfo": "MemTotal: 67108864 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\nHugetlb: 2048 kB\n"
    "CommitLimit: 9000 kB\nCommitted_AS: 8000 kB\n",
    "proc/sys/vm/overcommit_memory": "2\n",
    "proc/self/cgroup": "0::/pod/one\n",
    "sys/fs/cgroup/pod/one/pids.max": "max\n",
    "sys/fs/cgroup/pod/pids.max": "4096\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
    "sys/class/infiniband/mlx5_0/node_type": "1\n",
    "sys/bus/pci/devices/0000:19:00.0/iommu_group/type": "DMA-FQ\n",
    ".dockerenv": "",
}


def test_a_host_is_read_from_its_files(tmp_path: Path) -> None:
    gpu = Accelerator(index=0, vendor="nvidia", name="x", pci_bus_id="0000:19:00.0")
    host, _ = read_host.read_host(written(tmp_path, FILES), report(gpu))
    assert (host.memory_total_bytes, host.memory_limit_bytes) == (64 << 30, 32 << 30)
    assert (host.swap_used_bytes, host.hugepages_bytes) == (600 << 10, 2 << 20)
    assert (host.overcommit, host.commit_limit_bytes, host.committed_bytes) == (2, 9000 << 10, 8000 << 10)
    assert (host.tasks_limit, host.transparent_hugepages) == (4096, "never")
    assert (host.container, host.iommu, host.infiniband) == ("docker", "translating", True)


def test_what_a_host_does_not_tell_is_named(tmp_path: Path) -> None:
    host, unknown = read_host.read_host(written(tmp_path, {}), report())
    assert (host.shared_memory, host.tasks_limit, host.container, host.iommu) == (None, None, None, None)
    assert unknown[0].what == "shared memory"


@pytest.mark.parametrize(
    ("files", "environment", "named"),
    [
        ({"run/.containerenv": ""}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"run/systemd/container": "lxc\n"}, {}, "lxc"),
        ({}, {}, None),
    ],
)
def test_a_container_is_told_from_a_host(
    tmp_path: Path, files: dict[str, str], environment: dict[str, str], named: str | None
) -> None:
    system = msgspec.structs.replace(written(tmp_path, files), environment=environment)
    assert read_host.read_host(system, report())[0].container == named


def test_the_kernel_module_tells_its_version_without_nvml(tmp_path: Path) -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24 07:25:25 UTC 2025\n"
    system = written(tmp_path, {"proc/driver/nvidia/version": line})
    assert read_nvidia.read_nvidia(system).kernel_version == "575.57.08"


def test_the_open_kernel_module_tells_its_version_too(tmp_path: Path) -> None:
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build  (dvs)\n"
    system = written(tmp_path, {"proc/driver/nvidia/version": line})
    assert read_nvidia.read_nvidia(system).kernel_version == "570.133.20"


def test_a_folder_is_known_by_its_nearest_parent_and_the_longest_mount(tmp_path: Path) -> None:
    mounts = (("/", "overlay"), (str(tmp_path), "nfs4"), (f"{tmp_path}-other", "ext4"))
    weights, environments, _ = read_places.read_folders(tmp_path / "home", tmp_path / "a/b/hub", mounts)
    assert (weights.path, weights.filesystem, weights.writable) == (str(tmp_path), "nfs4", True)
    assert environments.path == str(tmp_path)
    assert weights.space is not None


def test_mounts_are_read_with_spaces_in_their_names(tmp_path: Path) -> None:
    written(tmp_path, {"proc/self/mounts": "/dev/sda1 / ext4 rw 0 0\nhost:/x /mnt/my\\040data nfs rw 0 0\njunk\n"})
    assert read_places.read_mounts("linux", tmp_path) == (("/", "ext4"), ("/mnt/my data", "nfs"))


def test_files_of_secrets_are_told_by_their_mode_and_never_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_sentinel")
    (tmp_path / "token").chmod(0o644)
    (secret,) = read_places.read_secrets({}, tmp_path / "missing", tmp_path)
    assert (secret.mode, secret.is_ours, secret.purpose) == (0o644, True, "the hub's token")
    assert "hf_sentinel" not in repr(secret)


def test_the_folder_of_a_run_that_nobody_holds_is_stale(tmp_path: Path) -> None:
    import fcntl

    held = tmp_path / "run/1-a/.lock"
    for path in (held, tmp_path / "run/2-b/.lock"):
        path.parent.mkdir(parents=True)
        path.touch()
    with held.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_places.stale_runs(tmp_path) == (str(tmp_path / "run/2-b"),)


def test_a_state_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon/state.json").write_text("{")
    assert read_places.left_processes(tmp_path) == ()
    assert [path.name for path in (tmp_path / "daemon").iterdir()] == ["state.json"]


def test_the_holder_of_a_device_is_named_with_its_user() -> None:
    device = Accelerator(
        index=0,
        vendor="nvidia",
        name="x",
        processes=(DeviceProcess(pid=os.getpid(), used_bytes=5), DeviceProcess(pid=1 << 30)),
    )
    mine, gone = read_places.read_holders(report(device))
    assert mine.user is not None
    assert (mine.ours, mine.used_bytes, gone.user, gone.attended) == (False, 5, None, None)


# --- the disk ---------------------------------------------------------------------------------------


def test_the_largest_weights_are_found_and_links_of_folders_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_disk, "LEAST_BYTES", 10)
    (tmp_path / "hub/snapshots").mkdir(parents=True)
    (tmp_path / "hub/loop").symlink_to(tmp_path / "hub", target_is_directory=True)
    (tmp_path / "hub/blob").write_bytes(bytes(50))
    (tmp_path / "hub/snapshots/a.safetensors").symlink_to(tmp_path / "hub/blob")
    (tmp_path / "hub/notes.txt").write_bytes(bytes(500))
    (tmp_path / "hub/b.gguf").write_bytes(bytes(20))
    assert read_disk.largest_weights(tmp_path) == tmp_path / "hub/snapshots/a.safetensors"
    (tmp_path / "hub/snapshots/a.safetensors").unlink()
    (tmp_path / "hub/b.gguf").write_bytes(bytes(5))
    assert read_disk.largest_weights(tmp_path) is None
    assert read_disk.largest_weights(tmp_path / "nowhere") is None


def test_a_read_of_the_disk_is_bounded_in_bytes_and_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(24 << 20))
    whole = read_disk.read_disk(path, most_bytes=1 << 30, seconds=60.0)
    some = read_disk.read_disk(path, most_bytes=8 << 20, seconds=60.0)
    assert whole is not None
    assert some is not None
    assert (whole.read_bytes, some.read_bytes) == (24 << 20, 8 << 20)
    ticks = iter([0.0, 0.5, 1.5, 1.5, 99.0])
    timed = read_disk.read_disk(path, most_bytes=1 << 30, seconds=1.0, clock=lambda: next(ticks))
    assert timed is not None
    assert timed.read_bytes == 8 << 20
    assert timed.bytes_per_second == pytest.approx((8 << 20) / 1.5)


def test_a_disk_that_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    assert read_disk.read_disk(tmp_path / "missing", most_bytes=1, seconds=1.0) is None
    (tmp_path / "empty").touch()
    assert read_disk.read_disk(tmp_path / "empty", most_bytes=1, seconds=1.0) is None


# --- this machine -----------------------------------------------------------------------------------


def test_this_machine_is_examined_without_writing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", _refused)  # unit tests have no network
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path / "home"))
    found = examine("glm-tiny")
    assert found.model == "glm-tiny"
    assert found.healthy == (found.exit_code == 0)
    assert not any(each.code.startswith("disk.room") for each in found.findings)
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}
    assert all(each.why for each in found.findings)
    assert all(each.why for each in found.unknown)


def _refused(*arguments: object, **settings: object) -> socket.socket:
    raise ConnectionRefusedError


def test_the_space_of_a_file_system_is_told(tmp_path: Path) -> None:
    space = read_host.space_of(tmp_path)
    assert isinstance(space, Space)
    assert space.total_bytes >= space.free_bytes > 0
    assert read_host.space_of(tmp_path / "missing") is None
