"""What systemd is told, over a real socket of its kind; and that no socket ever stands in the daemon's way."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from autolaunch.daemon.notify import STATUS_CHARACTERS, Notifier, one_line


@pytest.fixture
def place() -> Iterator[str]:
    """A short path: a socket's has at most 108 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "notify")


@pytest.fixture
def listener(place: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(place)
        bound.settimeout(5)
        yield bound


@pytest.fixture
def made() -> Iterator[Callable[..., Notifier]]:
    """Makes notifiers, which are closed at the end."""
    with ExitStack() as stack:

        def make(address: str | None, **settings: Any) -> Notifier:
            return stack.enter_context(closing(Notifier(address, **settings)))

        yield make


def heard(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().splitlines()


def test_each_message_is_what_sd_notify_names(
    made: Callable[..., Notifier], place: str, listener: socket.socket
) -> None:
    notifier = made(place, clock_ns=lambda: 1_234_567_890)
    assert notifier.ready("1 of 1 ready")
    assert heard(listener) == ["READY=1", "STATUS=1 of 1 ready"]
    assert notifier.status("glm-tiny: loading")
    assert heard(listener) == ["STATUS=glm-tiny: loading"]
    assert notifier.reloading()
    assert heard(listener) == ["RELOADING=1", "MONOTONIC_USEC=1234567"]
    assert notifier.watchdog()
    assert heard(listener) == ["WATCHDOG=1"]
    assert notifier.stopping("stopping 1 engine")
    assert heard(listener) == ["STOPPING=1", "STATUS=stopping 1 engine"]
    notifier.close()
    assert not notifier.watchdog()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="abstract names are Linux's")
def test_an_abstract_name_is_reached(made: Callable[..., Notifier]) -> None:
    name = f"autolaunch-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0{name}")
        bound.settimeout(5)
        assert made(f"@{name}").ready("here")
        assert heard(bound) == ["READY=1", "STATUS=here"]


@pytest.mark.parametrize(
    "address",
    [None, "", "/nowhere/notify", "/" + "x" * 300, "@" + "x" * 300, "relative", "vsock:2:9", "/a\0b", "@", "/"],
)
def test_a_socket_that_is_absent_dead_or_bogus_neither_raises_nor_takes(
    made: Callable[..., Notifier], address: str | None
) -> None:
    notifier = made(address)
    assert not notifier.ready("ready")
    assert not notifier.status("status")
    assert not notifier.reloading()
    assert not notifier.watchdog()
    assert not notifier.stopping("stopping")
    notifier.close()


def test_a_socket_whose_owner_is_gone_neither_raises_nor_takes(
    made: Callable[..., Notifier], place: str, listener: socket.socket
) -> None:
    notifier = made(place)
    assert notifier.ready("ready")
    listener.close()
    assert not notifier.status("nobody reads")


def test_a_full_socket_does_not_block_and_what_mattered_comes_later(
    made: Callable[..., Notifier], place: str, listener: socket.socket
) -> None:
    notifier = made(place)
    filled = 0
    while notifier.status(f"filling {filled}"):
        filled += 1
        assert filled < 100_000
    assert not notifier.reloading()
    assert not notifier.watchdog()
    assert not notifier.ready("ready at last")
    for _ in range(filled):
        heard(listener)
    assert notifier.watchdog()
    # Not the reload that is over, and not the ping of another moment.
    assert sorted(heard(listener)) == ["READY=1", "STATUS=ready at last", "WATCHDOG=1"]
    assert notifier.watchdog()
    assert heard(listener) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "text", ["two\nlines\r\nREADY=1", "\x1b[31mred\x1b[0m\x07 bell", "tab\tand \x00 nul", "\u202eleft"]
)
def test_a_status_is_one_line_without_control_characters(
    made: Callable[..., Notifier], place: str, listener: socket.socket, text: str
) -> None:
    made(place).status(text)
    (line,) = heard(listener)
    assert line.startswith("STATUS=")
    assert line.isprintable()


def test_a_status_is_bounded_and_any_text_can_be_said(
    made: Callable[..., Notifier], place: str, listener: socket.socket
) -> None:
    assert len(one_line("word " * 1_000_000)) <= STATUS_CHARACTERS
    assert made(place).status("surrogate \udcff, two\twords")
    assert heard(listener) == ["STATUS=surrogate , two words"]


def test_a_status_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    assert one_line("the hub refused hf_sentinel") == "the hub refused <HF_TOKEN>"


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "7", 30.0),
        ("30000000", "8", None),
        ("30000000", "", None),
        (None, "7", None),
        ("0", None, None),
        ("-1", None, None),
        ("soon", None, None),
        ("9" * 400, None, None),
        ("٣", None, None),
    ],
)
def test_the_watchdog_is_ours_or_there_is_none(
    microseconds: str | None, pid: str | None, seconds: float | None
) -> None:
    environ = {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid, "PATH": "/bin"}
    given = {name: value for name, value in environ.items() if value is not None}
    assert Notifier.from_environment(given, pid=7).watchdog_seconds == seconds


def test_nothing_inherits_what_was_said_to_us(place: str, listener: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "1", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    with closing(Notifier.from_environment(environ)) as notifier:
        assert environ == {"PATH": "/bin"}
        assert notifier.ready("ready")
    assert heard(listener) == ["READY=1", "STATUS=ready"]


def test_without_a_keeper_there_is_nothing_to_tell() -> None:
    notifier = Notifier.from_environment({})
    assert notifier.watchdog_seconds is None
    assert not notifier.ready("ready")
