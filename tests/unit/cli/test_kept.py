"""What is kept up, as a person reads it at 80 and at 120 columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest
from msgspec.structs import replace

from autolaunch.cli.logs import Lines, concerns
from autolaunch.cli.render_kept import (
    render_daemon,
    render_deployment,
    render_event,
    render_hosts,
    render_process,
    render_table,
)
from autolaunch.cli.steer import _failing
from autolaunch.cli.terminal import Terminal
from autolaunch.cli.wait import Seconds, _step
from autolaunch.daemon.control.contract import (
    ChosenDocument,
    DeploymentDocument,
    EngineDocument,
    EventDocument,
    FaultDocument,
    HostDocument,
    HostModelDocument,
    LoadDocument,
    Phase,
    ReplicaDocument,
    StatusDocument,
)
from tests.unit.cli.conftest import make_candidate

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
URL = "http://127.0.0.1:8000/v1"
WIDE, NARROW = Terminal(width_columns=120), Terminal(width_columns=80)
FAULT = FaultDocument(
    reason="out of memory",
    permanent=False,
    message="vllm exited with code 1 while loading: out of memory\x1b[31m",
    hint="free memory",
    lines=("first line", "torch.OutOfMemoryError: CUDA out of memory"),
)


def replica(phase: Phase = "ready", *, unit: str = "glm-4.6", **more: object) -> ReplicaDocument:
    found = make_candidate()
    chosen = ChosenDocument(
        checkpoint=found.checkpoint,
        engine=found.engine,
        parallel=found.parallel,
        limits=found.limits,
        memory=found.memory,
        speed=found.speed,
    )
    base = ReplicaDocument(
        unit=unit, phase=phase, since=NOW - timedelta(minutes=3), wanted="running", run=1, chosen=chosen
    )
    return replace(base, **more)


def deployment(*replicas: ReplicaDocument, name: str = "glm-4.6") -> DeploymentDocument:
    first = replicas[0]
    return DeploymentDocument(
        name=name, model="glm-4.6", phase=first.phase, since=first.since, url=URL, replicas=replicas
    )


@pytest.mark.parametrize("terminal", [NARROW, WIDE])
def test_a_row_a_replica_and_reasons_below_in_lines_that_fit(terminal: Terminal) -> None:
    load = LoadDocument(stage="weights", message="loading the weights, 10 of 22", fraction=0.45)
    waits = replica("backing off", unit="other", fault=FAULT, next_try_at=NOW + timedelta(seconds=40))
    first = deployment(replica(requests=3), replica("loading", unit="glm-4.6#2", load=load))
    found = (first, deployment(waits, name="other"))
    text = click.unstyle(render_table(found, terminal, NOW))
    lines = text.splitlines()
    assert all(len(line) <= terminal.width_columns for line in lines)
    assert [line.split()[0] for line in lines[:4]] == ["name", "glm-4.6", "glm-4.6#2", "other"]
    assert "TP2" in lines[1]
    assert lines[1].rstrip().endswith("3")
    whole = " ".join(text.split())
    assert "glm-4.6#2: loading the weights, 10 of 22 (45%)" in whole
    assert "out of memory; tried again in 40 s" in whole.replace("\N{REPLACEMENT CHARACTER}", "").replace("[31m", "")
    assert "\x1b" not in text


@pytest.mark.parametrize("terminal", [NARROW, WIDE])
def test_a_row_a_host_and_why_one_is_down_in_lines_that_fit(terminal: Terminal) -> None:
    up = HostDocument(
        name="h2",
        url="http://10.0.0.2:8000",
        state="up",
        since=NOW - timedelta(hours=3),
        models=(HostModelDocument(name="glm-4.6", state="serving"), HostModelDocument(name="other", state="loading")),
        requests=1234,
    )
    down = HostDocument(
        name="a-host-with-a-long-name.example.com:8443",
        url="https://a-host-with-a-long-name.example.com:8443",
        state="down",
        since=NOW,
        fault="nobody listens: [Errno 111] Connection refused, and it has been said at some length\x1b[2J",
    )
    text = click.unstyle(render_hosts((up, down), terminal, NOW))
    lines = text.splitlines()
    assert all(len(line) <= terminal.width_columns for line in lines)
    assert lines[1].split()[:4] == ["h2", "up", "3", "h"]
    assert lines[1].endswith("1,234")
    whole = " ".join(text.split())
    assert "glm-4.6, other (loading)" in whole
    assert "nobody listens: [Errno 111] Connection refused" in whole
    assert "\x1b" not in text


def test_requests_are_no_column_where_nobody_counts_them() -> None:
    assert "requests" not in render_table((deployment(replica()),), NARROW, NOW)


@pytest.mark.parametrize("terminal", [NARROW, WIDE])
def test_the_page_of_a_deployment_has_all_that_is_known(terminal: Terminal) -> None:
    one = replica(
        "failed",
        fault=FAULT,
        failures=5,
        changes=("context lowered from 8,192 to 4,096 tokens",),
        engine=EngineDocument(pid=4711, address="127.0.0.1:40001"),
        measured={"weights_bytes": 50 * 2**30, "load_seconds": 41.5, "kv_cache_tokens": 120_000},
        log_path="/home/u/logs/vllm.log",
    )
    text = click.unstyle(render_deployment(deployment(one), terminal, NOW))
    assert all(len(line) <= terminal.width_columns for line in text.splitlines())
    whole = " ".join(text.split())
    for words in (
        "failed for 3 min",
        URL,
        "vllm 1.2.3, process 4711 at 127.0.0.1:40001",
        "tensor parallel 2, devices 0-1",
        "50.0 GiB weights and 20.0 GiB KV cache a device",
        "weights 50.0 GiB, load 42 s, KV cache 120,000 tokens",
        "context lowered",
        "free memory",
        "torch.OutOfMemoryError",
        "5 failures",
        "/home/u/logs/vllm.log",
    ):
        assert words in whole, words
    assert "\x1b" not in text


def test_a_process_says_what_it_is_since_when_and_where_clients_ask() -> None:
    status = StatusDocument(
        version="1", kind="launch", pid=7, started=NOW - timedelta(hours=2), url=URL, wrong="deployments[0]: no\x07"
    )
    assert (
        click.unstyle(render_process(status, NOW))
        == f"launch in the foreground, process 7, for 2 h 0 min; clients ask {URL}"
    )
    page = render_daemon(status, NARROW, NOW)
    assert "the old configuration holds" in page
    assert "\x07" not in page


def test_an_event_is_one_line() -> None:
    event = EventDocument(
        serial=1,
        time=NOW,
        level="error",
        event="engine.failed",
        message="it\x1b[2J",
        deployment="a",
        figures={"run": 2},
    )
    text = click.unstyle(render_event(event))
    assert text.count("\n") == 0
    assert "engine.failed a it" in text
    assert text.endswith("(run=2)")


def test_events_of_a_deployment_are_those_of_its_replicas_too() -> None:
    told = ("a", "a#2", "a#3", "b", "ab#2", None)
    events = [EventDocument(serial=1, time=NOW, level="info", event="e", message="m", deployment=each) for each in told]
    for name, found in (
        ("a", ["a", "a#2", "a#3", None]),
        ("a#2", ["a", "a#2", None]),
        ("b", ["b", None]),
        (None, list(told)),
    ):
        assert [each.deployment for each in events if concerns(name, each)] == found


def test_all_that_is_tried_again_is_what_failed_or_waits_and_is_wanted() -> None:
    stopped = replica("failed", wanted="stopped")
    for phase in ("ready", "degraded", "asleep", "stopped", "loading", "planned"):
        assert _failing(deployment(replica(phase))) == (), phase
    for failing in ("failed", "backing off"):
        assert _failing(deployment(replica(failing))) == ("glm-4.6",)
    assert _failing(deployment(stopped)) == ()
    both = (replica("failed", unit="glm-4.6"), replica("backing off", unit="glm-4.6#2"))
    assert _failing(deployment(*both)) == ("glm-4.6",)
    assert _failing(deployment(replica("ready"), both[1])) == ("glm-4.6#2",)


def test_what_is_waited_for_is_the_first_that_does_not_serve() -> None:
    ready, failing = deployment(replica()), deployment(replica("backing off", fault=FAULT), name="b")
    assert _step((ready,)) is None
    step = _step((ready, failing))
    assert step is not None
    assert step.stage == "waiting"
    assert step.message.startswith("b: vllm exited")
    loading = replica("loading", load=LoadDocument(stage="weights", message="10 of 22", fraction=0.5))
    assert _step((deployment(loading),)) == ("loading", "glm-4.6: 10 of 22", 0.5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("0.5", 0.5), ("90s", 90.0), ("30m", 1800.0), ("2H", 7200.0)]
)
def test_a_time_is_seconds_minutes_or_hours(text: str, seconds: float) -> None:
    assert Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "nan", "inf", "1d", "m", "1e99"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Seconds().convert(text, None, None)


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "10001", "٣"])
def test_what_is_no_number_of_lines_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Lines().convert(text, None, None)
    assert Lines().convert("0", None, None) == 0
