"""What is counted of requests, and what a scrape gets of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from autolaunch.daemon.gateway.metrics import RequestMetrics, accepts_openmetrics, new_registry, render
from autolaunch.daemon.gateway.metrics_requests import (
    CODES,
    DURATION_SECONDS,
    FIRST_TOKEN_SECONDS,
    QUEUE_SECONDS,
    ROUTES,
    TOKEN_SECONDS,
    Distribution,
    code_label,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A registry with requests in it, and a clock that is set by hand."""

    def __init__(self, **given: tuple[str, ...]) -> None:
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(
            self.registry, models=given.get("models", ("glm-4.6",)), keys=given.get("keys", ()), clock=self.clock
        )

    def value(self, name: str, *, model: str = "glm-4.6", route: str = "chat.completions", **labels: str) -> float:
        found = self.registry.get_sample_value(name, {"model": model, "route": route, **labels})
        assert found is not None, name
        return found

    def labels(self, name: str) -> set[str]:
        """Every value of one label, over all that is told."""
        return {
            sample.labels[name] for each in self.registry.collect() for sample in each.samples if name in sample.labels
        }


def test_a_streamed_answer_is_counted_in_all_its_parts() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    assert scene.value("autolaunch_requests_waiting") == 1
    scene.clock.now += 2.0
    seen.routed()
    assert scene.value("autolaunch_requests_waiting") == 0
    assert scene.value("autolaunch_requests_running") == 1
    scene.clock.now += 1.0
    seen.first_token()
    seen.tokens(1)
    for _ in range(4):
        scene.clock.now += 0.25
        seen.tokens(1)
    seen.usage(prompt=12, completion=5)
    scene.clock.now += 9.0  # what the end of the stream takes is no time of a token
    seen.ended(status=200, reason="ok", body_bytes=300, answer_bytes=4000)
    assert scene.value("autolaunch_requests_running") == 0
    assert scene.value("autolaunch_requests_total", code="200") == 1
    assert scene.value("autolaunch_request_queue_time_seconds_sum") == 2.0
    assert scene.value("autolaunch_time_to_first_token_seconds_sum") == 3.0
    assert scene.value("autolaunch_request_time_per_output_token_seconds_sum") == 0.25
    assert scene.value("autolaunch_request_time_per_output_token_seconds_count") == 1
    assert scene.value("autolaunch_request_duration_seconds_sum") == 13.0
    assert scene.value("autolaunch_prompt_tokens_total") == 12
    assert scene.value("autolaunch_generation_tokens_total") == 5
    assert scene.value("autolaunch_request_body_bytes_total") == 300
    assert scene.value("autolaunch_response_body_bytes_total") == 4000


def test_tokens_show_while_they_come_and_the_engines_count_holds_in_the_end() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    seen.routed()
    seen.tokens(2)
    assert scene.value("autolaunch_generation_tokens_total") == 2
    seen.usage(prompt=3, completion=7)
    seen.usage(prompt=3, completion=7)
    assert scene.value("autolaunch_generation_tokens_total") == 7
    assert scene.value("autolaunch_prompt_tokens_total") == 3


def test_a_count_never_goes_down_whatever_an_engine_says() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    seen.tokens(9)
    seen.usage(prompt=-5, completion=4)
    seen.ended(status=200, reason="ok")
    assert scene.value("autolaunch_generation_tokens_total") == 9
    assert scene.value("autolaunch_prompt_tokens_total") == 0


def test_a_request_that_ends_in_the_queue_leaves_it() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    seen.ended(status=499, reason="client_left")
    assert scene.value("autolaunch_requests_waiting") == 0
    assert scene.value("autolaunch_requests_running") == 0
    assert scene.value("autolaunch_requests_total", code="499") == 1
    assert scene.value("autolaunch_request_errors_total", reason="client_left") == 1


def test_only_the_first_end_of_a_request_counts() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    seen.routed()
    seen.ended(status=200, reason="engine_died")
    seen.ended(status=500, reason="internal")
    seen.routed()
    assert scene.value("autolaunch_requests_running") == 0
    assert scene.value("autolaunch_requests_waiting") == 0
    assert scene.value("autolaunch_request_errors_total", reason="engine_died") == 1
    assert scene.value("autolaunch_request_errors_total", reason="internal") == 0
    assert scene.value("autolaunch_request_duration_seconds_count") == 1


