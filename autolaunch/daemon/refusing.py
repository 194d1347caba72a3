"""What keeps a run from being planned, prepared or started, as a refusal that the machine decides about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.faults import Refusal, fault_of
from selector.errors import AutolaunchError

if TYPE_CHECKING:
    from autolaunch.daemon.deployment import Deployment
    from autolaunch.daemon.hands import Run


@contextlib.contextmanager
def refusing(run: Run, deployment: Deployment) -> Iterator[None]:
    """What fails within it is a refusal; devices that others hold are waited for only where that was asked for."""
    try:
        yield
    except AutolaunchError as error:
        run.error = error
        fault = fault_of(error)
        if fault.reason == "devices held":
            fault = msgspec.structs.replace(fault, permanent=not deployment.wait_for_devices)
        elif fault.reason == "port in use" and deployment.port is not None:
            hint = f"it starts when port {deployment.port} is free; another one is the deployment's to choose"
            fault = msgspec.structs.replace(fault, hint=hint)
        raise Refusal(fault) from error
