"""The service as it is installed, with the true daemon in it, which keeps a miniature on a real engine."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from autolaunch import api
from engines.base import planned_package
from engines.environments import Environments, trust
from selector.catalog import Catalog
from selector.request import Pins
from tests.integration.conftest import HOME as ENGINES_HOME
from tests.systemd.harness import PROGRAM, PYTHON, Systemd, why_not

UNIT = "autolaunch.service"
CONFIGURATION = "/etc/autolaunch/autolaunch.toml"
STATE = "/var/lib/autolaunch"
#: A model of some megabytes, on two cores that others use as well.
LOAD_SECONDS = 90.0
TOKEN = "hf_sentinel_of_the_test"  # noqa: S105 - a sentinel
#: The environment of every process of the daemon.
#: Somebody else, whom every system has, with a group of the same name.
OTHER = "daemon"
OURS = ("env", f"AUTOLAUNCH_HOME={STATE}")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Place(NamedTuple):
    """What of the host is seen inside, at its own place."""

    environments: Path
    #: With an interpreter that only root may change, as the daemon asks of it.
    binds: tuple[tuple[Path, Path], ...]
    #: What the service's sandbox would hide.
    shown: tuple[Path, ...]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The environment of the engine, made once a machine, and the interpreter that it was made with."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    report = msgspec.structs.replace(api.probe(), accelerators=(), links=())
    chosen = api.plan("glm-tiny", hardware=report, pins=Pins(engine="mlx")).chosen
    assert chosen is not None
    root = (ENGINES_HOME / "engines").resolve()
    made = Environments(root).ensure(*planned_package(Catalog().engine("mlx"), chosen.engine))
    interpreter = (made.bin_directory / "python").resolve()
    python = interpreter.parent.parent
    binds = [(root, root)]
    hidden = [each for each in (root, python) if each.parts[1] in ("root", "home", "tmp", "var", "run")]
    if python in hidden:
        binds.append((python, python))
    if trust.complaint((interpreter,)) is not None:
        safe = tmp_path_factory.mktemp("interpreter") / "python"
        shutil.copyfile(interpreter, safe)
        safe.chmod(0o755)
        binds.append((safe, interpreter))
    return Place(root, tuple(binds), tuple(hidden))


@pytest.fixture(scope="module")
def machine(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    running = Systemd(Path(tmp_path_factory.mktemp("systemd")), place.binds)
    yield running
    running.stop()


class Kept:
    """The service, its configuration, and the engines that it has."""

    def __init__(self, systemd: Systemd) -> None:
        self.systemd = systemd
        self.port, self.other_port, self.gateway_port = _free_port(), _free_port(), _free_port()

    def configure(self, *deployments: str) -> None:
        told = "".join(f"[[deployments]]\n{each}\n" for each in deployments)
        self.systemd.write(CONFIGURATION, f"schema = 1\ngateway.port = {self.gateway_port}\n{told}")

    @property
    def one(self) -> str:
        return f'model = "glm-tiny"\nport = {self.port}'

    @property
    def other(self) -> str:
        return f'model = "glm-tiny"\nname = "second"\nport = {self.other_port}'

    @property
    def status(self) -> str:
        return self.systemd.status(UNIT)

    @property
    def main_pid(self) -> int:
        return self.systemd.main_pid(UNIT)

    def start(self) -> None:
        self.systemd.systemctl("start", UNIT)

    def wait_for(self, said: str) -> str:
        """Until the status has ``said`` in it."""
        self.systemd.wait_until(lambda: said in self.status, seconds=LOAD_SECONDS)
        return self.status

    def serve(self) -> int:
        """Until the model is served; gives its engine's id. One that is served already stays as it is."""
        self.start()
        self.wait_for("glm-tiny ready")
        (engine,) = self.engines()
        return engine

    def engines(self, port: int | None = None) -> tuple[int, ...]:
        """The engines' main processes in the whole machine, in the unit or not, for one port or for all."""
        listed = self.systemd.must("ps", "-e", "-o", "pid=").split()
        words = {int(pid): self.systemd.process(int(pid))[0].split("\0") for pid in listed}
        return tuple(
            pid
            for pid, argv in words.items()
            if any(each.endswith("python_server.py") for each in argv)
            and not any(each.endswith("guard.py") for each in argv)
            and (port is None or str(port) in argv)
        )

    def answer(self, user: str, port: int | None = None) -> str:
        """What the model says to ``user``, asked inside."""
        ended = self.systemd.run(str(PYTHON), "-c", _ASK, str(port or self.port), user=user)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()