def test_what_a_request_took_alone_is_told_of_the_engine_that_answered() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    seen.routed()
    scene.clock.now += 15.0  # the first engine hung, and was given up
    seen.routed()
    scene.clock.now += 0.5
    seen.tokens(1)
    took = seen.alone()
    assert took is not None
    assert took.first_token_seconds == 0.5


def test_a_request_that_is_sent_to_a_second_replica_is_in_the_queue_once() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions")
    seen.routed()
    seen.routed()
    assert scene.value("autolaunch_requests_running") == 1
    assert scene.value("autolaunch_request_queue_time_seconds_count") == 1


def test_time_runs_from_when_the_head_of_the_request_was_read() -> None:
    scene = Scene()
    seen = scene.requests.begun(model="glm-4.6", route="chat.completions", since=scene.clock.now - 4.0)
    seen.ended(status=413, reason="refused")
    assert scene.value("autolaunch_request_duration_seconds_sum") == 4.0


def test_a_deployment_is_there_at_zero_before_its_first_request() -> None:
    scene = Scene()
    assert scene.value("autolaunch_requests_total", code="200") == 0
    assert scene.value("autolaunch_request_errors_total", reason="engine_died") == 0


def begin(scene: Scene, model: str | None, route: str, key: str | None) -> None:
    wide: Callable[..., object] = scene.requests.begun  # what a fault of ours could hand on
    wide(model=model, route=route, key=key)


@given(st.lists(st.tuples(st.none() | st.text(), st.text(), st.none() | st.text(), st.integers()), max_size=30))
def test_whatever_clients_send_the_labels_are_bounded(sent: list[tuple[str | None, str, str | None, int]]) -> None:
    scene = Scene(models=("glm-4.6", "glm-4.5v"), keys=("alice",))
    for model, route, key, status in sent:
        begin(scene, model, route, key)
        seen = scene.requests.begun(model=model, route="completions")
        seen.ended(status=status, reason="refused")
    assert scene.labels("model") <= {"glm-4.6", "glm-4.5v", "unknown"}
    assert scene.labels("route") <= ROUTES
    assert scene.labels("key") <= {"alice"}
    assert scene.labels("code") <= {*map(str, CODES), "1xx", "2xx", "3xx", "4xx", "5xx", "unknown"}


def test_the_name_of_a_key_is_on_one_counter_alone() -> None:
    scene = Scene(keys=("alice", "bob"))
    scene.requests.begun(model="glm-4.6", route="chat.completions", key="alice")
    scene.requests.begun(model="glm-4.6", route="chat.completions", key="mallory")
    with_key = [each.name for each in scene.registry.collect() if any("key" in one.labels for one in each.samples)]
    assert with_key == ["autolaunch_key_requests"]
    assert scene.registry.get_sample_value("autolaunch_key_requests_total", {"key": "alice"}) == 1
    assert scene.registry.get_sample_value("autolaunch_key_requests_total", {"key": "bob"}) == 0


def test_what_is_no_longer_configured_goes_and_what_stays_keeps_its_counts() -> None:
    scene = Scene(models=("glm-4.6", "glm-4.5v"), keys=("alice", "bob"))
    for model in ("glm-4.6", "glm-4.5v"):
        scene.requests.begun(model=model, route="chat.completions", key="alice").ended(status=200, reason="ok")
    late = scene.requests.begun(model="glm-4.5v", route="chat.completions")
    scene.requests.known(models=("glm-4.6", "glm-5"), keys=("alice",))
    late.ended(status=200, reason="ok")
    assert scene.labels("model") == {"glm-4.6", "glm-5"}
    assert scene.value("autolaunch_requests_total", code="200") == 1
    assert scene.labels("key") == {"alice"}
    assert scene.registry.get_sample_value("autolaunch_key_requests_total", {"key": "alice"}) == 2


