"""The daemon on GPUs: the real NVML client over the stub, real plans, real leases; a FAKE engine is started."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autolaunch.daemon.ports import free_port
from engines import miniature
from selector.catalog import Catalog
from tests.fakes.nvml.scenarios import h100, uuid
from tests.fakes.nvml.stub import Scenario, Xid
from tests.fakes.served import Served, entry
from tests.fakes.supervised import leased

MIB = 1 << 20
#: The engine that loads the miniature on NVIDIA GPUs.
ON_A_GPU = {"engine": "transformers"}
Serve = Callable[[Scenario], Served]


@pytest.fixture
def serve(library: Path, tmp_path: Path) -> Iterator[Serve]:
    """A daemon over a scenario of the stub, not started yet."""
    made: list[Served] = []

    def make(scenario: Scenario) -> Served:
        text = tmp_path / "scenario.txt"
        text.write_text(scenario.text())
        environ = {"LD_LIBRARY_PATH": str(library), "NVML_STUB_SCENARIO": str(text)}
        made.append(Served(tmp_path / "daemon", environ=environ))
        return made[-1]

    yield make
    for each in made:
        each.close()


def devices_of(pid: int) -> set[str]:
    """The devices that an engine's process was given."""
    return set(filter(None, psutil.Process(pid).environ().get("CUDA_VISIBLE_DEVICES", "").split(",")))


def gpu(place: int) -> str:
    return uuid(place).decode()


def test_two_deployments_have_devices_of_their_own_and_give_them_back(serve: Serve) -> None:
    one = serve(Scenario(gpus=(h100(0), h100(1)), numa=(0, 0)))
    ports = (one.port, free_port("127.0.0.1", 0))
    one.configure(*(entry(name, port, pinned=ON_A_GPU) for name, port in zip("ab", ports, strict=True)))
    one.start()
    one.until(lambda: len(one.told("engine.ready")) == 2)
    first, second = (devices_of(one.engine(name)) for name in "ab")
    assert first
    assert second
    assert not first & second
    assert len(leased(one.home)) == len(first | second)
    assert one.stop() == 0  # which holds that no lease is left


def large(one: Served, name: str, model: str = "glm-4.5v") -> str:
    """A model of a hundred gigabytes, with a miniature's files for its own."""
    tiny = Catalog().model("glm-tiny")
    made = next(each for each in tiny.checkpoints if each.quantization == "FP32")
    weights = miniature.generate(tiny, one.folder / "weights", made)
    return entry(name, None, model_path=str(weights)).replace("glm-tiny", model)


def eight(**changed: Any) -> Scenario:
    """Eight H100s, of which the sixth is ``changed``."""
    return Scenario(gpus=tuple(h100(place, **(changed if place == 5 else {})) for place in range(8)), numa=(0,) * 8)


def test_a_plan_of_two_replicas_is_two_engines_that_see_their_own_gpus(serve: Serve) -> None:
    one = serve(eight())
    one.configure(large(one, "a"))
    one.start()
    one.until(lambda: len(one.told("engine.ready")) == 2)
    seen = {key: devices_of(one.engine(key)) for key in ("a", "a#2")}
    assert seen == {"a": {gpu(place) for place in range(4)}, "a#2": {gpu(place) for place in range(4, 8)}}
    assert len(leased(one.home)) == 8
    assert len(one.engines()) == 2
    assert one.stop() == 0


def test_replicas_make_room_for_a_deployment_that_is_added_and_come_back_when_it_goes(serve: Serve) -> None:
    one = serve(eight())
    one.configure(large(one, "a"))
    one.start()
    one.until(lambda: len(one.told("engine.ready")) == 2)
    first = one.engine("a")
    one.configure(large(one, "a"), large(one, "b", "glm-4.5-air"))
    one.signal(signal.SIGHUP)
    one.until(lambda: one.told("engine.ready", "b"))
    assert devices_of(one.engine("b")) == {gpu(place) for place in range(4, 8)}
    assert [each["deployment"] for each in one.told("deployment.removed")] == ["a#2"]
    one.configure(large(one, "a"))
    one.signal(signal.SIGHUP)
    one.until(lambda: len(one.told("engine.ready", "a#2")) == 2)
    assert one.engine("a") == first
    assert len(one.told("engine.ready", "a")) == 1
    assert devices_of(first) == {gpu(place) for place in range(4)}
    assert one.stop() == 0


