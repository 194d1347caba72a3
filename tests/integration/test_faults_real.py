"""Real engines on the miniature, killed, stopped, starved and shut out: what the daemon's parts do with them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from autolaunch import api
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.hands import Hands, Patience
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.host import Host
from autolaunch.daemon.leases import Leases
from autolaunch.daemon.machine import PROBE_SECONDS, REPROBE_SECONDS
from autolaunch.daemon.ports import free_port
from autolaunch.daemon.store import Store
from autolaunch.daemon.supervisor import Supervisor
from engines.base import planned_package
from engines.environments import Environments
from selector.catalog import Catalog
from selector.facts import EngineName
from selector.hardware import HardwareReport
from selector.request import Pins
from tests.fakes.served import Served, entry
from tests.fakes.supervised import Clock, engine_of, nothing_left, play, reach

ON_MLX = 'pinned = { engine = "mlx" }\n'

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def borrowed(home: Path, engines_home: Path) -> Path:
    """A home of its own with the engines and models of another."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("engines", "models"):
        (engines_home / name).mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(engines_home / name)
    return home


def without_devices() -> HardwareReport:
    return msgspec.structs.replace(api.probe(), accelerators=(), links=())


def prepared(home: Path, engine: EngineName) -> None:
    """The engine's environment, which takes minutes on a new machine: no test is to wait for it while it counts."""
    known = Catalog()
    chosen = api.plan("glm-tiny", hardware=without_devices(), pins=Pins(engine=engine), known=known).chosen
    assert chosen is not None
    Environments.of(home).ensure(*planned_package(known.engine(engine), chosen.engine))


class Kept:
    """A deployment of a real engine under a supervisor, with a clock that can be moved on."""

    def __init__(self, home: Path, engine: EngineName, **more: object) -> None:
        self.home = home
        self.clock = Clock()
        self.told: list[Tell] = []
        self.deployment = Deployment(
            name="glm-tiny",
            model="glm-tiny",
            port=free_port("127.0.0.1", 0),
            pinned=Pins(engine=engine),
            **more,  # type: ignore[arg-type]  # a test's own
        )
        known = Catalog()
        self.one = Supervisor(
            self.deployment,
            Hands(
                home=home,
                catalog=known,
                planner=Host(known, without_devices),
                store=Store(home / "learned.sqlite3"),
                leases=Leases(home / "leases"),
                patience=Patience(grace_seconds=3.0, stall_seconds=4.0, quiet_seconds=1.0),
            ),
            on_tell=lambda _one, tell: self.told.append(tell),
            clock=self.clock,
        )

    def skip(self, seconds: float) -> None:
        self.clock.skipped_seconds += seconds
        self.one._step(None)

    async def ready(self) -> int:
        """Waits until it serves; the engine's process id."""
        await reach(self.one, lambda state: state.phase == "ready", 90.0)
        return (await engine_of(self.one)).pid


@pytest.fixture
def keep(tmp_path: Path, engines_home: Path) -> Iterator[Callable[..., Kept]]:
    home = borrowed(tmp_path / "home", engines_home)

    def make(engine: EngineName, **more: object) -> Kept:
        prepared(home, engine)
        return Kept(home, engine, **more)

    yield make
    nothing_left(home)


@pytest.fixture
def daemon(tmp_path: Path, engines_home: Path) -> Iterator[Served]:
    prepared(borrowed(tmp_path / "served" / "home", engines_home), "mlx")
    one = Served(tmp_path / "served", real=True)
    one.configure(entry("a", one.port) + ON_MLX)
    yield one
    left = one.processes()
    one.close()
    assert left == [], "the test left these"


# --- under a supervisor ------------------------------------------------------------------------------