def test_memory_is_bounded_over_many_requests_of_unknown_models() -> None:
    scene = Scene()
    for number in range(500):
        scene.requests.begun(model=f"glm-{number}", route="other").ended(status=404, reason="refused")
    assert scene.labels("model") == {"glm-4.6", "unknown"}
    assert scene.value("autolaunch_requests_total", model="unknown", route="other", code="404") == 500


def test_connections_are_counted() -> None:
    scene = Scene()
    for _ in range(3):
        scene.requests.connected()
    scene.requests.disconnected()
    assert scene.registry.get_sample_value("autolaunch_connections_open") == 2
    assert scene.registry.get_sample_value("autolaunch_connections_total") == 3


@pytest.mark.parametrize(
    ("status", "label"), [(200, "200"), (499, "499"), (599, "5xx"), (299, "2xx"), (0, "unknown"), (10**9, "unknown")]
)
def test_a_code_is_a_label_where_it_is_a_registered_one(status: int, label: str) -> None:
    assert code_label(status) == label


@pytest.mark.parametrize("bounds", [DURATION_SECONDS, QUEUE_SECONDS, FIRST_TOKEN_SECONDS, TOKEN_SECONDS])
@given(figures=st.lists(st.floats(min_value=0, max_value=1e4), max_size=50))
def test_a_bucket_holds_all_up_to_its_bound(bounds: tuple[float, ...], figures: list[float]) -> None:
    distribution = Distribution(bounds)
    for figure in figures:
        distribution.observe(figure)
    told = distribution.buckets()
    assert [float(bound) for bound, _ in told] == sorted({*bounds, float("inf")})
    assert all(count == sum(figure <= float(bound) for figure in figures) for bound, count in told)


# --- a scrape ---------------------------------------------------------------------------------------------


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=1.0.0", True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;version=1.0.0;q=0.0,text/plain", False),
        ("text/plain", False),
        ("*/*", False),
        ("", False),
        (None, False),
        (";;,=,;q", False),
        ("x" * 100_000 + "," + PROMETHEUS, False),
    ],
)
def test_openmetrics_is_for_who_accepts_it(accept: str | None, openmetrics: bool) -> None:
    assert accepts_openmetrics(accept) == openmetrics
    body, content_type = render(CollectorRegistry(), accept)
    kind = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    assert content_type == f"{kind}; charset=utf-8"
    assert body == (b"# EOF\n" if openmetrics else b"")


@given(st.text(max_size=200))
def test_no_accept_header_fails_or_comes_back(accept: str) -> None:
    assert render(CollectorRegistry(), accept)[1] in (
        "text/plain; version=0.0.4; charset=utf-8",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )


def test_what_is_told_is_openmetrics_as_its_own_parser_reads_it() -> None:
    registry = new_registry()
    requests = RequestMetrics(registry, models=('a "quoted"\\name\n',), keys=("alice",))
    seen = requests.begun(model='a "quoted"\\name\n', route="chat.completions", key="alice")
    seen.routed()
    seen.tokens(3)
    seen.ended(status=200, reason="ok")
    text = render(registry, PROMETHEUS)[0].decode()
    read = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # the library has no types here
    families = {each.name: each for each in read}
    assert families["autolaunch_requests"].type == "counter"
    assert families["autolaunch_requests"].samples[0].labels["model"] == 'a "quoted"\\name\n'
    assert families["autolaunch_time_to_first_token_seconds"].type == "histogram"


def test_a_registry_holds_nothing_of_another() -> None:
    one, other = Scene(), Scene()
    one.requests.begun(model="glm-4.6", route="chat.completions").ended(status=200, reason="ok")
    assert other.value("autolaunch_requests_total", code="200") == 0


def test_prometheus_multiprocess_files_are_not_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What others set for their own servers, ``PROMETHEUS_MULTIPROC_DIR``, decides at the import; here it does not."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("multiproc") / "not there"
    code = (
        "from autolaunch.daemon.gateway.metrics import RequestMetrics, new_registry, render\n"
        "registry = new_registry()\n"
        "requests = RequestMetrics(registry, models=('a',))\n"
        "requests.begun(model='a', route='models').ended(status=200, reason='ok')\n"
        "assert b'route=\"models\"' in render(registry)[0]\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}, check=True
    )
    assert not folder.exists()
