"""A launch that proved itself is kept, and launched again to the letter: by the command line, and by a daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from autolaunch import api, launch
from autolaunch.locked import read_lock, write_lock
from selector.errors import LockError, UsageError
from selector.request import Pins
from tests.fakes.served import ROOT, Served

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SENTINEL = "hf_SENTINEL0123456789"


def autolaunch(home: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    environ = {**os.environ, "AUTOLAUNCH_HOME": str(home), "HF_TOKEN": SENTINEL, "VLLM_API_KEY": SENTINEL}
    command = (sys.executable, "-m", "autolaunch", *arguments, "--json")
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=250, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def asked(base_url: str, name: str) -> str:
    """What it says at temperature 0: the first tokens."""
    body = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(  # noqa: S310 - our own gateway
        f"{base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
        said = json.loads(answer.read())["choices"][0]["message"]
    return "".join(said.get(key) or "" for key in ("reasoning", "reasoning_content", "content")).strip()


def launched(home: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Launches, asks, stops: the launch's document, and its first tokens."""
    environ = {**os.environ, "AUTOLAUNCH_HOME": str(home), "HF_TOKEN": SENTINEL, "VLLM_API_KEY": SENTINEL}
    command = (sys.executable, "-m", "autolaunch", *arguments, "--json", "--port", "0")
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        document = json.loads("".join(lines))
        assert "base_url" in document, document
        words = asked(document["base_url"], document["served_name"])
        process.send_signal(signal.SIGINT)
        process.wait(60)
    return document, words