def test_a_killed_engine_runs_again(keep: Callable[..., Kept]) -> None:
    kept = keep("mlx")

    async def story() -> None:
        kept.one.begin()
        first = await kept.ready()
        os.kill(first, signal.SIGKILL)
        state = await reach(kept.one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert (state.fault.reason, state.fault.serving) == ("killed", True)
        kept.skip(10.0)
        assert await kept.ready() != first
        await kept.one.close()

    play(story(), kept.home, 200.0)


@pytest.mark.parametrize("engine", ["mlx", "llamacpp"])
def test_an_engine_that_is_stopped_in_its_tracks_is_replaced(keep: Callable[..., Kept], engine: EngineName) -> None:
    kept = keep(engine)

    async def story() -> None:
        kept.one.begin()
        first = await kept.ready()
        os.kill(first, signal.SIGSTOP)
        kept.skip(PROBE_SECONDS + 1)
        await reach(kept.one, lambda state: state.phase == "degraded")
        kept.skip(REPROBE_SECONDS + 1)
        state = await reach(kept.one, lambda state: state.phase == "backing off")
        assert state.fault is not None
        assert state.fault.reason == "hangs"
        assert not psutil.pid_exists(first)
        kept.skip(10.0)
        await kept.ready()
        await kept.one.close()

    play(story(), kept.home, 200.0)


@pytest.mark.parametrize("engine", ["mlx", "transformers"])
def test_an_engine_that_is_stopped_in_its_tracks_while_it_loads_is_a_stall(
    keep: Callable[..., Kept], engine: EngineName
) -> None:
    kept = keep(engine)

    async def story() -> None:
        kept.one.begin()
        os.kill((await engine_of(kept.one)).pid, signal.SIGSTOP)
        state = await reach(kept.one, lambda state: state.phase == "backing off", 30.0)
        assert state.fault is not None
        assert state.fault.reason == "stalled"
        await kept.one.close()

    play(story(), kept.home, 200.0)


def test_an_engine_that_is_ended_while_it_loads_leaves_nothing(keep: Callable[..., Kept]) -> None:
    kept = keep("transformers")

    async def story() -> None:
        kept.one.begin()
        await engine_of(kept.one)
        for _ in range(10):
            await asyncio.sleep(0.1)
        assert kept.one.state.phase == "loading"
        await kept.one.close()
        assert psutil.Process().children(recursive=True) == []

    play(story(), kept.home, 200.0)


@pytest.mark.parametrize("engine", ["mlx", "transformers"])
def test_a_stranger_that_has_the_port_before_the_engine_is_told_and_waited_for(
    keep: Callable[..., Kept], engine: EngineName
) -> None:
    kept = keep(engine)

    async def story() -> None:
        kept.one.begin()
        await engine_of(kept.one)
        with socket.create_server(("127.0.0.1", kept.deployment.port)):
            state = await reach(kept.one, lambda state: state.phase == "backing off", 60.0)
            assert state.fault is not None
            assert state.fault.reason == "port in use"
        kept.skip(10.0)
        await kept.ready()
        await kept.one.close()

    play(story(), kept.home, 200.0)


@pytest.mark.parametrize("engine", ["mlx", "transformers"])
def test_main_memory_that_runs_out_while_it_loads_leads_down_the_ladder(
    keep: Callable[..., Kept], engine: EngineName
) -> None:
    """The first start may have twenty megabytes more than it has when its libraries begin to be read."""
    kept = keep(engine)

    async def story() -> None:
        kept.one.begin()
        process = psutil.Process((await engine_of(kept.one)).pid)
        while process.memory_info().rss < 60 << 20:
            await asyncio.sleep(0.005)
        most_bytes = process.memory_info().vms + (20 << 20)
        process.rlimit(psutil.RLIMIT_AS, (most_bytes, most_bytes))
        state = await reach(kept.one, lambda state: state.fault is not None, 60.0)
        assert state.fault is not None
        assert state.fault.reason == "out of host memory"
        assert len(state.changes.rungs) == 1
        await kept.one.close()

    play(story(), kept.home, 200.0)


@pytest.mark.parametrize("engine", ["mlx", "llamacpp"])
def test_weights_that_are_spoilt_while_it_serves_are_made_anew(keep: Callable[..., Kept], engine: EngineName) -> None:
    kept = keep(engine)
    (kept.home / "models").unlink()  # a folder of its own

    async def story() -> None:
        kept.one.begin()
        first = await kept.ready()
        for path in (kept.home / "models").rglob("*"):
            if path.suffix in (".safetensors", ".gguf"):
                os.truncate(path, path.stat().st_size // 2)
        os.kill(first, signal.SIGKILL)
        await reach(kept.one, lambda state: state.phase == "backing off")
        kept.skip(10.0)
        await kept.ready()
        await kept.one.close()

    play(story(), kept.home, 200.0)


# --- under the daemon --------------------------------------------------------------------------------


def test_sigterm_while_a_real_engine_loads_leaves_nothing(daemon: Served) -> None:
    daemon.start()
    daemon.until(daemon.engines)
    assert daemon.stop() == 0


def test_a_real_engine_goes_with_a_killed_daemon_and_runs_again_under_the_next(daemon: Served) -> None:
    first = daemon.begin()
    daemon.kill()
    assert daemon.begin() != first
    assert len(daemon.engines()) == 1
    assert daemon.stop() == 0


def test_a_real_engine_goes_with_its_guard_and_daemon_killed_at_once(daemon: Served) -> None:
    first = daemon.begin()
    guard = psutil.Process(first).parent()
    assert guard is not None
    guard.suspend()
    daemon.kill()
    guard.kill()
    daemon.begin()
    assert [each.pid for each in daemon.engines()] != [first]
    assert len(daemon.engines()) == 1
    assert daemon.stop() == 0


def test_a_killed_guard_takes_its_engine_along_and_both_are_replaced(daemon: Served) -> None:
    first = daemon.begin()
    guard = psutil.Process(first).parent()
    assert guard is not None
    guard.kill()
    daemon.until(lambda: len(daemon.told("engine.ready")) == 2, 60.0)
    assert not psutil.pid_exists(first)
    assert len(daemon.engines()) == 1
    assert daemon.stop() == 0


def test_a_reload_leaves_a_real_engine_as_it_is(daemon: Served) -> None:
    engine = daemon.begin()
    alone = entry("a", daemon.port) + ON_MLX
    daemon.configure(alone, entry("b", free_port("127.0.0.1", 0)) + ON_MLX)
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: daemon.told("engine.ready", "b"), 60.0)
    assert daemon.engine("a") == engine
    daemon.configure(alone)
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: [each.pid for each in daemon.engines()] == [engine])
    assert daemon.stop() == 0
