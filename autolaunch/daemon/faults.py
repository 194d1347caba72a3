"""What went wrong, as the machine takes it: from an engine's own words, or from an error of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.deployment import Fault, Reason
from autolaunch.given import without_secrets
from engines.logs import Diagnosis
from selector.errors import (
    AutolaunchError,
    ClusterError,
    DevicesTaken,
    DownloadError,
    EngineError,
    EngineInstallError,
    EngineStartError,
    HubUnreachable,
    NoCluster,
    NoFeasiblePlan,
    NoPackage,
    NoRay,
    NoRoomOnDisk,
    OtherRay,
    PortTaken,
    Unsupported,
)

if TYPE_CHECKING:
    from autolaunch.daemon.supervisor import Supervisor

#: What an error of ours is to the machine, the most special first: the reason, and whether the same fails again.
_REASONS: tuple[tuple[type[AutolaunchError], Reason, bool], ...] = (
    (HubUnreachable, "download", False),
    (NoRoomOnDisk, "disk full", True),
    (DownloadError, "download", True),
    (PortTaken, "port in use", False),
    (DevicesTaken, "devices held", False),
    (NoPackage, "installation", True),
    (EngineInstallError, "installation", False),
    (NoFeasiblePlan, "no plan", True),
    (Unsupported, "options", True),
    (NoRay, "installation", True),
    (OtherRay, "installation", True),
    (NoCluster, "no cluster", False),  # its head may come back
    (ClusterError, "communication", False),
    (EngineStartError, "unknown", False),
    (AutolaunchError, "options", True),
)


class Refusal(Exception):
    """What kept something from being done."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def fault_of(error: AutolaunchError) -> Fault:
    """An error of ours as the machine takes it."""
    from autolaunch.daemon.health import NotReady

    lines = tuple(getattr(error, "__notes__", ()))
    if not isinstance(error, NotReady):
        reason, permanent = next((each, kept) for kind, each, kept in _REASONS if isinstance(error, kind))
        return _told(error, lines, reason, permanent=permanent)
    told = error.diagnosis
    if error.how == "ended" and told is not None:
        return msgspec.structs.replace(of_diagnosis(error.message, told, lines, serving=False), hint=error.hint)
    if told is not None and told.cause != "unknown":
        return _told(error, lines, told.cause, permanent=told.permanent)
    if error.how == "does not complete":  # it had loaded, and refused more than once
        return _told(error, lines, "does not complete", permanent=True)
    return _told(error, lines, "stalled", permanent=False)


def of_diagnosis(message: str, told: Diagnosis, lines: tuple[str, ...], *, serving: bool) -> Fault:
    """The end of an engine, whose last ``lines`` were understood as ``told``."""
    return Fault(
        reason=told.cause,
        permanent=told.permanent,
        message=without_secrets(message),
        hint=told.hint,
        serving=serving,
        fitting_context_tokens=told.fitting_context_tokens,
        lines=tuple(map(without_secrets, lines)),
    )


def of_worker(pid: int, engine: str, told: Diagnosis | None, lines: tuple[str, ...]) -> Fault:
    """A process of an engine has ended, and the engine only seems to live; ``told`` is what its log says of that."""
    message = f"process {pid} of {engine} has ended, and the rest of it is there still"
    return Fault(
        reason="worker died",
        permanent=False,
        message=without_secrets(f"{message}: {told.sentence}" if told is not None and told.sentence else message),
        hint=(told and told.hint) or "the host's memory is a common reason: dmesg -T | grep -i oom",
        serving=True,
        lines=lines,
    )


def _told(error: AutolaunchError, lines: tuple[str, ...], reason: Reason, *, permanent: bool) -> Fault:
    # It is kept in a file, and goes into the journal.
    return Fault(
        reason=reason,
        permanent=permanent,
        message=without_secrets(error.message),
        hint=error.hint,
        lines=tuple(map(without_secrets, lines)),
    )


def error_of(one: Supervisor) -> AutolaunchError:
    """Why a deployment does not serve: the error itself where it is known, with the engine's last lines."""
    known, fault = one.run.error, one.state.fault
    if fault is None:
        return EngineError("it was given up on")
    if known is not None and known.message == fault.message:
        return known
    hints = [fault.hint] if fault.hint else []
    if fault.lines:
        hints.append("\n".join(("the last lines:", *fault.lines[-12:])))
    return EngineError(fault.message, hint="\n".join(hints) or None)
