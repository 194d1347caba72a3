"""What the guide to a host with systemd has root type, typed as root under a real systemd."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from tests import documented
from tests.documented import Shown
from tests.systemd.harness import PROGRAM, Systemd

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

UNIT = "autolaunch.service"
GUIDE = documented.DOCS / "guides/systemd.md"
#: What is not typed here, by how it begins, and why.
LEFT_OUT = {
    "sudo python3 -m venv": "autolaunch is installed inside already, where every user can read it",
    "sudo /opt/autolaunch/bin/pip": "the same",
    "sudo ln -s": "the same",
    "sudo systemctl edit": "it opens an editor",
    "autolaunch logs --events --follow": "it has no end; without --follow it is typed in the session of the guide",
    "autolaunch logs glm-4.6 --follow": "the same",
    "journalctl": "the same",
}
#: There is no GPU and no room for GLM-4.6 here, and the daemon says so: who waits for it is told.
GIVEN_UP = "autolaunch wait"


@pytest.fixture
def host(systemd: Systemd) -> Iterator[Systemd]:
    """A host whose service sees the interpreter of the tests, wherever that lies."""
    systemd.drop_in(UNIT, "tests", f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={sys.base_prefix}\n")
    yield systemd
    systemd.forget(UNIT)
    systemd.run("sh", "-c", "rm -rf /etc/autolaunch /etc/*/autolaunch.conf /var/lib/autolaunch /var/cache/autolaunch")


def _elsewhere_than_8000(host: Systemd) -> None:
    """The network is the host's, where somebody may have that port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    host.must("sh", "-c", f"printf '[gateway]\nport = {port}\n' >> /etc/autolaunch/autolaunch.toml")


def typed_by_root() -> list[Shown]:
    blocks = [block for block in documented.blocks(GUIDE) if block.reason == "root"]
    return [shown for block in blocks for shown in documented.shown(block)]


def test_the_guide_is_right_from_its_installation_to_its_end(host: Systemd) -> None:
    done = []
    for shown in typed_by_root():
        if any(shown.typed.startswith(each) for each in LEFT_OUT):
            continue
        typed = shown.typed.removeprefix("sudo ")
        if "hub-token" in typed:
            host.must("sh", "-c", "echo hf_of_the_test > /etc/autolaunch/hub-token")
        ended = host.run("sh", "-c", f"PATH={PROGRAM.parent}:$PATH; {typed}")
        expected = {5} if typed.startswith(GIVEN_UP) else {0}
        assert ended.returncode in expected, f"{shown.where}\n{ended.stdout}{ended.stderr}{host.journal(UNIT)}"
        done.append(typed)
        if typed == "autolaunch service install --model glm-4.6":
            _elsewhere_than_8000(host)
        if typed == "systemctl enable --now autolaunch":
            assert host.show(UNIT, "ActiveState") == "active"
    assert len(done) > 10
    assert not host.exists(f"/etc/systemd/system/{UNIT}")
    assert host.exists("/etc/autolaunch/autolaunch.toml")


def test_what_is_left_out_is_in_the_guide() -> None:
    typed = [shown.typed for shown in typed_by_root()]
    assert [each for each in LEFT_OUT if not any(one.startswith(each) for one in typed)] == []
