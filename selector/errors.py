"""Every error that autolaunch raises on purpose.

    AutolaunchError                 code, exit code, hint
    ├── UsageError             2    options that are wrong or contradict each other
    │   ├── UnknownModel            a model nobody described (with the nearest names)
    │   ├── UnknownHardware         a --hardware that is no machine (with the nearest names)
    │   └── UnknownDeployment       a name of nothing that is kept up (with the nearest)
    ├── NoFeasiblePlan         3    nothing that is allowed fits this machine
    │   └── OtherHardware           a lock is of another machine, and nothing is planned again unasked
    ├── ProbeError             4    the machine could not be asked
    │   └── ClusterError            a Ray cluster could not be asked, or was lost
    │       ├── NoRay               there is no Ray here to ask it with
    │       ├── OtherRay            the cluster is of another version of Ray or Python
    │       └── NoCluster           there is none at the address, or none that this host may join
    ├── EngineError            5    an engine could not be prepared, started or kept
    │   ├── EngineInstallError      its environment could not be made
    │   │   └── NoPackage           there is nothing published that could be installed
    │   ├── EngineStartError        it exited, stalled, or never answered
    │   │   └── Unsupported         this release cannot start it at all
    │   ├── PortTaken               the address asked for is in use
    │   ├── DevicesTaken            devices are those of another deployment
    │   ├── DaemonRunning           another daemon keeps them already
    │   ├── NotServing              a deployment that was waited for does not come by itself
    │   ├── InUse                   weights that are to be removed are served, fetched or read
    │   └── NotSteered              who keeps engines up could not be asked
    │       ├── NotRunning          neither a daemon nor a launch is there
    │       └── NotAllowed          there is one, and not for this user
    ├── DownloadError          6    a checkpoint could not be fetched or made
    │   ├── HubUnreachable          the hub did not answer, or broke off: a later try may do
    │   │   └── HubBusy             it answered that it has too much to do (429, 503)
    │   ├── HubRefuses              the hub answered, and does not give it
    │   │   ├── NotOnHub            it has no such repository, revision or file
    │   │   ├── Gated               this account has not accepted its terms
    │   │   └── TokenRefused        no token, or one that is wrong or has expired
    │   ├── DamagedDownload         it came damaged, twice: its hash is not the hub's
    │   ├── NotHere                 it is not whole on this machine, and fetching was forbidden
    │   ├── NoHubClient             the client of that hub is not installed
    │   └── NoRoomOnDisk            before the first byte, or the disk became full
    ├── WaitTimedOut         124    what was waited for did not come in time
    └── ConfigurationError    78    a file of ours or of the user's is wrong
        ├── ProfileError            a profile, with the path of the key
        └── LockError               a lock that is none, was changed, or cannot be written

Anything else that escapes is a fault of ours and ends in exit code 1.
"""

from __future__ import annotations

from typing import ClassVar


class AutolaunchError(Exception):
    """Base of the tree.

    Attributes:
        code: a stable dotted name for scripts, such as ``"usage.model"``.
        exit_code: what the command line exits with.
        message: one sentence a person can act on.
        hint: what to do about it, or ``None``.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(AutolaunchError):
    code = "usage"
    exit_code = 2


class UnknownModel(UsageError):
    code = "usage.model"


class UnknownHardware(UsageError):
    code = "usage.hardware"


class UnknownDeployment(UsageError):
    code = "usage.deployment"


class NoFeasiblePlan(AutolaunchError):
    code = "plan.infeasible"
    exit_code = 3


class OtherHardware(NoFeasiblePlan):
    code = "plan.other_hardware"


class ProbeError(AutolaunchError):
    code = "probe"
    exit_code = 4


class ClusterError(ProbeError):
    code = "probe.cluster"


class NoRay(ClusterError):
    code = "probe.ray"


class OtherRay(ClusterError):
    code = "probe.ray_version"


class NoCluster(ClusterError):
    code = "probe.no_cluster"


class EngineError(AutolaunchError):
    code = "engine"
    exit_code = 5


class EngineInstallError(EngineError):
    code = "engine.install"


class NoPackage(EngineInstallError):
    code = "engine.package"


class EngineStartError(EngineError):
    code = "engine.start"


class Unsupported(EngineStartError):
    code = "engine.unsupported"


class PortTaken(EngineError):
    code = "engine.port"


class DevicesTaken(EngineError):
    code = "engine.devices"


class DaemonRunning(EngineError):
    """Its exit code is an engine's that could not be kept: tried again later, it may work (78 would say never)."""

    code = "engine.daemon"


class NotServing(EngineError):
    code = "engine.not_serving"


class InUse(EngineError):
    code = "engine.in_use"


class NotSteered(EngineError):
    code = "control"


class NotRunning(NotSteered):
    code = "control.not_running"


class NotAllowed(NotSteered):
    code = "control.not_allowed"


class DownloadError(AutolaunchError):
    code = "download"
    exit_code = 6


class HubUnreachable(DownloadError):
    code = "download.hub"


class HubBusy(HubUnreachable):
    code = "download.busy"


class HubRefuses(DownloadError):
    code = "download.refused"


class NotOnHub(HubRefuses):
    code = "download.missing"


class Gated(HubRefuses):
    code = "download.gated"


class TokenRefused(HubRefuses):
    code = "download.token"


class DamagedDownload(DownloadError):
    code = "download.damaged"


class NotHere(DownloadError):
    code = "download.offline"


class NoHubClient(DownloadError):
    code = "download.extra"


class NoRoomOnDisk(DownloadError):
    code = "download.disk"


class WaitTimedOut(AutolaunchError):
    """Its exit code is that of ``timeout(1)``."""

    code = "timeout"
    exit_code = 124


class ConfigurationError(AutolaunchError):
    code = "configuration"
    exit_code = 78


class ProfileError(ConfigurationError):
    code = "configuration.profile"


class LockError(ConfigurationError):
    code = "configuration.lock"
