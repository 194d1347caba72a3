"""A launch: what is refused before anything heavy, in which order, and that no trace is left."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from autolaunch.daemon.ports import free_port
from autolaunch.daemon.runs import log_place
from autolaunch.given_environment import engine_environment, private_sockets
from autolaunch.launching import LaunchOptions, launch, stopped_by_signals
from autolaunch.server import LaunchEvent
from engines import registry
from engines.base import Behaviour, Engine, Serving
from engines.environments import Environment, Environments
from selector.catalog import Catalog
from selector.contract import Candidate, Command
from selector.errors import EngineInstallError, EngineStartError, NoFeasiblePlan, PortTaken, UsageError
from selector.facts import ModelFacts
from selector.hardware import Accelerator
from tests.fakes.plans import candidate, plan

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"


class FakeEngine(Engine):
    """Starts the fake server, under the served name."""

    name = "mlx"
    behaviour = Behaviour(names_itself_by_path=True)
    mode = "ready"
    more: tuple[str, ...] = ()

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        argv = (sys.executable, str(FAKE), "--port", str(serving.port), "--name", serving.model, "--mode", self.mode)
        if self.mode == "leave":
            return Command(argv=(sys.executable, "-c", "print('usage: server [-h]')"), env={})
        return Command(argv=(*argv, *self.more), env={})


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


def test_a_launch_tells_how_far_the_load_is_what_was_measured_and_why_it_ended(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "name", "vllm", raising=False)
    engine.mode = "silent"
    shards = "Loading safetensors checkpoint shards:  45% Completed | 10/22 [00:10<00:12,  1.00it/s]"
    cache = "(EngineCore pid=7) INFO 11-20 09:14:10 [x.py:1] GPU KV cache size: 409,472 tokens, Maximum concurrency for"
    lost = "(Worker_TP1 pid=8) ERROR 11-20 09:14:10 [x.py:1] NVMLError_GpuIsLost: GPU is lost"
    engine.more = ("--say", shards, "--say", cache, "--say", lost, "--say", shards)
    events: list[LaunchEvent] = []
    chosen = plan(candidate("mlx", "glm-tiny"))
    with launch(chosen, catalog=Catalog(), options=options(tmp_path), on_event=events.append) as server:
        with pytest.raises(EngineStartError, match="not ready within 2 s"):
            server.wait_ready(timeout=2.0)
        told = [(event.message, event.fraction) for event in events if event.stage == "loading"]
        assert told[-1] == ("loading the weights, 10 of 22", 10 / 22)
        assert server.figures.kv_cache_tokens == 409_472
        assert (server.diagnosis().cause, server.diagnosis().rank) == ("device lost", "Worker_TP1")


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


def test_several_replicas_are_not_started_and_the_way_to_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="starts one replica, and the plan has 2") as caught:
        launch(plan(candidate("mlx", "glm-tiny", data=2)), catalog=Catalog(), options=options(tmp_path))
    assert "--data-parallel 1" in (caught.value.hint or "")
    assert not (tmp_path / "home").exists()


def test_what_has_no_environment_for_its_devices_is_refused_before_the_download(tmp_path: Path) -> None:
    """The wheel of llama.cpp is for processors: it would leave the planned GPU alone and serve all the same."""
    gpu = Accelerator(index=0, uuid="GPU-0", vendor="nvidia", name="fake")
    chosen = candidate("llamacpp", "glm-4.6", devices=(0,))
    with pytest.raises(EngineInstallError, match="no environment of llamacpp for nvidia devices") as caught:
        launch(plan(chosen, model="glm-4.6", accelerators=(gpu,)), catalog=Catalog(), options=options(tmp_path))
    assert "--engine-path" in (caught.value.hint or "")
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("engine")
def test_the_folder_of_a_run_that_was_killed_is_swept(tmp_path: Path) -> None:
    stale = tmp_path / "home" / "run" / "4194999-abc"
    stale.mkdir(parents=True)
    (stale / ".lock").touch()
    unlocked = tmp_path / "home" / "run" / "4194999-abd"
    unlocked.mkdir()
    os.utime(unlocked, (0, 0))
    launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)).stop()
    assert not stale.exists()
    assert not unlocked.exists()


@pytest.mark.usefixtures("engine")
def test_the_folder_of_a_run_of_another_container_is_left_alone(tmp_path: Path) -> None:
    # Its process id means nothing here: what counts is who holds the lock.
    living = tmp_path / "home" / "run" / "4194999-abc"
    living.mkdir(parents=True)
    with (living / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)).stop()
        assert living.exists()
    made = tmp_path / "home" / "run" / "4194999-new"  # its lock is not there yet
    made.mkdir()
    launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)).stop()
    assert made.exists()
    assert not living.exists()


@pytest.mark.usefixtures("engine")
def test_a_running_launch_holds_its_lock_and_keeps_its_folder_to_itself(tmp_path: Path) -> None:
    with launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)) as server:
        server.wait_ready()
        with (server._run_directory / ".lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options(tmp_path)):
            assert server._run_directory.is_dir()
        for path, mode in ((server._run_directory, 0o700), (server.log_path, 0o600), (server.log_path.parent, 0o700)):
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_old_logs_go_and_those_of_runs_that_live_stay(tmp_path: Path) -> None:
    logs, runs = tmp_path / "logs", tmp_path / "run"
    logs.mkdir()
    for number in range(30):
        (logs / f"mlx-{number}-a.log").touch()
        os.utime(logs / f"mlx-{number}-a.log", (number, number))
    (logs / "mlx-gone.log").symlink_to(tmp_path / "vanished")
    for name in ("0-a", "99-b"):
        (runs / name).mkdir(parents=True)
    assert log_place(logs, "mlx", runs / "99-b") == logs / "mlx-99-b.log"
    left = {path.name for path in logs.iterdir()}
    assert "mlx-0-a.log" in left
    assert "mlx-1-a.log" not in left
    assert "mlx-29-a.log" in left
    assert len(left) <= 22


def test_a_miniature_has_no_revisions(tmp_path: Path) -> None:
    chosen = candidate("mlx", "glm-tiny")
    asked = msgspec.structs.replace(chosen, checkpoint=msgspec.structs.replace(chosen.checkpoint, revision="foo"))
    with pytest.raises(UsageError, match="no revisions"):
        launch(plan(asked), catalog=Catalog(), options=options(tmp_path))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("mode", "say", "said"),
    [("leave", "", "ended on the options passed"), ("exit", "error: argument --temp: invalid choice: '7'", "--temp")],
)
def test_an_engine_that_ends_on_the_users_option_says_so(
    engine: FakeEngine, tmp_path: Path, mode: str, say: str, said: str
) -> None:
    engine.mode, engine.more = mode, ("--say", say)
    given = options(tmp_path, extra=("--temp", "7"))
    with (
        launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=given) as server,
        pytest.raises(EngineStartError, match=said) as caught,
    ):
        server.wait_ready()
    assert caught.value.hint is not None
    assert "after --: --temp 7" in caught.value.hint


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


def test_nothing_that_leads_to_a_credential_reaches_an_engine(tmp_path: Path) -> None:
    names = (
        *("HF_TOKEN", "HF_TOKEN_PATH", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "UV_INDEX_X_USERNAME"),
        *("PIP_INDEX_URL", "DB_PASSWD", "DB_PASS", "SSH_KEY", "OPENAI_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
    )
    environ = dict.fromkeys(names, "sentinel") | {
        "HTTPS_PROXY": "http://me:sentinel@proxy:3128",
        "MIRROR": "https://sentinel@host/x",
        "HTTP_PROXY": "http://proxy:3128",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment = engine_environment(environ, Command(argv=("x",), env={}), Path("/env/bin"), tmp_path)
    assert [name for name, value in environment.items() if "sentinel" in value] == []
    assert environment["HTTP_PROXY"] == "http://proxy:3128"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_in_order(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, stopped_by_signals():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_the_sockets_between_an_engines_processes_are_its_users_alone(tmp_path: Path) -> None:
    behaviour = Behaviour(sockets_variable="SOCKETS")
    assert private_sockets(behaviour, Path("/home/user/run/1")) == {"SOCKETS": "/home/user/run/1"}
    assert private_sockets(behaviour, Path("/" + "x" * 80)) == {}, "a path that long is none of a socket"
    assert private_sockets(Behaviour(), Path("/home/user/run/1")) == {}
