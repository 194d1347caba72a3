"""Other hosts, for Prometheus: which are up, what they serve, and what is with them from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.other_hosts import OtherHost


class HostFacts(Value, frozen=True, kw_only=True):
    """One host at one moment. ``models`` are those that it has, and whether it serves each."""

    name: str
    up: bool
    running: int
    failures: int
    models: tuple[tuple[str, bool], ...] = ()


def facts_of(host: OtherHost) -> HostFacts:
    """What is told of a host; may be asked beside its loop."""
    return HostFacts(
        name=host.name,
        up=host.state == "up",
        running=host.requests,
        failures=host.failures,
        models=tuple((each.name, each.endpoint() is not None) for each in host.members),
    )


class HostMetrics(Collector):
    """The metrics of hosts; ``hosts`` is called at each scrape, in whichever thread that runs."""

    def __init__(self, registry: CollectorRegistry, hosts: Callable[[], tuple[HostFacts, ...]]) -> None:
        self._hosts = hosts
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics, as ``prometheus_client`` wants them."""
        up = GaugeMetricFamily("autolaunch_host_up", "1 where another host answers.", labels=("host",))
        running = GaugeMetricFamily(
            "autolaunch_host_requests_running",
            "Requests that were sent on to another host and have not ended.",
            labels=("host",),
        )
        failures = CounterMetricFamily(
            "autolaunch_host_failures", "Times that another host went down, or was not there.", labels=("host",)
        )
        ready = GaugeMetricFamily(
            "autolaunch_host_model_ready",
            "1 where another host is sent requests for a model.",
            labels=("host", "model"),
        )
        for each in self._hosts():
            up.add_metric((each.name,), each.up)
            running.add_metric((each.name,), each.running)
            failures.add_metric((each.name,), each.failures)
            for model, serves in each.models:
                ready.add_metric((each.name, model), serves)
        yield from (up, running, failures, ready)
