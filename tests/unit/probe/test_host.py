"""The host: memory under control groups, the processor and its cache, the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from selector.hardware import Cpu
from selector.probe.host import hub_cache, probe_host
from selector.probe.processor import probe_processor
from selector.probe.system import Completed, System, disk_free, run, this_system
from tests.fakes.macs import mac

GIB = 1 << 30


def linux(root: Path, total_gib: int = 64, available_gib: int = 60) -> System:
    """A Linux machine whose kernel files are below ``root``."""
    write(root, "proc/meminfo", f"MemTotal: {total_gib << 20} kB\nMemAvailable: {available_gib << 20} kB\n")
    system: System = msgspec.structs.replace(this_system({}), root=root, platform="linux", kernel="6.8.0")
    return system


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def memory(system: System) -> tuple[int | None, int | None]:
    host, _ = probe_host(system)
    return host.memory_total_bytes, host.memory_available_bytes


# --- memory -----------------------------------------------------------------------------------------


def test_without_a_limit_memory_is_the_hosts(tmp_path: Path) -> None:
    assert memory(linux(tmp_path)) == (64 * GIB, 60 * GIB)


def test_a_group_of_version_two_limits_memory(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/self/cgroup", "0::/batch/job\n")
    write(tmp_path, "sys/fs/cgroup/batch/job/memory.max", f"{16 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/batch/job/memory.current", f"{5 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/batch/job/memory.stat", f"anon 7\ninactive_file {2 * GIB}\n")
    assert memory(system) == (16 * GIB, 13 * GIB)


def test_the_tightest_parent_counts(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/self/cgroup", "0::/a/b/c\n")
    write(tmp_path, "sys/fs/cgroup/a/b/c/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.max", f"{32 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.current", f"{30 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.max", f"{24 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.current", f"{1 * GIB}\n")
    assert memory(system) == (24 * GIB, 2 * GIB)


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/self/cgroup", "0::/../../system.slice\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{8 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "0\n")
    assert memory(system) == (8 * GIB, 8 * GIB)


def test_a_group_of_version_one_limits_memory_even_under_a_name_of_the_host(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/0123\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{4 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.stat", f"inactive_file 9\ntotal_inactive_file {1 * GIB}\n")
    assert memory(system) == (4 * GIB, 2 * GIB)


@pytest.mark.parametrize("limit", ["9223372036854771712", "max", "", "junk", "-1"])
def test_what_is_no_limit_limits_nothing(tmp_path: Path, limit: str) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", limit)
    write(tmp_path, "sys/fs/cgroup/memory.max", limit)
    assert memory(system) == (64 * GIB, 60 * GIB)


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "1000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "5000\n")
    assert memory(system) == (1000, 0)


def test_unknown_memory_is_a_failure(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "proc/meminfo", "MemTotal: lots\n")
    host, finding = probe_host(system)
    assert (host.memory_total_bytes, finding.outcome) == (None, "failed")


# --- names ------------------------------------------------------------------------------------------


def test_the_distribution_and_the_kernel_are_named(tmp_path: Path) -> None:
    system = linux(tmp_path)
    write(tmp_path, "etc/os-release", 'NAME=x\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    assert probe_host(system)[0].os_version == "Ubuntu 24.04.1 LTS, Linux 6.8.0"


def test_only_the_first_processors_block_is_read(tmp_path: Path) -> None:
    block = "processor\t: 0\nmodel name\t: Brand\x1b[2J\nflags\t\t: fma avx2\n\n"
    write(tmp_path, "proc/cpuinfo", block + block.replace("Brand", "Other"))
    cpu = probe_processor(linux(tmp_path), None)
    assert (cpu.brand, cpu.features) == ("Brand [2J", ("fma", "avx2"))
    assert cpu.cores is not None
    assert cpu.cores >= 1


def test_an_arm_processor_is_named_by_its_board(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: asimd sve\n")
    write(tmp_path, "sys/firmware/devicetree/base/model", "NVIDIA Jetson AGX Thor\0")
    cpu = probe_processor(linux(tmp_path), None)
    assert (cpu.brand, cpu.features) == ("NVIDIA Jetson AGX Thor", ("asimd", "sve"))


# --- the slow answer is kept ------------------------------------------------------------------------


class Counting:
    """A Mac whose commands are counted."""

    def __init__(self, boot: str = "boot-1") -> None:
        machine = mac("m3-ultra-512")
        self._mac = msgspec.structs.replace(machine, sysctl={**machine.sysctl, "kern.bootsessionuuid": boot})
        self.asked: list[str] = []

    def run(self, argv: tuple[str, ...]) -> Completed:
        self.asked.append(argv[2] if argv[0] == sys.executable else argv[0])
        return self._mac.run(argv)

    def probe(self, cache: Path | None) -> Cpu:
        return probe_processor(msgspec.structs.replace(self._mac.system(), run=self.run), cache)


def test_the_processor_is_asked_once_a_boot(tmp_path: Path) -> None:
    cache = tmp_path / "not/yet"
    assert Counting().probe(cache).brand == "Apple M3 Ultra"
    second = Counting()
    assert second.probe(cache).brand == "Apple M3 Ultra"
    assert "cpuinfo" not in second.asked
    third = Counting(boot="boot-2")
    third.probe(cache)
    assert "cpuinfo" in third.asked
    assert [path.name for path in cache.iterdir()] == ["processor.json"]


@pytest.mark.parametrize("content", ["", "{", '{"schema":1,"boot":"boot-1","cpu":{"cores":"many"}}', "\0" * 100])
def test_a_corrupt_cache_is_asked_anew_and_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "processor.json").write_text(content)
    assert Counting().probe(tmp_path).brand == "Apple M3 Ultra"
    assert "Apple M3 Ultra" in (tmp_path / "processor.json").read_text()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Counting().probe(tmp_path / "file" / "below").brand == "Apple M3 Ultra"
    assert Counting().probe(None).brand == "Apple M3 Ultra"


# --- disk and commands ------------------------------------------------------------------------------


def test_the_disk_is_measured_at_the_nearest_existing_parent(tmp_path: Path) -> None:
    free = disk_free(tmp_path / "not" / "there" / "yet")
    there = os.statvfs(tmp_path)
    assert free is not None
    assert abs(free - there.f_bavail * there.f_frsize) < GIB
    assert disk_free(Path("a\0b")) is None


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HOME": "/h", "HF_HOME": "/f"}, "/f/hub"),
        ({"HF_HOME": "/f", "HF_HUB_CACHE": "/c"}, "/c"),
    ],
)
def test_the_hubs_cache_is_found_by_the_hubs_rule(environment: dict[str, str], place: str) -> None:
    assert hub_cache(environment) == Path(place)


def test_a_commands_output_comes_back() -> None:
    assert run((sys.executable, "-c", "print('yes')")) == Completed("yes\n", None)


def test_a_command_that_fails_says_so_and_keeps_its_output() -> None:
    answer = run((sys.executable, "-c", "print('half'); raise SystemExit(3)"))
    assert answer.output == "half\n"
    assert "exited with 3" in (answer.failure or "")


def test_a_missing_command_is_a_failure() -> None:
    assert "could not be run" in (run(("/no/such/command",)).failure or "")


def test_a_flood_is_cut() -> None:
    answer = run((sys.executable, "-c", "while True: print('x' * 65536)"))
    assert "wrote more than" in (answer.failure or "")
    assert len(answer.output) < 1 << 21


def test_a_command_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selector.probe.system.COMMAND_SECONDS", 0.05)
    answer = run((sys.executable, "-c", "import signal; signal.pause()"))
    assert "did not answer" in (answer.failure or "")
