from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("address", ["192.0.2.1", "example.invalid"])
def test_a_unit_test_cannot_leave_the_machine(address: str) -> None:
    with socket.socket() as outgoing, pytest.raises(AssertionError, match=address):
        outgoing.connect((address, 80))
    with pytest.raises(AssertionError, match=address):
        socket.getaddrinfo(address, 80)
    with socket.socket(type=socket.SOCK_DGRAM) as outgoing, pytest.raises(AssertionError, match=address):
        outgoing.sendto(b"x", (address, 80))


def test_a_unit_test_may_use_loopback_and_unix_sockets(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    name = "s"  # a relative name: the length of a UNIX socket's path is limited to about a hundred bytes
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(name)
            server.listen()
            client.connect(name)
    finally:
        os.chdir(here)


def test_a_unit_test_has_an_empty_home(home: Path) -> None:
    assert Path.home() == home
    assert list(home.iterdir()) == []
    for name in ("AUTOLAUNCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        assert Path(os.environ[name]).is_relative_to(home)


@given(st.just(1))
def test_a_property_runs_under_the_same_isolation(_: int) -> None:
    with pytest.raises(AssertionError):
        socket.getaddrinfo("example.invalid", 80)
