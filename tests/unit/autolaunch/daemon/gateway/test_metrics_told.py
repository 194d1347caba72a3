"""What is told as a whole: its names, its page, the dashboard and the alert rules that are made of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry

from autolaunch.daemon.devices import DeviceTrouble
from autolaunch.daemon.gateway.metrics import DeviceMetrics, RequestMetrics, StateMetrics, new_registry, render
from autolaunch.daemon.gateway.metrics_devices import Engine as EngineProcesses
from autolaunch.daemon.gateway.metrics_devices import Look
from autolaunch.daemon.gateway.metrics_hosts import HostFacts, HostMetrics
from autolaunch.daemon.gateway.metrics_requests import ERRORS, ROUTES
from autolaunch.daemon.gateway.metrics_snapshot import PHASES, Engine, Numbers, ReplicaFacts, Snapshot
from selector.hardware import DeviceProcess
from selector.probe.nvidia_readings import DeviceReading

DOCS = Path(__file__).parents[5] / "docs"
PAGE, DASHBOARD, ALERTS = DOCS / "metrics.md", DOCS / "grafana" / "autolaunch.json", DOCS / "prometheus" / "alerts.yml"
BEGIN, END = "<!-- metrics: written by the tests, --update-golden -->\n", "<!-- end of metrics -->\n"
#: What Grafana puts in for its variables.
VARIABLES = {"$__rate_interval": "5m", "$model": ".*", "$instance": ".*"}
#: What Prometheus itself knows of a target.
TARGET = {"job", "instance"}
#: What prometheus_client tells of a process, on Linux only.
PROCESS = ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "start_time_seconds")

PROMTOOL = shutil.which("promtool")
promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


@cache
def everything() -> CollectorRegistry:
    """A registry in which every metric has a sample."""
    registry = new_registry()
    requests = RequestMetrics(registry, models=("glm-4.6",), keys=("alice",), clock=iter(range(1000)).__next__)
    seen = requests.begun(model="glm-4.6", route="chat.completions", key="alice")
    seen.routed()
    seen.tokens(1)
    seen.tokens(1)
    seen.ended(status=200, reason="ok")
    numbers = Numbers(
        weights_bytes=1,
        kv_cache_bytes=1,
        activations_bytes=1,
        graphs_bytes=1,
        kv_cache_tokens=1,
        context_tokens=1,
        load_seconds=1.0,
        decode_tokens_per_second=1.0,
        time_to_first_token_seconds=1.0,
    )
    engine = Engine(
        engine="vllm",
        version="0.11.0",
        checkpoint="zai-org/GLM-4.6",
        quantization="bf16",
        kv_cache_dtype="auto",
        tensor_parallel=8,
        pipeline_parallel=1,
    )
    replica = ReplicaFacts(
        model="glm-4.6",
        replica=1,
        phase="ready",
        phase_seconds=1.0,
        wanted=True,
        failures=(("out of memory", 1),),
        starts=1,
        running=1,
        max_sequences=8,
        load_stage="weights",
        load_fraction=0.5,
        engine=engine,
        predicted=numbers,
        measured=numbers,
    )
    StateMetrics(registry, lambda: Snapshot(replicas=(replica,), configuration_ok=True))
    host = HostFacts(name="h2", up=True, running=1, failures=1, models=(("glm-4.6", True),))
    HostMetrics(registry, lambda: (host,))
    device = DeviceReading(
        device="0",
        uuid="GPU-0",
        name="NVIDIA H100 80GB HBM3",
        memory_total_bytes=2,
        memory_free_bytes=1,
        processes=(DeviceProcess(pid=10, used_bytes=1),),
        temperature_celsius=40,
        power_watts=100.0,
        utilization_ratio=0.5,
    )
    held = EngineProcesses(model="glm-4.6", replica=1, ids=frozenset({10}), resident_bytes=1)
    devices = DeviceMetrics(registry, known=Look(at=0.0, devices=(device,), engines=(held,)), clock=lambda: 0.0)
    devices.trouble(DeviceTrouble(uuid="GPU-0", index=0, name="GPU", lost=True, message="lost"))
    return registry


@cache
def families() -> tuple[Metric, ...]:
    """What is ours to tell."""
    return tuple(each for each in everything().collect() if each.name.startswith("autolaunch_"))


@cache
def series() -> dict[str, set[str]]:
    """Every name that a query can ask for, with its labels."""
    found: dict[str, set[str]] = {"up": set(), **{f"process_{name}": set() for name in PROCESS}}
    for each in everything().collect():
        for sample in each.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_every_metric_has_a_sample_and_nothing_is_told_twice() -> None:
    assert [each.name for each in families() if not each.samples] == []
    names = [each.name for each in everything().collect()]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_name_ends_in_its_unit_and_is_in_base_units(family: Metric) -> None:
    """https://prometheus.io/docs/practices/naming: base units in plural, ``_total`` for what only grows."""
    assert re.fullmatch(r"autolaunch_[a-z]+(_[a-z]+)*", family.name)
    assert not re.search(r"_(ms|milliseconds|minutes|mib|gib|kb|mb|gb|percent|perc|mw)(_|$)", family.name)
    assert family.documentation.endswith(".")
    assert len(family.documentation) <= 120
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    if "_time_" in family.name or "duration" in family.name:
        assert family.name.endswith("_seconds")


