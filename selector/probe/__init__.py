"""Asks the machine what it is. :func:`probe` is the whole surface; it raises nothing of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from selector.hardware import HardwareReport


def probe(
    *,
    environment: Mapping[str, str] | None = None,
    cache_directory: Path | None = None,
    model_directory: Path | None = None,
) -> HardwareReport:
    """Look at this machine: its accelerators, the ways between them, and the host.

    What could not be asked is a :class:`~selector.hardware.Finding` with the outcome ``failed`` and a reason,
    never an exception: a machine whose driver is broken still has a report.

    Args:
        environment: where ``CUDA_VISIBLE_DEVICES`` and the like are read; the process's own where ``None``.
        cache_directory: where slow answers (the processor's, off Linux) are kept for the boot; ``None`` keeps none.
        model_directory: whose disk is measured, or its nearest existing parent; the hub's cache where ``None``.
    """
    # Reading --hardware never probes: what asks the system is loaded only here.
    from selector.probe.collect import collect
    from selector.probe.system import this_system

    return collect(this_system(environment), cache_directory=cache_directory, model_directory=model_directory)