#: Prints what the model says.
_ASK = """
import http.client, json, sys
asked = {"model": sys.argv[2] if len(sys.argv) > 2 else "glm-tiny", "max_tokens": 4}
asked["messages"] = [{"role": "user", "content": "hello"}]
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
answer = connection.getresponse()
content = json.loads(answer.read())
assert answer.status == 200, content
print(content["usage"]["completion_tokens"])
"""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def installed(machine: Systemd, place: Place) -> Kept:
    """The service as ``autolaunch service install`` writes it, with a token, and a drop-in for where the tests are."""
    machine.write("/etc/hub-token", TOKEN, mode=0o600)
    ended = machine.autolaunch("service", "install", "--model", "glm-tiny", "--hub-token-file", "/etc/hub-token")
    assert ended.returncode == 0, ended.stderr
    shown = "".join(f"BindReadOnlyPaths={each}\n" for each in place.shown)
    # No uv is in reach: the environment is there. The watchdog and the pause are shorter than a person's.
    machine.drop_in(
        UNIT,
        "tests",
        f"[Service]\n{shown}ProtectHome=tmpfs\nEnvironment=AUTOLAUNCH_SHARED={place.environments}\n"
        "Environment=PATH=/usr/bin:/bin\nRestartSec=100ms\nWatchdogSec=6\n",
    )
    return Kept(machine)


@pytest.fixture
def kept(installed: Kept) -> Kept:
    """The service with one deployment. It may run from the test before: a load takes longer than most tests."""
    installed.configure(installed.one)
    installed.systemd.forget_the_journal()
    return installed


@pytest.fixture
def stopped(kept: Kept) -> Kept:
    """The service before its first start, but for the weights, which are made once."""
    end(kept)
    return kept


def end(kept: Kept) -> None:
    systemd = kept.systemd
    systemd.run("systemctl", "stop", UNIT)
    systemd.run("systemctl", "reset-failed", UNIT)
    systemd.run("sh", "-c", f"rm -rf {STATE}/daemon {STATE}/learned.sqlite3*")
    systemd.forget_the_journal()


# --- ready ---------------------------------------------------------------------------------------------


LEFT = "autolaunch-test-left.service"
#: Writes the state of a daemon whose engine is still there: its id and mark are the arguments.
_LEAVE = """
import sys
from pathlib import Path
from autolaunch.daemon.deployment import Kept, KeptDeployment, KeptRun
from autolaunch.daemon.state_file import StateFile, boot_id
from autolaunch.daemon.survivors import started_at
pid, mark = int(sys.argv[1]), sys.argv[2]
run = KeptRun(mark=mark, guard_pid=0, guard_started=0.0, engine_pid=pid, engine_started=started_at(pid))
kept = Kept(boot_id=boot_id(), deployments={"glm-tiny": KeptDeployment(run=run)})
Path(sys.argv[3]).mkdir(mode=0o700, exist_ok=True)
said = StateFile(Path(sys.argv[3]) / "state.json").write(kept)
assert said is None, said
"""


def test_it_is_active_when_it_has_looked_around_and_long_before_the_model_serves(stopped: Kept) -> None:
    systemd = stopped.systemd
    mark = "0123456789abcdef0123456789abcdef"
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    unit = f"[Service]\nUser=autolaunch\nEnvironment=AUTOLAUNCH_RUN={mark}\nExecStart={PYTHON} -c '{stubborn}'\n"
    systemd.write_unit(LEFT, unit)
    systemd.systemctl("start", LEFT)
    pid = systemd.main_pid(LEFT)
    systemd.wait_until(lambda: "sleep" in systemd.process(pid)[0])
    time.sleep(0.3)  # it has to come to ignore the signal
    systemd.must(str(PYTHON), "-c", _LEAVE, str(pid), mark, f"{STATE}/daemon", user="autolaunch")

    systemd.systemctl("start", "--no-block", UNIT)
    stopped.wait_for("looking for what an earlier daemon left")
    assert systemd.show(UNIT, "ActiveState") == "activating"
    assert stopped.engines() == ()
    stopped.systemd.kill(UNIT, "HUP")  # a reload now waits its turn, and starts nothing twice
    systemd.wait_for_state(UNIT, "active")
    assert " ready at " not in stopped.status
    assert stopped.status.startswith("glm-tiny ")
    assert systemd.process(pid) == ("", "")
    stopped.serve()
    told = systemd.journal(UNIT)
    assert told.index("event=daemon.ready") < told.index("event=configuration.read")
    assert "ending them" in systemd.journal(UNIT, "--priority=warning")
    assert systemd.journal(UNIT, "--priority=err") == ""
    assert 'Status: "glm-tiny ready"' in systemd.run("systemctl", "status", UNIT).stdout
    systemd.forget(LEFT)


def test_the_model_answers_the_services_user_and_others(kept: Kept) -> None:
    kept.serve()
    assert [kept.answer(user) for user in ("autolaunch", OTHER)] == ["4", "4"]


