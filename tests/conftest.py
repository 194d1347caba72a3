"""What every test gets: a home of its own, no network in unit tests, and ``--update-golden``."""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from selector.catalog import Catalog

# The machines that run this differ in speed by a factor of ten: a law is not broken by being slow to hold.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

#: Folders of ``tests/`` whose tests reach outside the process, and the marker each of them gets.
MARKED_FOLDERS = {"integration": "integration", "systemd": "integration", "packaging": "packaging", "gpu": "gpu"}

#: Variables of the person who runs the tests that would change what a probe or an engine's environment answers.
FOREIGN_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HIP_VISIBLE_DEVICES",
    "MODELSCOPE_CACHE",
    "ROCR_VISIBLE_DEVICES",
    "XDG_RUNTIME_DIR",
)


class NetworkRefused(AssertionError):
    """A unit test tried to leave the machine. Not an OSError, so that no code under test can mistake it for one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")
    parser.addoption("--record-machine", metavar="FILE", help="tests/gpu: keep this machine's report in FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        if folder in MARKED_FOLDERS:
            item.add_marker(MARKED_FOLDERS[folder])


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether the golden files are to be written (``--update-golden``) and not compared."""
    return bool(request.config.getoption("--update-golden"))


def reaches_outside(item: pytest.Item) -> bool:
    """Whether a test is one of those that start engines, build wheels or need a GPU."""
    return any(item.get_closest_marker(marker) for marker in set(MARKED_FOLDERS.values()))


# The two fixtures below take no function-scoped fixture, so that Hypothesis accepts them around its tests.


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh folder at every ``next``. (``mktemp`` for each of a thousand tests looks through all before it.)"""
    root = tmp_path_factory.mktemp("homes")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, homes: Iterator[Path]) -> Iterator[Path]:
    """An empty home for a unit test, and none of the person's own settings. Others keep the real caches.

    Every test keeps autolaunch's own state apart from the person's; an integration test that wants to share the
    environments of engines between tests sets AUTOLAUNCH_HOME itself.
    """
    folder = next(homes)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOLAUNCH_HOME", str(folder / "autolaunch"))
        patch.setenv("AUTOLAUNCH_SHARED", str(folder / "shared"))
        if not reaches_outside(request.node):
            patch.setenv("HOME", str(folder))
            for name, place in (("CACHE", ".cache"), ("CONFIG", ".config"), ("DATA", ".data"), ("STATE", ".state")):
                patch.setenv(f"XDG_{name}_HOME", str(folder / place))
            for name in FOREIGN_VARIABLES:
                patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """A unit test reaches loopback and UNIX sockets, and nothing else. (Not held for processes it starts.)"""
    if reaches_outside(request.node):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", _guarded_lookup(socket.getaddrinfo))
        yield


def _guarded(call: Any) -> Any:
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        # The address comes last in connect(address) and in sendto(data, [flags,] address).
        if self.family != socket.AF_UNIX:
            _refuse_unless_local(arguments[-1][0])
        return call(self, *arguments)

    return guarded


def _guarded_lookup(call: Any) -> Any:
    def guarded(host: Any, *arguments: Any, **options: Any) -> Any:
        _refuse_unless_local(host)
        return call(host, *arguments, **options)

    return guarded


def _refuse_unless_local(host: str | bytes | None) -> None:
    name = host.decode() if isinstance(host, bytes) else host or "localhost"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        local = name == "localhost"
    else:
        local = address.is_loopback or address.is_unspecified
    if not local:
        raise NetworkRefused(f"a unit test tried to reach {name}; give it a recorded answer or a server on loopback")


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The shipped profiles, read once."""
    return Catalog()
