"""Get GLM-4.6 or GLM-4.5V up on whatever machine you have.

    report = autolaunch.probe()
    plan = autolaunch.plan("glm-4.6", hardware=report, objective="throughput")
    print(plan.explain())
    with autolaunch.launch(plan) as server:
        server.wait_ready()
        print(server.base_url, server.api_key)

Names are imported when they are used, so that ``import autolaunch`` costs next to nothing.
"""

from __future__ import annotations

from autolaunch import _place

_place.refuse_a_stranger()

TYPE_CHECKING = False  # typing's own name for it would cost 10 ms at every import

if TYPE_CHECKING:
    from autolaunch.api import plan, probe
    from autolaunch.async_client import AsyncClient
    from autolaunch.client import Client
    from autolaunch.comparison import Comparison
    from autolaunch.daemon.control.contract import (
        DeploymentDocument,
        EventDocument,
        ReloadDocument,
        ReplicaDocument,
        StatusDocument,
    )
    from autolaunch.events import Event
    from autolaunch.exporting import export
    from autolaunch.fleet import plan_fleet
    from autolaunch.handles import AsyncLaunch, Launch
    from autolaunch.launched import launch
    from autolaunch.pulling import Pulled, pull
    from autolaunch.rehearsed import rehearse
    from autolaunch.rehearsing import Rehearsal
    from selector.contract import Candidate, LaunchPlan
    from selector.errors import (
        AutolaunchError,
        DownloadError,
        EngineError,
        EngineStartError,
        NoFeasiblePlan,
        NotServing,
        UsageError,
        WaitTimedOut,
    )
    from selector.fleet.asked import FleetDeployment, FleetRequest, HostGroup
    from selector.fleet.contract import FleetPlan
    from selector.hardware import HardwareReport
    from selector.request import Pins

__all__ = [
    "AsyncClient",
    "AsyncLaunch",
    "AutolaunchError",
    "Candidate",
    "Client",
    "Comparison",
    "DeploymentDocument",
    "DownloadError",
    "EngineError",
    "EngineStartError",
    "Event",
    "EventDocument",
    "FleetDeployment",
    "FleetPlan",
    "FleetRequest",
    "HardwareReport",
    "HostGroup",
    "Launch",
    "LaunchPlan",
    "NoFeasiblePlan",
    "NotServing",
    "Pins",
    "Pulled",
    "Rehearsal",
    "ReloadDocument",
    "ReplicaDocument",
    "StatusDocument",
    "UsageError",
    "WaitTimedOut",
    "__version__",
    "export",
    "launch",
    "plan",
    "plan_fleet",
    "probe",
    "pull",
    "rehearse",
]

__version__ = "0.1.0"

_PLACES = {
    "AsyncClient": "autolaunch.async_client",
    "AsyncLaunch": "autolaunch.handles",
    "AutolaunchError": "selector.errors",
    "Candidate": "selector.contract",
    "Client": "autolaunch.client",
    "Comparison": "autolaunch.comparison",
    "DeploymentDocument": "autolaunch.daemon.control.contract",
    "DownloadError": "selector.errors",
    "EngineError": "selector.errors",
    "EngineStartError": "selector.errors",
    "Event": "autolaunch.events",
    "EventDocument": "autolaunch.daemon.control.contract",
    "FleetDeployment": "selector.fleet.asked",
    "FleetPlan": "selector.fleet.contract",
    "FleetRequest": "selector.fleet.asked",
    "HardwareReport": "selector.hardware",
    "HostGroup": "selector.fleet.asked",
    "Launch": "autolaunch.handles",
    "LaunchPlan": "selector.contract",
    "NoFeasiblePlan": "selector.errors",
    "NotServing": "selector.errors",
    "Pins": "selector.request",
    "Pulled": "autolaunch.pulling",
    "Rehearsal": "autolaunch.rehearsing",
    "ReloadDocument": "autolaunch.daemon.control.contract",
    "ReplicaDocument": "autolaunch.daemon.control.contract",
    "StatusDocument": "autolaunch.daemon.control.contract",
    "UsageError": "selector.errors",
    "WaitTimedOut": "selector.errors",
    "export": "autolaunch.exporting",
    "launch": "autolaunch.launched",
    "plan": "autolaunch.api",
    "plan_fleet": "autolaunch.fleet",
    "probe": "autolaunch.api",
    "pull": "autolaunch.pulling",
    "rehearse": "autolaunch.rehearsed",
}


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'autolaunch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(place), name)