@pytest.fixture(scope="module", params=["mlx", "llamacpp"])
def written(request: pytest.FixtureRequest, engines_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("lock") / f"{request.param}.lock"
    document, words = launched(engines_home, "glm-tiny", "--engine", request.param, "--lock", str(path))
    assert words
    document["plan"]["engine"]["installed"] = True  # perhaps by this very launch
    return path, {**document, "words": words}


def test_it_is_launched_again_to_the_letter(written: tuple[Path, dict[str, Any]], engines_home: Path) -> None:
    path, first = written
    before = path.read_bytes()
    assert SENTINEL.encode() not in before
    lock = read_lock(path)
    assert lock.engine.requirements is not None
    assert "--hash=sha256:" in lock.engine.requirements
    assert lock.files
    assert all(each.sha256 for each in lock.files)
    second, words = launched(engines_home, "--lock", str(path))
    assert second["plan"]["command"] == first["plan"]["command"]
    assert second["plan"]["limits"] == first["plan"]["limits"]
    assert second["plan"]["engine"] == first["plan"]["engine"]
    assert words == first["words"]
    assert path.read_bytes() == before, "a replay does not write it"


def test_on_other_hardware_nothing_is_started_until_it_is_planned_again(
    written: tuple[Path, dict[str, Any]], engines_home: Path, tmp_path: Path
) -> None:
    lock = read_lock(written[0])
    cpu = replace(lock.probe.host.cpu, brand="Another Processor")
    probe = replace(lock.probe, host=replace(lock.probe.host, cpu=cpu))
    other = tmp_path / "other.lock"
    write_lock(other, replace(lock, probe=probe))
    code, document, _ = autolaunch(engines_home, "--lock", str(other), "--ask", "hello")
    assert (code, document["error"]["code"]) == (3, "plan.other_hardware")
    assert "processor: Another Processor in the lock" in document["error"]["hint"]
    code, answer, said = autolaunch(engines_home, "--lock", str(other), "--ask", "hello", "--replan")
    assert code == 0, said
    assert answer["plan"]["engine"]["name"] == lock.engine.name
    anew = read_lock(other)
    assert anew.probe.host.cpu == lock.probe.host.cpu
    code, _, said = autolaunch(engines_home, "--lock", str(other), "--dry-run")
    assert code == 0, said


def test_weights_that_are_not_the_locks_are_not_served(
    written: tuple[Path, dict[str, Any]], engines_home: Path, tmp_path: Path
) -> None:
    lock = read_lock(written[0])
    first = replace(lock.files[0], sha256="0" * 64)
    path = tmp_path / "a.lock"
    write_lock(path, replace(lock, files=(first, *lock.files[1:])))
    code, document, _ = autolaunch(engines_home, "--lock", str(path), "--ask", "hello")
    assert (code, document["error"]["code"]) == (6, "download")
    assert "is not the checkpoint of the lock" in document["error"]["message"]


def test_a_program_keeps_its_launch_and_has_it_again(
    engines_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(engines_home))
    path = tmp_path / "a.lock"
    plan = api.plan("glm-tiny", pins=Pins(engine="llamacpp"))
    with launch(plan, lock=path, keyless=True) as server:
        server.wait_ready(timeout=200)
        first, words = server.candidate, asked(server.base_url, server.served_name)
        assert "lock.written" in [each.name for each in islice(server.events(), server._events.serial)]
    before = path.read_bytes()
    assert read_lock(path).engine.name == "llamacpp"
    with launch("glm-tiny", lock=path, keyless=True) as server:
        server.wait_ready(timeout=200)
        again = server.candidate
        assert (again.command, again.limits, again.engine) == (first.command, first.limits, first.engine)
        assert asked(server.base_url, server.served_name) == words
    assert path.read_bytes() == before, "a replay does not write it"
    code, document, said = autolaunch(engines_home, "--lock", str(path), "--dry-run")
    assert (code, document["chosen"]["engine"]["name"]) == (0, "llamacpp"), said
    for other in (
        "glm-tiny-v",
        api.plan("glm-tiny", context_tokens=512),
        api.plan("glm-tiny", pins=Pins(engine="mlx")),
    ):
        with pytest.raises(UsageError):
            launch(other, lock=path)
    path.write_bytes(before.replace(b'"model": "glm-tiny"', b'"model": "glm-4.6"'))
    with pytest.raises(LockError):
        launch("glm-4.6", lock=path)


@pytest.mark.parametrize("place", [".", "no/such/folder/a.lock"])
def test_where_no_lock_can_be_written_a_program_is_told_before_anything_is_fetched(tmp_path: Path, place: str) -> None:
    with pytest.raises(LockError):
        launch("glm-tiny", lock=tmp_path / place, home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.fixture
def served(tmp_path: Path, engines_home: Path) -> Iterator[Served]:
    one = Served(tmp_path, real=True)
    (one.home / "engines").symlink_to(engines_home / "engines")
    yield one
    left = one.processes()
    one.close()
    assert left == []


def test_a_daemon_replays_what_its_configuration_names(written: tuple[Path, dict[str, Any]], served: Served) -> None:
    path, first = written
    served.configuration.write_text(
        f'gateway.port = {served.gateway_port}\n[[deployments]]\nname = "a"\nlock = "{path}"\n'
    )
    served.start()
    served.until(lambda: served.told("engine.ready"), 120)
    code, document, _ = autolaunch(served.home, "status", "a")
    assert code == 0
    chosen = document["replicas"][0]["chosen"]
    assert chosen["limits"] == first["plan"]["limits"]
    assert chosen["engine"] == first["plan"]["engine"]
    assert asked(f"http://127.0.0.1:{served.gateway_port}/v1", "a") == first["words"]
    served.stop()


def test_a_lock_that_was_edited_is_a_wrong_configuration(
    written: tuple[Path, dict[str, Any]], served: Served, tmp_path: Path
) -> None:
    document = json.loads(written[0].read_text())
    document["command"]["argv"].append("--trust-remote-code")
    path = tmp_path / "edited.lock"
    path.write_text(json.dumps(document))
    served.configuration.write_text(f'[[deployments]]\nmodel = "glm-tiny"\nlock = "{path}"\n')
    process = served.start()
    assert process.wait(30) == 78
    assert "deployments[0].lock" in served.said.read_text()
    assert "command.argv" in served.said.read_text()
