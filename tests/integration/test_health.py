"""Readiness: a token from our own process, and a clear end for everything else."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from autolaunch.daemon.health import wait_until_ready
from autolaunch.daemon.ports import Address, free_port
from autolaunch.daemon.process import EngineProcess
from engines.logs import Figures, LoadProgress, LogReader
from selector.errors import EngineStartError, PortTaken

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
Start = Callable[..., tuple[EngineProcess, Address]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(
            *arguments: str, mode: str = "ready", port: int = 0, reader: LogReader | None = None
        ) -> tuple[EngineProcess, Address]:
            address = Address(host="127.0.0.1", port=port or free_port("127.0.0.1", 0))
            argv = (sys.executable, str(FAKE), "--port", str(address.port), "--mode", mode, *arguments)
            process = EngineProcess(
                argv,
                environment=dict(os.environ),
                working_directory=tmp_path,
                grace_seconds=0.5,
                on_line=reader.feed if reader is not None else lambda _: None,
            )
            return stack.enter_context(process), address

        yield started


class Clock:
    """Time that passes only when somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 3.0
        return self.now


@pytest.mark.parametrize("mode", ["ready", "loading", "flood", "longline", "children"])
def test_ready_is_a_token_that_came_back(start: Start, mode: str) -> None:
    process, address = start(mode=mode)
    assert wait_until_ready(process, address=address, model="fake", engine="fake") < 20


def test_an_engine_that_exits_while_loading_is_told_with_its_last_lines(start: Start) -> None:
    process, address = start("--say", "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB", mode="exit")
    with pytest.raises(EngineStartError, match="exited with code 3 while loading: out of memory") as caught:
        wait_until_ready(process, address=address, model="fake", engine="fake")
    assert "Tried 2 GiB" in caught.value.__notes__[-1]
    assert caught.value.hint is not None


def test_the_reader_sees_every_line_and_knows_when_a_token_came(start: Start) -> None:
    shards = "Loading safetensors checkpoint shards:  50% Completed | 11/22 [00:11<00:11,  1.00it/s]"
    weights = "(Worker_TP0 pid=7) INFO 11-20 09:14:10 [x.py:1] Model loading took 1.50 GiB memory and 2.0 seconds"
    reader = LogReader("vllm")
    # Far more lines follow than are kept.
    process, address = start("--say", weights, "--say", shards, mode="flood", reader=reader)
    wait_until_ready(process, address=address, model="fake", engine="vllm", reader=reader)
    assert reader.figures == Figures(weights_bytes=3 * 2**29, load_seconds=2.0)
    assert reader.progress == LoadProgress(stage="weights", fraction=0.5, done=11, total=22)
    assert not reader.diagnose(("torch.OutOfMemoryError: CUDA out of memory",)).permanent, "it was serving"


def test_an_engine_that_closes_its_port_and_ends_is_no_stranger(start: Start) -> None:
    process, address = start(
        "--say", "llama_model_load: error loading model: unknown model architecture", mode="closes"
    )
    with pytest.raises(EngineStartError, match="exited with code 1 while loading: model not supported"):
        wait_until_ready(process, address=address, model="fake", engine="llamacpp")


def test_healthy_is_not_ready_when_completions_fail(start: Start) -> None:
    process, address = start(mode="refuse")
    with pytest.raises(EngineStartError, match=r"does not complete: 500 .*bfloat16 is not supported"):
        wait_until_ready(process, address=address, model="fake", engine="fake", sleep=lambda _: None)


def test_a_name_the_engine_does_not_answer_to_is_a_refusal(start: Start) -> None:
    process, address = start()
    with pytest.raises(EngineStartError, match="no model glm"):
        wait_until_ready(process, address=address, model="glm", engine="fake", sleep=lambda _: None)


@pytest.mark.parametrize("mode", ["stall", "silent"])
def test_an_engine_that_does_nothing_has_stalled(start: Start, mode: str) -> None:
    process, address = start(mode=mode)
    clock = Clock()
    with pytest.raises(EngineStartError, match="stalled"):
        wait_until_ready(
            process, address=address, model="fake", engine="fake", stall_seconds=60.0, clock=clock, sleep=lambda _: None
        )
    assert clock.now > 60


