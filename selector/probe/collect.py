"""Puts the answers of the probes into one report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from selector.hardware import HardwareReport
from selector.probe.amd import probe_amd
from selector.probe.apple import probe_apple
from selector.probe.host import probe_host
from selector.probe.network import probe_network
from selector.probe.nvidia import probe_nvidia
from selector.probe.system import Probed, System


def collect(
    system: System, *, cache_directory: Path | None = None, model_directory: Path | None = None
) -> HardwareReport:
    """Ask every probe about ``system``. Arguments as in :func:`selector.probe.probe`."""
    host, host_finding = probe_host(system, cache_directory=cache_directory, model_directory=model_directory)
    parts = [probe_nvidia(system, host)]
    parts.append(_numbered_after(parts[0], probe_amd(system)))
    parts.append(probe_apple(system, host))
    network, network_finding = probe_network(system)
    return HardwareReport(
        host=host,
        accelerators=tuple(device for part in parts for device in part.accelerators),
        links=tuple(link for part in parts for link in part.links),
        drivers=tuple(driver for part in parts for driver in part.drivers),
        network=network,
        findings=(*(finding for part in parts for finding in part.findings), host_finding, network_finding),
    )


def _numbered_after(first: Probed, second: Probed) -> Probed:
    """A report's indices are unique: on a machine with GPUs of two vendors the second count goes on."""
    start = max((device.index + 1 for device in first.accelerators), default=0)
    if start == 0:
        return second
    return msgspec.structs.replace(
        second,
        accelerators=tuple(
            msgspec.structs.replace(device, index=device.index + start) for device in second.accelerators
        ),
        links=tuple(
            msgspec.structs.replace(link, from_=link.from_ + start, to=link.to + start) for link in second.links
        ),
    )