def test_no_engine_has_what_is_its_keepers_and_no_process_a_token(kept: Kept) -> None:
    engine = kept.serve()
    processes = kept.systemd.processes(UNIT)
    assert engine in processes
    told = {pid: kept.systemd.process(pid) for pid in processes}
    of_engine = {line.partition("=")[0] for line in told[engine][1].split("\0")}
    not_its = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "CREDENTIALS_", "HF_TOKEN")
    assert [name for name in of_engine if name.startswith(not_its)] == []
    assert "AUTOLAUNCH_RUN" in of_engine
    for words, environment in told.values():
        assert TOKEN not in words + environment
    assert TOKEN not in kept.systemd.journal(UNIT, output="json") + kept.systemd.systemctl("show", UNIT)
    assert kept.systemd.run("grep", "-rl", TOKEN, STATE, "/etc/systemd", "/var/cache/autolaunch").stdout == ""


def test_a_second_daemon_is_refused_and_told_of_the_first(kept: Kept) -> None:
    engine = kept.serve()
    second = (*OURS, str(PROGRAM), "serve", "--config", CONFIGURATION)
    for user in ("autolaunch", None):
        ended = kept.systemd.run(*second, user=user)
        assert ended.returncode == 5, ended.stderr
        assert f"a daemon runs already: process {kept.main_pid}, since " in ended.stderr
    assert kept.engines() == (engine,)


def test_each_line_has_the_priority_of_what_it_tells(kept: Kept) -> None:
    kept.serve()
    kept.systemd.systemctl("reload", UNIT)
    kept.systemd.wait_until(lambda: "configuration.read" in kept.systemd.journal(UNIT))
    priorities = {"error": "3", "warning": "4", "notice": "5", "info": "6", "debug": "7"}
    of_ours = [json.loads(line) for line in kept.systemd.journal(UNIT, output="json").splitlines()]
    told = [each for each in of_ours if each["_COMM"] != "systemd"]
    assert told
    for each in told:
        found = re.match(r"level=(\w+) ", each["MESSAGE"])
        assert found is not None, each["MESSAGE"]
        assert each["PRIORITY"] == priorities[found[1]]


# --- what breaks -----------------------------------------------------------------------------------------


def test_a_daemon_that_is_killed_is_recovered_with_exactly_one_engine(kept: Kept) -> None:
    engine, main, before = kept.serve(), kept.main_pid, kept.systemd.restarts(UNIT)
    kept.systemd.kill(UNIT, "KILL")
    kept.systemd.wait_until(lambda: kept.systemd.restarts(UNIT) == before + 1)
    kept.systemd.wait_until(lambda: kept.main_pid not in (0, main))
    assert kept.serve() != engine
    assert kept.answer(OTHER) == "4"


def test_a_loop_that_hangs_is_killed_and_recovered_with_exactly_one_engine(kept: Kept) -> None:
    engine, main, before = kept.serve(), kept.main_pid, kept.systemd.restarts(UNIT)
    began = time.monotonic()
    kept.systemd.kill(UNIT, "STOP")
    kept.systemd.wait_until(lambda: kept.systemd.restarts(UNIT) == before + 1)
    assert time.monotonic() - began < 10
    kept.systemd.wait_until(lambda: kept.main_pid not in (0, main))
    assert kept.serve() != engine
    assert "Watchdog timeout" in kept.systemd.journal(UNIT)


def test_an_engine_that_is_killed_is_the_daemons_to_start_again(kept: Kept) -> None:
    engine, main, before = kept.serve(), kept.main_pid, kept.systemd.restarts(UNIT)
    kept.systemd.must("kill", "-KILL", str(engine))
    kept.systemd.wait_until(lambda: " ready at " not in kept.status)
    assert kept.serve() != engine
    assert (kept.main_pid, kept.systemd.restarts(UNIT)) == (main, before)
    assert kept.answer(OTHER) == "4"
    assert "SIGKILL" in kept.systemd.journal(UNIT, "--priority=warning")


def test_a_reload_takes_a_deployment_in_and_a_wrong_one_keeps_what_was(kept: Kept) -> None:
    systemd, first, main = kept.systemd, kept.serve(), kept.main_pid
    before = systemd.restarts(UNIT)
    kept.configure(kept.one, kept.other)
    systemd.systemctl("reload", UNIT)
    kept.wait_for("glm-tiny ready; second ready")
    assert kept.engines(kept.port) == (first,)
    (second,) = kept.engines(kept.other_port)
    systemd.must(str(PYTHON), "-c", _ASK, str(kept.other_port), "second", user=OTHER)

    systemd.forget_the_journal()
    kept.configure(kept.one, kept.other.replace("port", "prot"))
    systemd.systemctl("reload", UNIT)
    told = "deployments[1].prot: unknown key, did you mean 'port'?"
    kept.wait_for(told)
    systemd.wait_for_state(UNIT, "active")
    assert "the old configuration holds" in kept.status
    (error,) = systemd.journal(UNIT, "--priority=err").splitlines()
    assert told in error
    assert set(kept.engines()) == {first, second}

    kept.configure(kept.one)
    systemd.systemctl("reload", UNIT)
    systemd.wait_until(lambda: kept.status == "glm-tiny ready")
    systemd.wait_until(lambda: kept.engines() == (first,))
    assert (kept.main_pid, systemd.restarts(UNIT)) == (main, before)


