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
    from autolaunch.client import Client
    from autolaunch.comparison import Comparison
    from autolaunch.events import Event
    from autolaunch.exporting import export
    from autolaunch.handles import AsyncLaunch, Launch
    from autolaunch.launched import launch
    from autolaunch.pulling import Pulled, pull
    from selector.contract import LaunchPlan
    from selector.errors import AutolaunchError
    from selector.hardware import HardwareReport

__all__ = [
    "AsyncLaunch",
    "AutolaunchError",
    "Client",
    "Comparison",
    "Event",
    "HardwareReport",
    "Launch",
    "LaunchPlan",
    "Pulled",
    "__version__",
    "export",
    "launch",
    "plan",
    "probe",
    "pull",
]

__version__ = "0.1.0"

_PLACES = {
    "AsyncLaunch": "autolaunch.handles",
    "AutolaunchError": "selector.errors",
    "Client": "autolaunch.client",
    "Comparison": "autolaunch.comparison",
    "Event": "autolaunch.events",
    "HardwareReport": "selector.hardware",
    "Launch": "autolaunch.handles",
    "LaunchPlan": "selector.contract",
    "Pulled": "autolaunch.pulling",
    "export": "autolaunch.exporting",
    "launch": "autolaunch.launched",
    "plan": "autolaunch.api",
    "probe": "autolaunch.api",
    "pull": "autolaunch.pulling",
}


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'autolaunch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(place), name)