def test_the_loss_of_a_gpu_is_the_concern_of_the_replica_on_it(serve: Serve) -> None:
    one = serve(eight(xids=(Xid(79, after=6),)))
    one.configure(large(one, "a"))
    one.start()
    one.until(lambda: len(one.told("engine.ready")) == 3)
    first = one.engine("a")
    one.until(lambda: devices_of(one.engine("a#2")) < {gpu(place) for place in (4, 6, 7)})
    assert len(one.told("engine.ready", "a")) == 1
    assert devices_of(first) == {gpu(place) for place in range(4)}
    assert {each["deployment"] for each in one.told("ladder.step")} == {"a#2"}
    assert len(one.engines()) == 2
    assert one.stop() == 0


def test_a_gpu_that_is_lost_is_left_out_and_the_plan_is_made_again(serve: Serve) -> None:
    one = serve(Scenario(gpus=(h100(0, xids=(Xid(79, after=6),)), h100(1)), numa=(0, 0)))
    one.configure(entry("a", one.port, pinned=ON_A_GPU))
    first = one.begin()
    assert devices_of(first) == {gpu(0)}
    one.until(lambda: len(one.told("engine.ready")) == 2)
    one.until(lambda: one.engine("a") != first)  # the state is written a moment later
    assert devices_of(one.engine("a")) == {gpu(1)}
    (lost,) = one.told("device")
    assert "79" in lost["message"]
    (step,) = one.told("ladder.step")
    assert gpu(0) in step["message"]
    assert len(one.engines()) == 1
    assert one.stop() == 0


def test_the_loss_of_the_only_gpu_is_no_restart_loop(serve: Serve) -> None:
    one = serve(Scenario(gpus=(h100(0, xids=(Xid(79, after=4),)),), numa=(0,)))
    one.configure(entry("a", one.port, pinned={**ON_A_GPU, "gpus": [0]}))
    one.begin()
    one.until(lambda: one.told("deployment.failed"))
    (failed,) = one.told("deployment.failed")
    assert failed["reason"] == "device lost"
    one.until(lambda: one.engines() == [])  # it is told as soon as it is decided
    assert len(one.told("engine.ready")) == 1
    assert one.stop() == 0


@pytest.mark.parametrize("wait", [True, False])
def test_memory_that_others_hold_is_waited_for_or_named(serve: Serve, *, wait: bool) -> None:
    pid = os.getpid()  # ours, and none of the daemon's
    held = h100(0, memory=(81_559 * MIB, 550 * MIB, 900 * MIB), compute=((pid, 80_000 * MIB),))
    one = serve(Scenario(gpus=(held,), numa=(0,)))
    more: dict[str, Any] = {"wait_for_devices": wait, "pinned": {**ON_A_GPU, "gpus": [0]}}
    one.configure(entry("a", one.port, **more))
    one.start()
    event = "deployment.waits" if wait else "deployment.failed"
    one.until(lambda: one.told(event))
    said = one.told(event)[0]
    assert said["reason"] == "devices held"
    assert str(pid) in said["message"]
    assert one.engines() == []
    assert one.stop() == 0


def test_a_reload_that_cannot_have_its_port_leaves_everybodys_devices_as_they_are(serve: Serve) -> None:
    one = serve(Scenario(gpus=(h100(0), h100(1)), numa=(0, 0)))
    one.configure(*(entry(name, None, pinned=ON_A_GPU) for name in "ab"))
    one.start()
    one.until(lambda: len(one.told("engine.ready")) == 2)
    engine = one.engine("a")
    devices = devices_of(engine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one.configure(entry("b", None, pinned=ON_A_GPU), port=taken.getsockname()[1])
        one.signal(signal.SIGHUP)
        one.until(lambda: one.told("configuration.wrong"))
    os.kill(engine, signal.SIGKILL)
    one.until(lambda: len(one.told("engine.ready", "a")) == 2)
    one.until(lambda: one.engine("a") != engine)
    assert devices_of(one.engine("a")) == devices
    assert one.stop() == 0
