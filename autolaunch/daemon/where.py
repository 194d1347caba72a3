"""What is remembered is remembered of a place: devices, driver, engine and checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from selector.contract import Candidate
from selector.hardware import HardwareReport
from selector.values import Value


class Where(Value, frozen=True, kw_only=True):
    """What a failure or a measurement is of, beside the configuration. Another driver or version is another place.

    ``hardware`` names the devices that are used, with their bytes; on the host, its processor and main memory.
    """

    hardware: str
    driver: str | None
    engine: str
    engine_version: str
    package: str
    repo: str
    quantization: str
    file_prefix: str | None = None
    revision: str | None = None


def where_of(candidate: Candidate, report: HardwareReport) -> Where:
    """What is kept of ``candidate`` on this machine is kept under."""
    devices = [each for each in report.accelerators if each.index in candidate.parallel.devices]
    kinds = Counter(f"{each.name} {each.memory_total_bytes or 'unknown'}" for each in devices)
    parts = [f"{count} x {kind}" for kind, count in sorted(kinds.items())]
    if not devices or candidate.limits.cpu_expert_layers:
        parts.append(main_memory_of(report))
    return Where(
        hardware=" + ".join(parts),
        driver=drivers_of(report, {each.vendor for each in devices}),
        engine=candidate.engine.name,
        engine_version=candidate.engine.version,
        package=candidate.engine.package,
        repo=candidate.checkpoint.repo,
        quantization=candidate.checkpoint.quantization,
        file_prefix=candidate.checkpoint.file_prefix,
        revision=candidate.checkpoint.revision,
    )


def main_memory_of(report: HardwareReport) -> str:
    """The processor and the bytes of main memory, where they are what is used."""
    host = report.host
    return f"{host.cpu.brand or host.machine or 'CPU'} {host.memory_total_bytes or 'unknown'}"


def drivers_of(report: HardwareReport, vendors: Collection[str]) -> str | None:
    """The drivers of these vendors' devices, with their versions."""
    return (
        ", ".join(sorted(f"{each.vendor} {each.version}" for each in report.drivers if each.vendor in vendors)) or None
    )
