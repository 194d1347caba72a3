"""The unit as it is installed, under a real systemd, with a stand-in for the daemon that behaves as it is told."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.systemd.harness import PLACE, PROGRAM, PYTHON, Systemd

UNIT = "autolaunch.service"
NVIDIA = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps/nvidia-cap1")
MANAGER = "/lib/systemd/systemd"
#: systemd's own scale, from 0 to 10.
EXPOSURE = 2.5

Stands = Callable[..., None]


@pytest.fixture
def installed(systemd: Systemd) -> Iterator[Systemd]:
    """The service as ``autolaunch service install`` writes it; removed again, state and all."""
    ended = systemd.autolaunch("service", "install")
    assert ended.returncode == 0, ended.stderr
    yield systemd
    systemd.forget(UNIT)
    systemd.run("rm", "-rf", "/etc/autolaunch", "/etc/sysusers.d/autolaunch.conf", "/etc/tmpfiles.d/autolaunch.conf")
    systemd.run("sh", "-c", "rm -rf /var/lib/autolaunch /var/cache/autolaunch")


@pytest.fixture
def stand_in(installed: Systemd) -> Stands:
    """Puts the stand-in in the daemon's place, with words for it and other settings of the unit."""

    def put(*words: str, **settings: str) -> None:
        more = "".join(f"{name}={value}\n" for name, value in settings.items())
        command = " ".join([str(PYTHON), f"{PLACE}/source/tests/systemd/stand_in.py", *words])
        installed.drop_in(UNIT, "stand-in", f"[Service]\nExecStart=\nExecStart={command}\nRestartSec=100ms\n{more}")

    return put


# --- the files ---------------------------------------------------------------------------------------


def test_verify_has_nothing_to_say_of_the_unit(installed: Systemd) -> None:
    ended = installed.run("systemd-analyze", "verify", UNIT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_verify_would_have_said_a_misspelt_directive(installed: Systemd) -> None:
    installed.drop_in(UNIT, "misspelt", "[Service]\nWatchdogSecs=1\n")
    assert "WatchdogSecs" in installed.run("systemd-analyze", "verify", UNIT).stderr


def test_the_unit_is_sandboxed_with_nvidia_devices_too(installed: Systemd) -> None:
    installed.drop_in(UNIT, "gpus", "[Service]\n" + "".join(f"DeviceAllow=/dev/{node} rw\n" for node in NVIDIA))
    ended = installed.run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ended.stdout)
    assert found is not None, ended.stderr
    assert float(found[1]) <= EXPOSURE
    assert "/dev/nvidia0:rw" in ended.stdout


def test_install_is_idempotent_and_uninstall_leaves_what_is_the_users(installed: Systemd) -> None:
    written = ("systemd/system/autolaunch.service", "sysusers.d/autolaunch.conf", "tmpfiles.d/autolaunch.conf")
    again = json.loads(installed.autolaunch("service", "install", "--json").stdout)
    assert {row["state"] for row in again["files"]} == {"same", "kept"}
    shown = json.loads(installed.autolaunch("service", "show", "--json").stdout)
    assert {row["state"] for row in shown["files"]} == {"same", "kept"}
    installed.drop_in(UNIT, "override", "[Service]\nNice=1\n")
    ended = installed.autolaunch("service", "uninstall")
    assert ended.returncode == 0, ended.stderr
    assert not any(installed.exists(f"/etc/{path}") for path in written)
    assert not installed.exists(f"/etc/systemd/system/{UNIT}.d/devices.conf")
    assert installed.exists(f"/etc/systemd/system/{UNIT}.d/override.conf")
    assert installed.exists("/etc/autolaunch/autolaunch.toml")
    assert installed.exists("/var/lib/autolaunch")
    assert "no service" in installed.autolaunch("service", "uninstall").stdout


def test_the_services_user_reads_the_keys_of_clients_whenever_they_were_made(installed: Systemd) -> None:
    path = "/etc/autolaunch/keys"
    asked = installed.autolaunch("keys", "add", "web")
    assert asked.returncode == 0, asked.stderr
    assert installed.must("stat", "--format=%U:%G %a", path).strip() == "root:autolaunch 640"
    assert installed.must("cat", path, user="autolaunch").startswith("web:sha256:")
    # As it is where they were made before there was a service.
    installed.must("chown", "root:root", path)
    installed.must("chmod", "600", path)
    assert "chgrp autolaunch" in installed.autolaunch("keys", "add", "batch").stderr
    assert installed.autolaunch("service", "install").returncode == 0
    assert installed.must("stat", "--format=%U:%G %a", path).strip() == "root:autolaunch 640"
    assert installed.autolaunch("keys", "list", user="autolaunch").stdout == "web\nbatch\n"


