"""Exports are what they say: manifests of the published schemas, scripts of a shell, units of systemd; and they run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from autolaunch import api
from autolaunch.exporting import ExportOptions, export
from engines import miniature
from engines.base import planned_package
from engines.environments import Environments
from engines.shims import LLAMACPP_SERVER
from engines.vllm import CPU_SITE
from selector.catalog import Catalog
from selector.contract import EngineChoice
from selector.facts import EngineName
from selector.request import Pins
from tests.clients import ran
from tests.fakes.exported import CASES, GOLDEN, planned

pytestmark = pytest.mark.integration

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"
MANIFESTS = sorted((*GOLDEN.glob("*/kubernetes/*.yaml"), *GOLDEN.glob("*/compose/*.yaml")))
SCRIPTS = sorted((*GOLDEN.glob("*/shell/*"), *GOLDEN.glob("*/slurm/*")))
BASH = shutil.which("bash") or "/bin/bash"
UNITS = sorted(GOLDEN.glob("*/systemd"))


#: Kubernetes' own kinds go to kubernetes-validate, strictly, at an older and the newest version that it has; a
#: LeaderWorkerSet to its own schema, Compose's file to the specification's, with unknown keys refused. Prints what is
#: against each file.
HOLD = '''
import json
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.30", "1.37")


def strict(node):
    """An OpenAPI schema of Kubernetes as JSON Schema that knows no other keys than its own."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: strict(value) for key, value in node.items()}
    if (
        "properties" in found
        and "additionalProperties" not in found
        and "x-kubernetes-preserve-unknown-fields" not in found
    ):
        found["additionalProperties"] = False
    return found


