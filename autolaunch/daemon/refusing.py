"""What keeps a run from being planned, prepared or started, as a refusal that the machine decides about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.faults import Refusal, fault_of
from selector.errors import AutolaunchError

if TYPE_CHECKING:
    from autolaunch.daemon.deployment import Deployment, Fault
    from autolaunch.daemon.hands import Run


def waited_for(fault: Fault, deployment: Deployment) -> Fault:
    """``fault``, as others are waited for only where that was asked for: who hold devices, and a cluster's head."""
    if fault.reason == "devices held":
        return msgspec.structs.replace(fault, permanent=not deployment.wait_for_devices)
    if fault.reason == "no cluster" and not deployment.wait_for_devices:
        return msgspec.structs.replace(fault, reason="communication")  # tried again, and given up on
    return fault


@contextlib.contextmanager
def refusing(run: Run, deployment: Deployment) -> Iterator[None]:
    """What fails within it is a refusal; others are waited for only where that was asked for."""
    try:
        yield
    except AutolaunchError as error:
        run.error = error
        fault = waited_for(fault_of(error), deployment)
        if fault.reason == "port in use" and deployment.port is not None:
            hint = f"it starts when port {deployment.port} is free; another one is the deployment's to choose"
            fault = msgspec.structs.replace(fault, hint=hint)
        raise Refusal(fault) from error