def test_sysusers_and_tmpfiles_take_the_files_into_an_image(systemd: Systemd) -> None:
    image = f"{PLACE}/shared/image"
    systemd.must("mkdir", "-p", image)
    written = systemd.autolaunch("service", "install", "--root", image, "--program", "/opt/autolaunch/bin/autolaunch")
    assert written.returncode == 0, written.stderr
    assert f"systemctl --root={image} enable {UNIT}" in written.stdout
    for argv in (
        ("systemd-sysusers", f"--root={image}"),
        ("systemd-tmpfiles", f"--root={image}", "--create", "autolaunch.conf"),
        ("systemctl", f"--root={image}", "--quiet", "enable", UNIT),
    ):
        ended = systemd.run(*argv)
        assert ended.returncode == 0, ended.stderr
        assert "autolaunch.conf" not in ended.stderr
    assert "autolaunch:/var/lib/autolaunch" in systemd.read(f"{image}/etc/passwd")
    assert systemd.exists(f"{image}/var/lib/autolaunch")
    assert systemd.exists(f"{image}/etc/systemd/system/multi-user.target.wants/{UNIT}")
    assert not systemd.exists(f"/etc/systemd/system/{UNIT}")


@pytest.fixture
def user(systemd: Systemd) -> Iterator[str]:
    """Somebody whose own manager runs."""
    name = "somebody"
    systemd.must("useradd", "--create-home", "--base-dir=/var/lib", name)
    folder = f"/run/user/{systemd.must('id', '-u', name).strip()}"
    systemd.must("install", "-d", f"--owner={name}", "--mode=700", "/run/user", folder)
    systemd.must("chmod", "755", "/run/user")
    unit = f"[Service]\nType=notify\nUser={name}\nDelegate=yes\nEnvironment=XDG_RUNTIME_DIR={folder}\n"
    systemd.write_unit("of-the-user.service", f"{unit}ExecStart={MANAGER} --user\n")
    systemd.systemctl("start", "of-the-user.service")
    yield name
    systemd.forget("of-the-user.service")
    systemd.run("userdel", "--remove", "--force", name)


def test_a_user_has_a_service_without_root(systemd: Systemd, user: str) -> None:
    home, runtime = f"/var/lib/{user}", f"XDG_RUNTIME_DIR=/run/user/{systemd.must('id', '-u', user).strip()}"
    of_user = ("env", f"HOME={home}", runtime)
    ended = systemd.run(*of_user, str(PROGRAM), "service", "install", "--user", user=user)
    assert ended.returncode == 0, ended.stderr
    assert f"loginctl enable-linger {user}" in ended.stdout
    unit = f"{home}/.config/systemd/user/{UNIT}"
    verified = systemd.run(*of_user, "systemd-analyze", "--user", "verify", unit, user=user)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    command = f"{PYTHON} {PLACE}/source/tests/systemd/stand_in.py child"
    systemd.write(f"{unit}.d/stand-in.conf", f"[Service]\nExecStart=\nExecStart={command}\n")
    systemctl = (*of_user, "systemctl", "--user")
    systemd.must(*systemctl, "daemon-reload", user=user)
    systemd.must(*systemctl, "start", UNIT, user=user)
    assert "all is well" in systemd.must(*systemctl, "status", UNIT, user=user)
    ended = systemd.run(*of_user, str(PROGRAM), "service", "uninstall", "--user", user=user)
    assert ended.returncode == 0, ended.stderr
    assert not systemd.exists(unit)
    assert systemd.exists(f"{home}/.config/autolaunch/autolaunch.toml")


# --- what runs ---------------------------------------------------------------------------------------


def test_the_service_is_active_only_when_it_is_ready_and_its_status_is_read(
    stand_in: Stands, installed: Systemd
) -> None:
    stand_in("late=1")
    installed.systemctl("start", "--no-block", UNIT)
    installed.wait_until(lambda: installed.status(UNIT) == "getting ready")
    assert installed.show(UNIT, "ActiveState") == "activating"
    installed.wait_for_state(UNIT, "active")
    assert installed.status(UNIT) == "all is well"
    assert "all is well" in installed.run("systemctl", "status", UNIT).stdout


def test_the_watchdog_kills_a_loop_that_hangs_and_it_is_started_again(stand_in: Stands, installed: Systemd) -> None:
    stand_in("hang=0.5", WatchdogSec="1")
    installed.systemctl("start", UNIT)
    first = installed.main_pid(UNIT)
    installed.wait_until(lambda: installed.restarts(UNIT) >= 1)
    installed.wait_until(lambda: installed.main_pid(UNIT) not in (0, first))
    assert "Watchdog timeout" in installed.journal(UNIT)