def test_a_stall_is_told_with_what_was_said_before_it_if_that_says_why(start: Start) -> None:
    process, address = start("--say", "RuntimeError: NCCL error: unhandled system error", mode="silent")
    while not process.tail():
        time.sleep(0.02)
    with pytest.raises(EngineStartError, match=r"stalled: .*: communication \(RuntimeError: NCCL error") as caught:
        wait_until_ready(
            process,
            address=address,
            model="fake",
            engine="vllm",
            stall_seconds=60.0,
            clock=Clock(),
            sleep=lambda _: None,
        )
    assert caught.value.hint is not None


class Worker:
    """A process that prints or works, and never listens."""

    def __init__(self, *, prints: int = 0, works: float = 0.0, ends_after: int) -> None:
        self.prints, self.works, self.left = prints, works, ends_after
        self.bytes, self.cpu = 0, 0.0
        self.stopping = False
        self.lines: tuple[str, ...] = ("loading shard",)

    @property
    def output_bytes(self) -> int:
        self.bytes += self.prints
        return self.bytes

    def cpu_seconds(self) -> float | None:
        self.cpu += self.works
        self.left -= 1
        self.stopping = self.left <= 0
        return self.cpu

    def poll(self) -> int | None:
        return None

    def wait(self, timeout_seconds: float) -> int | None:
        return 9

    def listens_on(self, port: int) -> bool | None:
        return False

    def tail(self, count: int = 40) -> tuple[str, ...]:
        return self.lines[-count:]


@pytest.mark.parametrize(("prints", "works"), [(10, 0.0), (0, 0.9)])
def test_output_or_work_puts_the_stall_off(prints: int, works: float) -> None:
    clock = Clock()
    with pytest.raises(EngineStartError, match="exited with code 9"):
        wait_until_ready(
            Worker(prints=prints, works=works, ends_after=200),
            address=Address(host="127.0.0.1", port=free_port("127.0.0.1", 0)),
            model="fake",
            engine="fake",
            stall_seconds=10.0,
            clock=clock,
            sleep=lambda _: None,
        )
    assert clock.now > 100


def test_a_total_holds_only_when_it_is_asked_for(start: Start) -> None:
    process, address = start(mode="silent")
    with pytest.raises(EngineStartError, match="not ready within 5 s"):
        wait_until_ready(
            process,
            address=address,
            model="fake",
            engine="fake",
            timeout_seconds=5.0,
            clock=Clock(),
            sleep=lambda _: None,
        )


def test_a_stranger_on_the_port_is_never_taken_for_ready(start: Start) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        process, address = start(mode="silent", port=stranger.getsockname()[1])
        with pytest.raises(PortTaken, match="another program answers"):
            wait_until_ready(process, address=address, model="fake", engine="fake")


ACCESS = '127.0.0.1 - - "POST /v1/chat/completions HTTP/1.1" 404 -'


@pytest.mark.parametrize(
    "line",
    [
        "KeyError: 'rope_type'",
        "ValueError: what nobody has seen is one of:",
        "ERROR: package.module.OddException: what nobody has seen",
    ],
)
def test_an_unknown_cause_is_the_last_exception_and_not_a_note_of_our_request(line: str) -> None:
    process = Worker(ends_after=1)
    process.lines = ("Traceback (most recent call last):", line, "  below", ACCESS)
    with pytest.raises(EngineStartError) as caught:
        wait_until_ready(
            process, address=Address(host="127.0.0.1", port=free_port("127.0.0.1", 0)), model="fake", engine="fake"
        )
    assert line in caught.value.message
    assert "POST" not in caught.value.message


def test_a_note_of_our_request_is_never_the_reason() -> None:
    process = Worker(ends_after=1)
    process.lines = ("what it said", ACCESS)
    with pytest.raises(EngineStartError) as caught:
        wait_until_ready(
            process, address=Address(host="127.0.0.1", port=free_port("127.0.0.1", 0)), model="fake", engine="fake"
        )
    assert caught.value.message.endswith("while loading: what it said")


def test_an_engine_on_every_address_is_asked_on_the_loopback() -> None:
    assert Address(host="0.0.0.0", port=1).base_url == "http://127.0.0.1:1/v1"  # noqa: S104
    assert Address(host="::", port=1).base_url == "http://[::1]:1/v1"