def main():
    schemas, files = Path(sys.argv[1]), sys.argv[2:]
    group = strict(json.loads((schemas / "leaderworkerset-v1.json").read_text()))
    # Of a resource's metadata its schema says no more than that it is an object.
    group["properties"]["metadata"] = {"type": "object"}
    compose = json.loads((schemas / "compose-spec.json").read_text())
    against = {}
    for file in files:
        told = against[file] = []
        for document in yaml.safe_load_all(Path(file).read_text()):
            if "apiVersion" not in document:
                checker = jsonschema.Draft7Validator(compose)
                told += [f"compose: {each.json_path}: {each.message[:300]}" for each in checker.iter_errors(document)]
            elif document["kind"] == "LeaderWorkerSet":
                checker = jsonschema.Draft7Validator(group)
                told += [f"lws: {each.json_path}: {each.message[:300]}" for each in checker.iter_errors(document)]
            else:
                for version in VERSIONS:
                    try:
                        kubernetes_validate.validate(document, version, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        told.append(f"{version} {document['kind']}: {error.message[:300]}")
    sys.stdout.write(json.dumps(against))


main()
'''


def held(*files: Path) -> dict[str, list[str]]:
    """What the published schemas have against manifests."""
    told: dict[str, list[str]] = ran("manifests", HOLD, str(SCHEMAS), *map(str, files))
    return told


@pytest.mark.timeout(700)  # the first one makes the environment
def test_manifests_are_of_the_published_schemas() -> None:
    assert len(MANIFESTS) == 2 * len(CASES) - 3
    assert {file: told for file, told in held(*MANIFESTS).items() if told} == {}


@pytest.mark.parametrize(
    ("golden", "right", "wrong"),
    [
        ("replicas/kubernetes", "failureThreshold", "failureTreshold"),
        ("replicas/kubernetes", "replicas: 2", "replicas: two"),
        ("nodes/kubernetes", "leaderTemplate", "leadTemplate"),
        ("nodes/kubernetes", "startupProbe", "startProbe"),
        ("replicas/compose", "shm_size", "shmsize"),
        ("replicas/compose", "condition: service_completed_successfully", "condition: done"),
    ],
)
@pytest.mark.timeout(700)
def test_the_schemas_find_a_manifest_that_is_wrong(golden: str, right: str, wrong: str, tmp_path: Path) -> None:
    (file,) = (GOLDEN / golden).iterdir()
    text = file.read_text()
    assert right in text
    (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong))
    (told,) = held(tmp_path / "wrong.yaml").values()
    assert told


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_scripts_are_ones_to_bash_and_shellcheck(script: Path) -> None:
    subprocess.run((BASH, "-n", script), check=True, timeout=20)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("bash has parsed it; shellcheck is not here (Debian's package of that name)")
    done = subprocess.run((shellcheck, script), capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("folder", UNITS, ids=lambda path: path.parent.name)
def test_systemd_has_nothing_against_the_units(folder: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    units = sorted(folder.iterdir())
    verified = subprocess.run((analyze, "verify", *units), capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")  # it exits 0 on a directive that is misspelt
    for unit in units:
        rated = subprocess.run(
            (analyze, "security", "--offline=true", "--threshold=25", unit),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert rated.returncode == 0, rated.stdout[-400:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def asked(url: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)  # noqa: S310 - the loopback
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the loopback
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def programs_of(chosen: EngineChoice, home: Path, tmp_path: Path) -> Path:
    """The folder of a real engine's programs, as somebody who runs the script would have it."""
    facts = Catalog().engine(chosen.name)
    made = Environments(home / "engines").ensure(*planned_package(facts, chosen))
    if chosen.name != "llamacpp":
        return made.bin_directory
    # The wheel holds llama-server's code and no program: under its name stands what autolaunch starts that code with.
    server = tmp_path / "programs" / "llama-server"
    server.parent.mkdir()
    server.write_text(f'#!/bin/sh\nexec "{made.bin_directory}/python" -P "{LLAMACPP_SERVER}" "$@"\n')
    server.chmod(0o755)
    return server.parent


@pytest.mark.timeout(900)  # the first one makes the environment
@pytest.mark.parametrize(  # the first two check no key, and an export with one is refused
    ("engine", "keyed"),
    [
        ("mlx", False),
        ("transformers", False),
        ("vllm", False),
        ("vllm", True),
        ("llamacpp", False),
        ("llamacpp", True),
    ],
)
def test_the_script_serves_without_autolaunch(
    engine: EngineName, keyed: bool, engines_home: Path, tmp_path: Path
) -> None:
    known = Catalog()
    decided = api.plan("glm-tiny", hardware="cpu-64gb", pins=Pins(engine=engine), known=known)
    assert decided.chosen is not None
    model = known.model("glm-tiny")
    made = miniature.checkpoint_of(model, decided.chosen.checkpoint.repo)
    weights = miniature.generate(model, tmp_path / "it's a $folder", made)
    port, key_file = free_port(), tmp_path / "the key"
    options = ExportOptions(
        model_path=str(weights), port=port, served_name="my.own-name", api_key_file=str(key_file) if keyed else None
    )
    (file,) = export(decided, "shell", options=options, catalog=known).files
    script = tmp_path / file.name
    script.write_text(file.text)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "ROOT": str(tmp_path / "root"),
        # The environments of these tests hold PyPI's torchvision beside a CPU build of PyTorch. The script's own uv
        # takes both from PyTorch's index, and they agree.
        "PYTHONPATH": str(CPU_SITE) if engine == "vllm" else "",
        "ENGINE_BIN": str(programs_of(decided.chosen.engine, engines_home, tmp_path)),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen((BASH, script), env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while asked(f"http://127.0.0.1:{port}/health")[0] != 200:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.5)  # a real engine takes its time to load
        key = key_file.read_text() if keyed else None
        body = {"model": "my.own-name", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        status, answer = asked(f"http://127.0.0.1:{port}/v1/chat/completions", body, key)
        assert status == 200, answer
        assert json.loads(answer)["usage"]["completion_tokens"] == 4
        if keyed:
            assert asked(f"http://127.0.0.1:{port}/v1/chat/completions", body)[0] == 401
            assert key_file.stat().st_mode & 0o077 == 0
    finally:
        process.terminate()
        assert process.wait(30) in (-15, 0, 143)
    # Of the paths apart, which are those of the tests, nothing speaks of it.
    told = (tmp_path / "log").read_text().replace(str(tmp_path), "").replace(str(engines_home), "")
    assert "autolaunch" not in told.replace("autolaunch--", "")


@pytest.mark.parametrize(
    "name", ["a $(touch pwned) b", "it's", '"; touch pwned; "', "a`touch pwned`b", "*", "-n", "\\ $HOME \\t"]
)
def test_bash_reads_every_value_as_one_word(name: str, tmp_path: Path) -> None:
    """Bash is the real one; a program of the engine's name writes down what it is given."""
    folder, programs, root = tmp_path / name, tmp_path / "programs", tmp_path / f"{name} root"
    for each in (folder, programs):
        each.mkdir()
    program = programs / "vllm"
    program.write_text('#!/bin/sh\npwd -P; printf "%s\\0" "$VLLM_API_KEY" "$@"\n')
    program.chmod(0o755)
    options = ExportOptions(model_path=str(folder), api_key_file=str(tmp_path / f"{name} key"), extra=("--seed", "7"))
    (file,) = export(planned("replicas"), "shell", options=options, catalog=Catalog()).files
    script = tmp_path / "script"
    script.write_text(file.text)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ROOT": str(root), "ENGINE_BIN": str(programs)}
    done = subprocess.run(
        (BASH, script, "all", "2"),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, told = done.stdout.split("\n", 1)
    key, *argv = told.rstrip("\0").split("\0")
    weights = f"{root}/weights/zai-org--GLM-4.6-FP8/glm-4.6"
    assert where == f"{root}/weights/zai-org--GLM-4.6-FP8"
    assert argv[:2] == ["serve", weights] and Path(weights).resolve() == folder.resolve()
    assert argv[argv.index("--port") + 1] == "8001" and argv[-2:] == ["--seed", "7"]
    assert len(key) == 64 and key == (tmp_path / f"{name} key").read_text()
    assert list(tmp_path.rglob("pwned")) == []