def test_a_loop_that_turns_is_not_killed(stand_in: Stands, installed: Systemd) -> None:
    stand_in(WatchdogSec="1")
    installed.systemctl("start", UNIT)
    time.sleep(2.5)
    assert installed.restarts(UNIT) == 0
    assert installed.show(UNIT, "ActiveState") == "active"


def test_a_bad_configuration_ends_in_78_without_a_restart_loop(stand_in: Stands, installed: Systemd) -> None:
    stand_in("exit=78")
    assert installed.run("systemctl", "start", UNIT).returncode != 0
    time.sleep(1)
    assert installed.show(UNIT, "ActiveState") == "failed"
    assert installed.show(UNIT, "ExecMainStatus") == "78"
    assert installed.restarts(UNIT) == 0


def test_any_other_failure_is_tried_again_and_no_start_limit_ends_that(stand_in: Stands, installed: Systemd) -> None:
    stand_in("exit=1")
    installed.run("systemctl", "start", "--no-block", UNIT)
    installed.wait_until(lambda: installed.restarts(UNIT) >= 8)
    assert installed.show(UNIT, "ActiveState") in {"activating", "deactivating"}


def test_a_daemon_that_is_killed_is_started_again_and_leaves_no_engine(stand_in: Stands, installed: Systemd) -> None:
    stand_in("child")
    installed.systemctl("start", UNIT)
    before = installed.wait_until(lambda: two if len(two := installed.processes(UNIT)) == 2 else None)
    assert before is not None
    installed.kill(UNIT, "KILL")
    installed.wait_until(lambda: installed.restarts(UNIT) == 1)
    installed.wait_for_state(UNIT, "active")
    assert not set(before) & set(installed.processes(UNIT))


def test_a_stop_is_in_order_and_within_its_bound_and_leaves_nothing(stand_in: Stands, installed: Systemd) -> None:
    stand_in("child")
    installed.systemctl("start", UNIT)
    installed.wait_until(lambda: len(installed.processes(UNIT)) == 2)
    before = time.monotonic()
    installed.systemctl("stop", UNIT)
    assert time.monotonic() - before < 10
    assert installed.show(UNIT, "Result") == "success"
    assert installed.show(UNIT, "ActiveState") == "inactive"
    assert installed.processes(UNIT) == ()
    assert "stopped in order" in installed.journal(UNIT)


def test_a_reload_reaches_the_daemon_and_does_not_restart_it(stand_in: Stands, installed: Systemd) -> None:
    stand_in()
    installed.systemctl("start", UNIT)
    before = installed.main_pid(UNIT)
    installed.systemctl("reload", UNIT)
    installed.wait_until(lambda: installed.status(UNIT) == "read again 1 times")
    installed.wait_for_state(UNIT, "active")
    assert installed.main_pid(UNIT) == before


def test_the_sandbox_lets_an_engine_work_and_nothing_beyond(stand_in: Stands, installed: Systemd) -> None:
    secret = "hf_sentinel_of_the_test"  # noqa: S105 - a sentinel
    installed.write("/etc/hub-token", secret, mode=0o600)
    installed.write("/tmp/of-the-host", "")  # noqa: S108 - the tests' own /tmp
    ended = installed.autolaunch("service", "install", "--hub-token-file", "/etc/hub-token")
    assert ended.returncode == 0, ended.stderr
    stand_in("look")
    installed.systemctl("start", UNIT)
    (line,) = [line for line in installed.journal(UNIT).splitlines() if line.startswith("{") and "netlink" in line][-1:]
    found = json.loads(line)
    must_not = {
        "packet",
        "writes /usr",
        "writes /etc",
        "sees /root",
        "is watched by name",
        "tmp of the host",
        "disk",
    }
    assert found.pop("token") == secret
    assert {name for name, able in found.items() if not able} == must_not
    assert secret not in installed.run("systemctl", "cat", UNIT).stdout
    assert secret not in installed.run("systemctl", "show", UNIT).stdout


def test_a_device_is_opened_only_if_it_is_allowed(stand_in: Stands, installed: Systemd) -> None:
    # A node of the tests' own that is open to everybody, for a device that every kernel has and no service needs.
    node, of_host = "/run/a-device", "/dev/fuse"
    installed.run("mknod", "--mode=666", node, "c", "10", "229")
    if not installed.exists(of_host) or installed.run("sh", "-c", f": <> {node}").returncode != 0:
        pytest.skip("there is no device here to try it with")
    stand_in(f"open={node}")
    installed.systemctl("start", UNIT)
    installed.wait_until(lambda: "opens it: False" in installed.journal(UNIT))
    installed.drop_in(UNIT, "devices-too", f"[Service]\nDeviceAllow={of_host} rw\n")
    installed.systemctl("restart", UNIT)
    installed.wait_until(lambda: "opens it: True" in installed.journal(UNIT))