# --- stop ------------------------------------------------------------------------------------------------


def stop(kept: Kept) -> None:
    """Stops it, which has to be in order and to leave nothing."""
    systemd = kept.systemd
    began = time.monotonic()
    systemd.systemctl("stop", UNIT)
    assert time.monotonic() - began < 25
    assert systemd.show(UNIT, "ActiveState") == "inactive"
    assert systemd.show(UNIT, "Result") == "success"
    assert systemd.processes(UNIT) == ()
    assert kept.engines() == ()
    assert "SIGKILL" not in systemd.journal(UNIT)
    assert systemd.journal(UNIT, "--priority=err") == ""


def test_a_stop_of_a_model_that_serves_is_in_order(kept: Kept) -> None:
    kept.serve()
    stop(kept)
    assert "event=daemon.stopped" in kept.systemd.journal(UNIT)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.4])
def test_a_stop_before_anything_is_said_is_in_order(stopped: Kept, seconds: float) -> None:
    stopped.systemd.systemctl("start", "--no-block", UNIT)
    time.sleep(seconds)
    stop(stopped)


@pytest.mark.parametrize("said", ["looking at the machine|glm-tiny", "preparing|loading|ready", "loading|ready"])
def test_a_stop_is_in_order_at_any_moment_of_a_start(stopped: Kept, said: str) -> None:
    stopped.systemd.systemctl("start", "--no-block", UNIT)
    # The moment, or what comes after it: it may be over before it is seen.
    stopped.systemd.wait_until(lambda: re.search(said, stopped.status))
    stop(stopped)


# --- the configuration -----------------------------------------------------------------------------------


def test_a_configuration_that_is_wrong_ends_in_78_and_is_not_tried_again(stopped: Kept) -> None:
    systemd = stopped.systemd
    stopped.configure(stopped.one.replace("model", "modle"))
    assert systemd.run("systemctl", "start", UNIT).returncode != 0
    time.sleep(1)
    assert {name: systemd.show(UNIT, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")} == {
        "ActiveState": "failed",
        "ExecMainStatus": "78",
        "NRestarts": "0",
    }
    told = f"{CONFIGURATION}: deployments[0].modle: unknown key, did you mean 'model'?"
    errors = [json.loads(line) for line in systemd.journal(UNIT, "--priority=err", output="json").splitlines()]
    assert [each["MESSAGE"] for each in errors if each["_COMM"] != "systemd"] == [f"autolaunch: {told}"]
    assert {each["PRIORITY"] for each in errors} == {"3"}
    assert told in systemd.run("systemctl", "status", UNIT).stdout


def test_a_service_without_a_model_says_what_it_lacks(stopped: Kept) -> None:
    systemd = stopped.systemd
    systemd.must("rm", CONFIGURATION)
    refused = systemd.autolaunch("service", "install", "--now")
    assert refused.returncode == 2
    assert "there is nothing to start yet: no model is named in" in refused.stderr
    installed = systemd.autolaunch("service", "install")
    assert f"before it is started, name a model in {CONFIGURATION}" in " ".join(installed.stdout.split())
    assert systemd.run("systemctl", "enable", "--now", UNIT).returncode != 0
    assert systemd.show(UNIT, "NRestarts") == "0"
    shown = systemd.run("systemctl", "status", UNIT).stdout
    assert f"{CONFIGURATION}: deployments: there is none to keep up" in shown
    assert "hint: a line [[deployments]], and below it model =" in shown


def test_one_whose_engine_is_gone_is_told_and_the_others_are_started(stopped: Kept) -> None:
    stopped.configure(stopped.one, f'{stopped.other}\nengine_path = "/opt/gone"')
    stopped.start()
    stopped.wait_for("; second failed: ")
    stopped.systemd.wait_until(lambda: stopped.engines() != ())
    assert re.match("glm-tiny (loading|ready)", stopped.status)
    (error,) = stopped.systemd.journal(UNIT, "--priority=err").splitlines()
    assert "deployment=second" in error
    assert "/opt/gone" in error
    assert stopped.systemd.restarts(UNIT) == 0
