"""The probe on the machine that runs the tests, whatever it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from selector.hardware import HardwareReport
from selector.probe import probe


def test_this_machine_is_told_without_a_word_or_a_warning(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = probe(environment={}, cache_directory=tmp_path, model_directory=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert {finding.probe for finding in report.findings} == {"nvidia", "amd", "apple", "host", "network"}
    host = report.host
    assert host.os in ("linux", "darwin")
    assert host.cpu.cores is not None
    assert host.memory_total_bytes is not None
    assert 0 < host.memory_total_bytes <= psutil.virtual_memory().total
    assert host.memory_available_bytes is not None
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes
    assert host.disk_free_bytes is not None
    assert msgspec.json.decode(report.to_json(), type=HardwareReport) == report


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel's list is Linux's")
def test_the_processor_of_this_machine_is_told(tmp_path: Path) -> None:
    cpu = probe(environment={}, model_directory=tmp_path).host.cpu
    assert cpu.features
    if "model name" in Path("/proc/cpuinfo").read_text():
        assert cpu.brand


def test_the_surface_loads_nothing_that_asks_the_system() -> None:
    heavy = "{'ctypes', 'psutil', 'pynvml', 'subprocess'}"
    script = f"import sys, selector.probe; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processor is asked of another process")
def test_a_host_without_a_gpu_is_probed_without_the_slow_parts(tmp_path: Path) -> None:
    script = (
        "import sys; from selector.probe import probe; report = probe(environment={});"
        "gpu = any(f.outcome != 'absent' for f in report.findings if f.probe in ('nvidia', 'amd'));"
        "print(gpu or not {'psutil', 'pynvml', 'cpuinfo', 'socket', 'subprocess'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "True"
