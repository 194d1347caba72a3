"""What Prometheus is told: a registry of the daemon's own, and what a scrape of it is answered.

The parts: requests (:mod:`autolaunch.daemon.gateway.metrics_requests`), deployments
(:mod:`autolaunch.daemon.gateway.metrics_state`), devices (:mod:`autolaunch.daemon.gateway.metrics_devices`), other
hosts (:mod:`autolaunch.daemon.gateway.metrics_hosts`).
``docs/metrics.md`` lists the metrics. So they are put together::

    registry, happened = new_registry(), Happened()
    requests = RequestMetrics(registry, models=names, keys=key_names)
    StateMetrics(registry, lambda: snapshot_of(tuple(supervisors.values()), happened, now=time.monotonic()))
    devices = DeviceMetrics(registry, lambda: engines_of(tuple(supervisors.values())))
    # on_tell of the supervisors: happened.tell; on_trouble of the watch: devices.trouble
    body, content_type = await loop.run_in_executor(None, render, registry, accept)
"""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from autolaunch.daemon.gateway.metrics_devices import DeviceMetrics, engines_of
from autolaunch.daemon.gateway.metrics_hosts import HostMetrics, facts_of
from autolaunch.daemon.gateway.metrics_requests import Reason, RequestMetrics, Route, Seen
from autolaunch.daemon.gateway.metrics_snapshot import Happened, Snapshot, snapshot_of
from autolaunch.daemon.gateway.metrics_state import StateMetrics

__all__ = [
    "DeviceMetrics",
    "Happened",
    "HostMetrics",
    "Reason",
    "RequestMetrics",
    "Route",
    "Seen",
    "Snapshot",
    "StateMetrics",
    "engines_of",
    "facts_of",
    "new_registry",
    "render",
    "snapshot_of",
]

#: So much of an ``Accept`` header is looked at.
ACCEPT_CHARACTERS = 1024
_OPENMETRICS = "application/openmetrics-text"


def new_registry() -> CollectorRegistry:
    """A registry with what is told of the process itself: processor time, memory, open files, garbage collection."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, accept: str | None = None) -> tuple[bytes, str]:
    """The metrics and their content type: OpenMetrics for who accepts it, else Prometheus' text.

    May run in a thread beside the loop, and should: with many models it takes milliseconds.
    """
    # What the client wrote is not handed on: the library would have it back in the content type.
    encode, content_type = choose_encoder(_OPENMETRICS if accepts_openmetrics(accept) else "text/plain")
    return encode(registry), content_type


def accepts_openmetrics(accept: str | None) -> bool:
    """Whether an ``Accept`` header names OpenMetrics in the version that is spoken here, or in none."""
    for part in (accept or "")[:ACCEPT_CHARACTERS].split(","):
        kind, *parameters = (each.strip().lower() for each in part.split(";"))
        if kind != _OPENMETRICS:
            continue
        given = dict(each.partition("=")[::2] for each in parameters)
        if given.get("version", "1.0.0") == "1.0.0" and given.get("q", "1").strip("0.") != "":
            return True
    return False
