"""The rows that were kept of this machine (:mod:`autolaunch.daemon.rows`), as the planner takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from autolaunch.daemon.rows import Row, merged
from autolaunch.daemon.where import Where, drivers_of, main_memory_of
from selector.facts import EngineName
from selector.hardware import HardwareReport
from selector.measured import Calibration, Configuration, Measured

#: Devices of one kind, as :func:`autolaunch.daemon.where.where_of` names them.
_DEVICES = re.compile(r"(\d{1,4}) x (.{1,200}) (\d{1,18})", re.DOTALL)


def calibrations_of(rows: Iterable[Row], report: HardwareReport) -> tuple[Calibration, ...]:
    """What of the rows was measured on devices of this machine's kinds, with its drivers.

    All sources of a configuration together, the newest figure of each; what was imported stays apart. Places of
    several kinds of device, or with weights in main memory beside them, are not corrected by what was measured.
    """
    together: dict[tuple[Where, Configuration, bool], Measured] = {}
    for row in rows:
        key = (row.where, row.configuration, row.measured.source != "imported")
        together[key] = merged(row.measured, together.get(key))
    found = []
    for (where, configuration, own), measured in together.items():
        kind = _kind(where, report)
        if kind is None or where.engine not in get_args(EngineName):
            continue
        found.append(
            Calibration(
                device=kind[0],
                device_bytes=kind[1],
                engine=where.engine,  # type: ignore[arg-type]  # one of the names, as was looked
                version=where.engine_version,
                package=where.package,
                repo=where.repo,
                quantization=where.quantization,
                file_prefix=where.file_prefix,
                revision=where.revision,
                configuration=configuration,
                measured=measured,
                own=own,
            )
        )
    # By what they are of and not by when they were kept: the same memory gives the same plan.
    return tuple(sorted(found, key=repr))


def _kind(where: Where, report: HardwareReport) -> tuple[str, int] | None:
    """The name and the bytes of the place's devices, if this machine has such; of its main memory without any."""
    total = report.host.memory_total_bytes
    if where.hardware == main_memory_of(report) and total is not None and where.driver is None:
        return report.host.cpu.brand or "CPU", total
    told = _DEVICES.fullmatch(where.hardware)
    if told is None:
        return None
    name, size = told[2], int(told[3])
    vendors = {each.vendor for each in report.accelerators if (each.name, each.memory_total_bytes) == (name, size)}
    return (name, size) if vendors and where.driver == drivers_of(report, vendors) else None
