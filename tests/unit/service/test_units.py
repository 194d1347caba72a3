"""What stands in the files of a service, whatever is in the paths of a host."""

from __future__ import annotations

import plistlib
import re
import shlex
import tomllib
from configparser import ConfigParser
from pathlib import Path

import msgspec
import pytest

from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.process import GRACE_SECONDS
from autolaunch.service.devices import Devices, find_devices
from autolaunch.service.launchd import THROTTLE_SECONDS, launchd_files
from autolaunch.service.setup import MARK, STOP_SECONDS, Setup, checked, example_configuration
from autolaunch.service.systemd import DEVICES_PATH, SYSUSERS_PATH, TOKEN_PATH, UNIT_PATH, system_files, user_files
from autolaunch.unit_files import unit_word
from selector.errors import UsageError

SETUP = Setup(
    program=("/opt/autolaunch/bin/autolaunch",),
    configuration=Path("/etc/autolaunch/autolaunch.toml"),
    search_path=("/opt/uv", "/usr/bin"),
    devices=Devices(nodes=("/dev/nvidia0", "/dev/nvidiactl"), groups=("render", "video")),
)


def text(setup: Setup, path: Path) -> str:
    (found,) = [file.text for file in system_files(setup) if file.path == path]
    return found


def settings(unit: str) -> dict[str, list[str]]:
    """Every setting of a unit file with its values, whatever section it is in."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and line[0] not in "#[":
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_says_what_was_decided() -> None:
    found = settings(text(SETUP, UNIT_PATH))
    decided = {
        "Type": "notify",
        "NotifyAccess": "main",
        "ExecStart": "/opt/autolaunch/bin/autolaunch serve --config /etc/autolaunch/autolaunch.toml",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillMode": "mixed",
        "OOMPolicy": "continue",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "78",
        "SuccessExitStatus": "143",
        "TimeoutAbortSec": "5",
        "StartLimitIntervalSec": "0",
        "WatchdogSec": "30",
        "User": "autolaunch",
        "StateDirectory": "autolaunch",
        "RuntimeDirectory": "autolaunch",
        "CacheDirectory": "autolaunch",
        "LimitMEMLOCK": "infinity",
        "TasksMax": "infinity",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
    }
    assert {name: found[name] for name in decided} == {name: [value] for name, value in decided.items()}
    assert "PATH=/opt/uv:/usr/bin" in found["Environment"]
    assert "AUTOLAUNCH_HOME=/var/lib/autolaunch" in found["Environment"]


def test_nothing_stands_in_the_unit_that_engines_could_not_live_with() -> None:
    forbidden = {
        "MemoryDenyWriteExecute",
        "PrivateNetwork",
        "PrivateDevices",
        "PrivateUsers",
        "ProcSubset",
        "IPAddressDeny",
    }
    assert forbidden & set(settings(text(SETUP, UNIT_PATH))) == set()


def test_what_systemd_252_does_not_know_is_not_asked_of_it() -> None:
    later = {"RestartSteps", "RestartMaxDelaySec", "MemoryZSwapMax", "PrivatePIDs"}
    for file in (*system_files(SETUP), *user_files(msgspec.structs.replace(SETUP, home=Path("/home/ann")))):
        assert later & set(settings(file.text if file.path.suffix == ".service" else "")) == set()


def test_the_daemon_has_the_time_that_its_engines_need_to_stop() -> None:
    assert STOP_SECONDS > GRACE_SECONDS + 15
    assert settings(text(SETUP, UNIT_PATH))["TimeoutStopSec"] == [str(STOP_SECONDS)]


@pytest.mark.parametrize(
    ("program", "configuration", "home"),
    [
        ("/opt/a/bin/autolaunch", "/etc/a.toml", "yes"),
        ("/home/ann/venv/bin/autolaunch", "/etc/a.toml", "read-only"),
        ("/opt/a/bin/autolaunch", str(Path("/root", "a.toml")), "read-only"),
        ("/homes/a/bin/autolaunch", "/etc/a.toml", "yes"),
    ],
)
def test_homes_are_hidden_unless_the_service_lies_in_one(program: str, configuration: str, home: str) -> None:
    setup = msgspec.structs.replace(SETUP, program=(program,), configuration=Path(configuration))
    assert settings(text(setup, UNIT_PATH))["ProtectHome"] == [home]


def test_only_the_devices_that_are_there_are_allowed() -> None:
    assert settings(text(SETUP, DEVICES_PATH)) == {
        "DevicePolicy": ["closed"],
        "DeviceAllow": ["/dev/nvidia0 rw", "/dev/nvidiactl rw"],
    }
    none = msgspec.structs.replace(SETUP, devices=Devices())
    assert settings(text(none, DEVICES_PATH)) == {"DevicePolicy": ["closed"]}


def test_the_user_is_in_the_groups_that_own_devices_and_in_no_other() -> None:
    lines = [line for line in text(SETUP, SYSUSERS_PATH).splitlines() if line and not line.startswith("#")]
    assert lines == [
        'u autolaunch - "autolaunch" /var/lib/autolaunch',
        "m autolaunch render",
        "m autolaunch video",
    ]
    none = msgspec.structs.replace(SETUP, devices=Devices())
    assert "\nm " not in text(none, SYSUSERS_PATH)


def test_a_token_is_named_by_its_file_and_only_when_there_is_one(tmp_path: Path) -> None:
    secret = "hf_sentinel"  # noqa: S105 - a sentinel
    file = tmp_path / "token 100%"
    file.write_text(secret)
    setup = msgspec.structs.replace(SETUP, hub_token_file=file)
    assert settings(text(setup, TOKEN_PATH)) == {"LoadCredential": [f"hf-token:{tmp_path}/token 100%%"]}
    job = launchd_files(msgspec.structs.replace(setup, home=tmp_path))
    assert all(secret not in each.text for each in (*system_files(setup), *user_files(setup), *job))
    assert TOKEN_PATH not in {each.path for each in system_files(SETUP)}


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("/opt/a-b_c/autolaunch", '"/opt/a-b_c/autolaunch"'),
        ("/opt/a b/autolaunch", '"/opt/a b/autolaunch"'),
        ("/opt/100%", '"/opt/100%%"'),
        ('/opt/"x"', '"/opt/\\"x\\""'),
        ("/opt/$HOME", '"/opt/$$HOME"'),
        ("/opt/a\\b", '"/opt/a\\\\b"'),
        ("/opt/;", '"/opt/;"'),
        ("", '""'),
    ],
)
def test_a_path_is_one_word_of_a_command_whatever_is_in_it(argument: str, word: str) -> None:
    assert unit_word(argument, command=True) in {word, word.strip('"')}
    # Read back as systemd does, but for its own signs.
    (read,) = shlex.split(unit_word(argument, command=True))
    assert read.replace("%%", "%").replace("$$", "$") == argument


def test_a_dollar_stands_for_itself_outside_of_commands() -> None:
    assert unit_word("PATH=/a b/$x") == '"PATH=/a b/$x"'


@pytest.mark.parametrize("path", ["relative/autolaunch", "/opt/a\nExecStartPre=/bin/evil", "/opt/\x1b[31m"])
def test_a_path_that_cannot_stand_in_a_file_of_lines_is_refused(path: str) -> None:
    for changed in ({"program": (path,)}, {"configuration": Path(path)}, {"hub_token_file": Path(path)}):
        with pytest.raises(UsageError):
            checked(msgspec.structs.replace(SETUP, **changed))
    assert checked(SETUP) == SETUP


def test_what_the_service_could_not_run_or_see_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has a \$ in it"):
        checked(msgspec.structs.replace(SETUP, program=("/opt/a$b/autolaunch",)))
    hidden = msgspec.structs.replace(SETUP, configuration=Path("/tmp/autolaunch.toml"))  # noqa: S108 (nothing is written there)
    with pytest.raises(UsageError, match="does not see"):
        checked(hidden)
    assert checked(msgspec.structs.replace(hidden, home=Path("/home/ann"))), "a user's own is not confined so"


def test_every_file_begins_with_whose_it_is() -> None:
    at_home = msgspec.structs.replace(SETUP, home=Path("/home/ann"), hub_token_file=Path("/t"))
    for file in (*system_files(at_home), *user_files(at_home), *launchd_files(at_home)):
        assert MARK in file.text[:400]


def test_a_users_unit_asks_for_nothing_that_needs_root() -> None:
    (unit,) = user_files(msgspec.structs.replace(SETUP, home=Path("/home/ann")))
    assert unit.path == Path("/home/ann/.config/systemd/user/autolaunch.service")
    found = settings(unit.text)
    of_root = {"User", "Group", "CapabilityBoundingSet", "ProtectSystem", "PrivateTmp", "ProtectHome", "StateDirectory"}
    assert of_root & set(found) == set()
    assert found["WantedBy"] == ["default.target"]
    assert "AUTOLAUNCH_HOME" not in unit.text
    assert found["NoNewPrivileges"] == ["yes"]


def test_a_unit_is_a_file_of_sections() -> None:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # typeshed has it as a method
    parser.read_string(text(SETUP, UNIT_PATH))
    assert parser.sections() == ["Unit", "Service", "Install"]


# --- launchd -----------------------------------------------------------------------------------------


def test_a_users_job_on_a_mac_is_kept_alive_but_does_not_spin() -> None:
    (file,) = launchd_files(msgspec.structs.replace(SETUP, home=Path("/Users/ann")))
    job = plistlib.loads(file.text.encode())
    assert file.path == Path("/Users/ann/Library/LaunchAgents/autolaunch.plist")
    assert job["ProgramArguments"] == [*SETUP.program, "serve", "--config", str(SETUP.configuration)]
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["ThrottleInterval"] == THROTTLE_SECONDS
    assert job["ExitTimeOut"] == STOP_SECONDS
    assert job["StandardErrorPath"] == "/Users/ann/Library/Logs/autolaunch.log"
    assert job["EnvironmentVariables"] == {"PATH": "/opt/uv:/usr/bin"}
    assert "UserName" not in job


def test_a_macs_own_job_runs_as_somebody_and_not_as_root() -> None:
    (file,) = launchd_files(msgspec.structs.replace(SETUP, home=Path("/Users/ann"), run_as="ann"))
    assert file.path == Path("/Library/LaunchDaemons/autolaunch.plist")
    assert plistlib.loads(file.text.encode())["UserName"] == "ann"


def test_any_path_stands_in_a_job(tmp_path: Path) -> None:
    odd = "/Users/ann & bob/<venv>/bin/autolaunch"
    (file,) = launchd_files(msgspec.structs.replace(SETUP, program=(odd,), home=Path("/Users/ann & bob")))
    assert plistlib.loads(file.text.encode())["ProgramArguments"][0] == odd


# --- the configuration -------------------------------------------------------------------------------


def test_the_example_is_a_configuration_with_and_without_a_model() -> None:
    assert tomllib.loads(example_configuration()) == {"schema": 1}
    assert tomllib.loads(example_configuration("glm-tiny")) == {"schema": 1, "deployments": [{"model": "glm-tiny"}]}


def test_what_the_example_shows_is_what_a_deployment_has() -> None:
    _, _, commented = example_configuration().partition("# [[deployments]]\n")
    (deployment,) = tomllib.loads("[[deployments]]\n" + re.sub("(?m)^# ?", "", commented))["deployments"]
    shown = msgspec.convert(deployment, Deployment)
    assert (shown.model, shown.pinned.engine) == ("glm-4.6", "vllm")


def test_what_the_example_shows_of_the_gateway_is_what_it_has() -> None:
    commented = example_configuration().partition("# [gateway]\n")[2].partition("\n\n")[0]
    shown = tomllib.loads(re.sub("(?m)^# ", "", commented))
    assert set(shown) == {"host", "port", "keys_file"} <= set(GatewayOptions.__struct_fields__)
    assert (shown["port"], shown["keys_file"]) == (GatewayOptions().port, "/etc/autolaunch/keys")


# --- devices -----------------------------------------------------------------------------------------


def test_devices_are_found_by_name_in_their_order(tmp_path: Path) -> None:
    names = [
        *(f"nvidia{index}" for index in range(12)),
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-modeset",
    ]
    names += [
        "nvidia-caps/nvidia-cap1",
        "nvidia-caps/nvidia-cap2",
        "kfd",
        "dri/renderD128",
        "dri/card0",
        "sda",
        "nvme0",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_devices(
        tmp_path, is_device=Path.is_file, group_of=lambda path: "render" if "dri" in str(path) else None
    )
    assert found.groups == ("render",)
    assert found.nodes == tuple(
        f"/dev/{name}" for name in names if name not in {"nvidia-modeset", "dri/card0", "sda", "nvme0"}
    )


def test_a_file_that_is_no_device_is_none(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").symlink_to("nowhere")
    assert find_devices(tmp_path) == Devices()
    assert find_devices(tmp_path / "absent") == Devices()