def test_no_label_holds_a_secret_or_a_place_on_the_host() -> None:
    labels = set().union(*(names for name, names in series().items() if name.startswith("autolaunch_")))
    assert labels == {
        *("model", "replica", "route", "code", "reason", "key", "phase", "stage", "use", "le", "version"),
        *("device", "uuid", "name", "kind", "host", *Engine.__struct_fields__),
    }


# --- the page ---------------------------------------------------------------------------------------------


def unit(name: str) -> str:
    bare = name.removesuffix("_total")
    if bare.endswith("_tokens_per_second"):
        return "tokens/s"
    ends = {"seconds": "s", "bytes": "bytes", "ratio": "0 to 1", "celsius": "°C", "watts": "W", "tokens": "tokens"}
    return next((said for end, said in ends.items() if bare.endswith(f"_{end}")), "")


def table() -> str:
    lines = ["| Metric | Type | Labels | Unit | Meaning |", "|---|---|---|---|---|"]
    for family in sorted(families(), key=full_name):
        labels = sorted(set().union(*(sample.labels for sample in family.samples)) - {"le"})
        told = ", ".join(f"`{each}`" for each in labels)
        cells = (f"`{full_name(family)}`", family.type, told, unit(full_name(family)), family.documentation)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_page_lists_every_metric_as_it_is(update_golden: bool) -> None:
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    listed, end, after = rest.partition(END)
    assert begin and end
    if update_golden:
        PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}")
    else:
        assert listed == table()


@pytest.mark.parametrize("value", [*sorted(ROUTES), *ERRORS, *PHASES])
def test_the_page_names_every_value_of_the_fixed_labels(value: str) -> None:
    assert f"`{value}`" in PAGE.read_text()


# --- the dashboard and the alert rules --------------------------------------------------------------------


@cache
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [each for each in dashboard()["panels"] if each["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard by its panel, as Grafana would send it."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            yield f"{panel['id']} {panel['title']}", expression


def rules() -> list[str]:
    """The rules' expressions, without a reader of YAML: what stands between ``expr:`` and the next key."""
    found = re.findall(r"^ +expr: (.*?)^ +(?:for|labels):", ALERTS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == ALERTS.read_text().count("- alert:")
    return [each.removeprefix("|").strip() for each in found]


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric that an expression asks for, with the labels it is matched by."""
    for name, matchers in re.findall(r"\b((?:autolaunch|process|python)_\w+|up\b)\s*(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers))


@pytest.mark.parametrize("expression", [*(each for _, each in queries()), *rules()])
def test_what_is_asked_for_is_told(expression: str) -> None:
    found = list(asked(expression))
    assert found
    for name, labels in found:
        assert name in series()
        assert labels <= series()[name] | TARGET
    grouped = {
        each.strip() for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for each in labels.split(",")
    }
    assert grouped <= TARGET.union(*(series()[name] for name, _ in found))


def test_every_metric_is_on_the_dashboard_or_left_out_for_a_reason() -> None:
    on_it = {name for _, expression in queries() for name, _ in asked(expression)}
    left_out = {
        "autolaunch_configuration_ok",  # an alert
        "autolaunch_connections_total",  # those that are open are shown
        "autolaunch_device_info",  # a device's name, for queries of one's own
        "autolaunch_measured_context_tokens",  # what was asked for, in all but name
        "autolaunch_predicted_context_tokens",
        "autolaunch_predicted_time_to_first_token_seconds",  # of the workload's prompt alone
        "autolaunch_replica_phase_duration_seconds",  # the picture of the states shows it
    }
    told = {full_name(each) for each in families()}
    shown = {name for name in told if name in on_it or f"{name}_bucket" in on_it}
    assert told - shown == left_out


def test_the_dashboard_can_be_imported_and_takes_its_data_source_from_a_variable() -> None:
    board = dashboard()
    assert board["id"] is None
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert [*variables] == ["datasource", "instance", "model"]
    assert "__inputs" not in board
    for name in ("instance", "model"):
        (metric,) = re.findall(r"label_values\((\w+)", variables[name]["definition"])
        assert name in series()[metric] | TARGET
    ids = [each["id"] for each in board["panels"]]
    assert len(set(ids)) == len(ids)
    sources = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert sources == {"${datasource}"}


def test_no_panel_of_the_dashboard_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def tool(*arguments: str, given: bytes | None = None) -> str:
    """What promtool says; its own exit status must be 0."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=given, capture_output=True, timeout=50, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


@promtool
def test_promtool_finds_nothing_wrong_with_what_is_told() -> None:
    assert tool("check", "metrics", given=render(everything())[0]) == ""


@promtool
def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    asked = [{"record": f"panel:{place}", "expr": query} for place, (_, query) in enumerate(queries())]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": asked}]}))  # JSON is YAML
    assert f"{len(asked)} rules found" in tool("check", "rules", str(file))


@promtool
def test_promtool_takes_the_alert_rules_and_their_tests_pass() -> None:
    assert f"{len(rules())} rules found" in tool("check", "rules", str(ALERTS))
    assert "SUCCESS" in tool("test", "rules", str(ALERTS.with_name("alerts_test.yml")))


def test_every_alert_rule_has_a_test() -> None:
    tested = set(re.findall(r"alertname: (\w+)", ALERTS.with_name("alerts_test.yml").read_text()))
    assert tested == set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
