"""A launch: what is refused before anything heavy, in which order, and that no trace is left."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from autolaunch.daemon.ports import free_port
from autolaunch.launch import (
    LaunchEvent,
    LaunchOptions,
    engine_environment,
    launch,
    stopped_by_signals,
)
from engines import registry
from engines.base import Behaviour, Engine, Serving
from engines.environments import Environment, Environments
from selector.catalog import Catalog
from selector.contract import Candidate, Command
from selector.errors import EngineStartError, NoFeasiblePlan, PortTaken, UsageError
from selector.facts import ModelFacts
from tests.fakes.plans import candidate, plan

FAKE = Path(__file__).parents[2] / "fakes" / "engine.py"


class FakeEngine(Engine):
    """Starts the fake server, under the served name."""

    name = "mlx"
    behaviour = Behaviour(names_itself_by_path=True)
    starts = True
    mode = "ready"

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        argv = (sys.executable, str(FAKE), "--port", str(serving.port), "--name", serving.model, "--mode", self.mode)
        return Command(argv=argv, env={})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    fake = FakeEngine()
    made = Environment(engine="mlx", version="1", package="mlx-lm", directory=tmp_path / "environment")
    monkeypatch.setattr(registry, "engine", lambda _: fake)
    monkeypatch.setattr(Environments, "ensure", lambda *_args, **_options: made)
    return fake


def options(tmp_path: Path, **more: object) -> LaunchOptions:
    return LaunchOptions(**{"home": tmp_path / "home", "port": 0, "grace_seconds": 0.3, **more})  # type: ignore[arg-type]


@pytest.mark.usefixtures("engine")
def test_a_launch_is_ready_and_leaves_no_trace(tmp_path: Path) -> None:
    events: list[LaunchEvent] = []
    chosen = candidate("mlx", "glm-tiny")
    with launch(plan(chosen), catalog=Catalog(), options=options(tmp_path), on_event=events.append) as server:
        server.wait_ready()
        assert server.served_name == "glm-tiny"
        assert server.base_url == f"http://127.0.0.1:{server.address.port}/v1"
        assert server.poll() is None
        run = next((tmp_path / "home" / "run").iterdir())
        assert (run / "glm-tiny" / "config.json").is_file()
    assert not psutil.pid_exists(server.pid)
    assert list((tmp_path / "home" / "run").iterdir()) == []
    assert server.log_path.read_text() == "listening\n"
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["port", "weights", "environment", "starting", "loading", "ready", "stopping", "stopped"]


def test_an_engine_that_fails_is_stopped_and_its_log_is_named(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autolaunch.daemon.health.REFUSAL_PAUSE_SECONDS", 0.0)
    engine.mode = "refuse"
    with launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)) as server:
        with pytest.raises(EngineStartError, match="does not complete") as caught:
            server.wait_ready()
        assert caught.value.hint == f"its output is in {server.log_path}"
        assert server.poll() is not None


def test_a_taken_port_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is in use by .*process {os.getpid()}"):
            launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path, port=port))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65_536), ("127.0.0.1", -1), ("", 8000)])
def test_an_address_that_is_none_is_a_usage_error(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        free_port(host, port)


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "/etc", "a/b/c", "-x", "a b", "a\0", "a@main", "", "é", ".x", "a;b"]
)
def test_a_served_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    chosen = plan(candidate("mlx", "glm-tiny"), model=name)
    with pytest.raises(UsageError):
        launch(chosen, catalog=Catalog(), options=options(tmp_path))
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("engine")
def test_a_hubs_id_can_be_served(tmp_path: Path) -> None:
    served = options(tmp_path, served_name="zai-org/GLM-4.6")
    with launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=served) as server:
        server.wait_ready()


def test_an_option_of_ours_is_refused_before_the_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--host"):
        launch(
            plan(candidate("mlx", "glm-tiny")),
            catalog=Catalog(),
            options=options(tmp_path, extra=("--host", "0.0.0.0")),  # noqa: S104
        )
    assert not (tmp_path / "home").exists()


def test_no_plan_is_no_launch(tmp_path: Path) -> None:
    with pytest.raises(NoFeasiblePlan):
        launch(plan(None), catalog=Catalog(), options=options(tmp_path))


def test_an_engine_that_is_only_planned_for_says_its_command(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="does not start it"):
        launch(plan(candidate("vllm", "glm-4.6"), model="glm-4.6"), catalog=Catalog(), options=options(tmp_path))


@pytest.mark.usefixtures("engine")
def test_the_folder_of_a_run_that_was_killed_is_swept(tmp_path: Path) -> None:
    stale = tmp_path / "home" / "run" / "4194999-abc"
    stale.mkdir(parents=True)
    launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)).stop()
    assert not stale.exists()


def test_an_engine_gets_no_credentials_and_no_notify_socket(tmp_path: Path) -> None:
    environ = {
        "HF_TOKEN": "sentinel",
        "NOTIFY_SOCKET": "sentinel",
        "LISTEN_FDS": "sentinel",
        "HOME": "/h",
        "PATH": "/p",
    }
    command = Command(argv=("x",), env={"HF_HUB_OFFLINE": "1"})
    environment = engine_environment(environ | {"HF_HUB_CACHE": "/c"}, command, Path("/env/bin"), tmp_path)
    assert "sentinel" not in environment.values()
    assert environment["PATH"] == "/env/bin:/p"
    assert environment["HF_HOME"] == str(tmp_path / ".cache")
    assert "HF_HUB_CACHE" not in environment
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_in_order(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, stopped_by_signals():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
