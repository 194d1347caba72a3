"""The daemon's configuration: what is written is what is meant, and a fault is told by file and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autolaunch.daemon import configuration
from autolaunch.daemon.configuration import Configuration, read
from autolaunch.daemon.deployment import Deployment
from selector.catalog import Catalog
from selector.errors import ConfigurationError
from selector.request import Pins

ONE = '[[deployments]]\nmodel = "glm-4.6"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "autolaunch.toml"


def refused(path: Path, known: Catalog, text: str) -> ConfigurationError:
    path.write_text(text)
    with pytest.raises(ConfigurationError) as told:
        read(path, known)
    assert told.value.exit_code == 78
    assert told.value.message.startswith(f"{path}: ")
    return told.value


def test_a_model_alone_is_a_deployment(path: Path, catalog: Catalog) -> None:
    path.write_text(ONE)
    assert read(path, catalog) == Configuration(deployments=(Deployment(name="glm-4.6", model="glm-4.6"),))


def test_engines_take_free_ports_unless_they_are_told_one(path: Path, catalog: Catalog) -> None:
    path.write_text(ONE + ONE + 'name = "b"\nport = 8000\n' + ONE + 'name = "c"\n[gateway]\nport = 80\n')
    found = read(path, catalog)
    assert [each.port for each in found.deployments] == [None, 8000, None]
    assert (found.gateway.host, found.gateway.port) == ("127.0.0.1", 80)


def test_everything_that_is_written_is_kept(path: Path, catalog: Catalog) -> None:
    path.write_text("""\
schema = 1

[[deployments]]
name = "team/chat"
model = "zai-org/GLM-4.6-FP8"
host = "::1"
port = 8001
objective = "latency"
context_tokens = "128k"
concurrency = 16
input_tokens = 2000
output_tokens = "1k"
workload = "chat"
model_path = "/models/GLM-4.6-FP8"
engine_path = "/opt/vllm"
engine_options = ["--log-level", "DEBUG"]
offline = true
idle_seconds = 900
wait_for_devices = false
lower_accuracy = true
nodes = "auto"

[deployments.pinned]
engine = "vllm"
gpus = [0, 1, 2, 3]
memory_utilization = 0.9

[[deployments]]
model = "glm-4.5v"
port = 8002
""")
    first, second = read(path, catalog).deployments
    assert first == Deployment(
        name="team/chat",
        model="zai-org/GLM-4.6-FP8",
        host="::1",
        port=8001,
        objective="latency",
        context_tokens=131_072,
        concurrency=16,
        input_tokens=2000,
        output_tokens=1024,
        workload="chat",
        pinned=Pins(engine="vllm", gpus=(0, 1, 2, 3), memory_utilization=0.9),
        model_path=Path("/models/GLM-4.6-FP8"),
        engine_path=Path("/opt/vllm"),
        engine_options=("--log-level", "DEBUG"),
        offline=True,
        idle_seconds=900,
        wait_for_devices=False,
        lower_accuracy=True,
        nodes="auto",
    )
    assert second.name == "glm-4.5v"


FAULTS = [
    ("", "deployments: there is none"),
    ("deployments = 3", "deployments: is no list of tables"),
    ("deployments = [3]", "deployments[0]: expected `object`, got `int`"),
    (ONE + 'nodes = "head"', "deployments[0].nodes: 'head' is no address of a Ray cluster"),
    (ONE + 'nodes = "ray://head"', "deployments[0].nodes: ray://head:10001 is the way in from outside"),
    (ONE + 'nodes = "auto"\npinned = {data_parallel = 2}', "deployments[0].pinned.data_parallel: is for one host"),
    (ONE + 'nodes = "auto"\npinned = {engine = "sglang"}', "deployments[0].pinned.engine: sglang is not started"),
    ("schema = 2\n" + ONE, "schema: is '2', and this release reads 1"),
    ("deploymnets = []", "deploymnets: unknown key, did you mean 'deployments'?"),
    ('[[deployments]]\nmodle = "glm-4.6"', "deployments[0].modle: unknown key, did you mean 'model'?"),
    ("[[deployments]]\nport = 1", "deployments[0].model: missing"),
    ("[[deployments]]\nmodel = 7", "deployments[0].model: expected `str`, got `int`"),
    (
        ONE + "port = 8001\n" + ONE + '[deployments.pinned]\nengin = "vllm"',
        "deployments[1].pinned.engin: unknown key, did you mean 'engine'?",
    ),
    ('[[deployments]]\nmodel = "glm-4.7x"', "deployments[0].model: no model is called 'glm-4.7x'"),
    (ONE + 'host = "0.0.0.0"', "deployments[0].host: '0.0.0.0' would open an engine to the network"),
    (ONE + 'host = "example.org"', "deployments[0].host"),
    (ONE + "port = 0", "deployments[0].port: 0 is no port from 1 to 65535"),
    (ONE + "port = 65536", "deployments[0].port"),
    (ONE + "port = true", "deployments[0].port: expected `int | null`, got `bool`"),
    (ONE + 'name = "../x"', "deployments[0].name: '../x' cannot be a served name"),
    (ONE + 'name = "a b"', "deployments[0].name"),
    (ONE + 'context_tokens = "128 thousand"', "deployments[0].context_tokens: '128 thousand' is not a number"),
    (ONE + "context_tokens = -1", "deployments[0].context_tokens: context is -1"),
    (ONE + f"context_tokens = {10**40}", "deployments[0].context_tokens"),
    (ONE + "concurrency = 0", "deployments[0].concurrency: concurrency is 0"),
    (ONE + "idle_seconds = 0", "deployments[0].idle_seconds: 0 is no time above 0"),
    (ONE + "idle_seconds = inf", "deployments[0].idle_seconds"),
    (ONE + "idle_seconds = nan", "deployments[0].idle_seconds"),
    (ONE + 'objective = "fast"', "deployments[0].objective: invalid enum value 'fast'"),
    (ONE + 'model_path = "models/x"', "deployments[0].model_path: 'models/x' is no absolute path"),
    (ONE + 'model_path = "/a\\u0000b"', "deployments[0].model_path"),
    (ONE + "engine_path = 3", "deployments[0].engine_path: expected a path"),
    (ONE + 'engine_options = "--x"', "deployments[0].engine_options: expected `array`, got `str`"),
    (ONE + 'engine_options = ["--host", "0.0.0.0"]\npinned.engine = "vllm"', "deployments[0].engine_options: --host"),
    (ONE + 'engine_options = ["--port", "9"]', "deployments[0].engine_options: --port"),
    (ONE + 'pinned.engine = "vlm"', "deployments[0].pinned.engine: invalid enum value 'vlm', did you mean 'vllm'?"),
    (ONE + 'engine_options = ["--trust-remote-code"]', "deployments[0].engine_options: --trust-remote-code"),
    (ONE + "pinned.tensor_parallel = 0", "deployments[0].pinned.tensor_parallel: tensor parallel is 0"),
    (ONE + "pinned.memory_utilization = nan", "deployments[0].pinned.memory_utilization"),
    (ONE + 'pinned.engine_version = "0.33.0"', "deployments[0].pinned.engine_version: a version 0.33.0"),
    (ONE + "pinned.gpus = [0]\npinned.gpu_count = 1", "deployments[0].pinned: devices were pinned by index and"),
    (ONE + 'pinned.engine = "vlm"', "deployments[0].pinned.engine: invalid enum value 'vlm'"),
    (ONE + 'pinned.repo = "zai-org/GLM-4.5V"', "deployments[0].pinned: no checkpoint"),
    (ONE + 'pinned.revision = "-x"', "deployments[0].pinned.revision: '-x' is no name"),
    (
        ONE + 'pinned.hub = "auto"',
        "deployments[0].pinned.hub: invalid enum value 'auto': it is none of huggingface, modelscope",
    ),
    (ONE + 'pinned.quantization = "FP88"', "deployments[0].pinned: no quantization"),
    (ONE + 'model_path = "/m"\npinned.hub = "modelscope"', "deployments[0].pinned.hub"),
    (ONE + "input_tokens = 900000", "deployments[0]: a request of"),
    (ONE + ONE, "deployments[1].name: glm-4.6 is taken by deployments[0]"),
    (ONE + ONE + 'name = "GLM-4.6"', "deployments[1].name: GLM-4.6 is taken"),
    (
        ONE + "port = 8001\n" + ONE + 'name = "other"\nport = 8001',
        "deployments[1].port: 8001 is taken by deployments[0]",
    ),
    (ONE + "port = 8000", "deployments[0].port: 8000 is the gateway's"),
    (ONE + "port = 9000\n[gateway]\nport = 9000", "deployments[0].port: 9000 is the gateway's"),
    (ONE + "port = 8001\npinned.data_parallel = 2", "deployments[0].port: is one, and pinned.data_parallel asks for"),
    (ONE + "replica = 2", "deployments[0].replica: is counted by itself"),
    ("[[deployments]", "not TOML"),
    ("a = " + "[" * 5000, "nested too deeply"),
    ("a = " + "1" * 5000, "not TOML"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_a_fault_is_told_by_file_and_key(path: Path, catalog: Catalog, text: str, said: str) -> None:
    told = refused(path, catalog, text)
    assert told.message.removeprefix(f"{path}: ").startswith(said)
    assert "\n" not in told.message


def test_an_unknown_model_is_answered_with_the_nearest(path: Path, catalog: Catalog) -> None:
    assert refused(path, catalog, '[[deployments]]\nmodel = "glm-46"').hint == "did you mean glm-4.6?"


def test_a_pin_that_names_another_checkpoint_than_the_model_is_refused(path: Path, catalog: Catalog) -> None:
    text = '[[deployments]]\nmodel = "zai-org/GLM-4.6-FP8"\npinned.repo = "QuantTrio/GLM-4.6-AWQ"'
    assert "deployments[0].pinned.repo" in refused(path, catalog, text).message


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "file"
    for make, said in (
        (lambda: None, "there is no such file"),
        (path.mkdir, "is a directory"),
        (lambda: os.mkfifo(path), "is no regular file"),
        (lambda: path.write_bytes(b"# \xff"), "not UTF-8 (byte 2)"),
        (lambda: path.write_bytes(b"#" * (configuration.MAXIMUM_BYTES + 1)), "larger than 1 MiB"),
    ):
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        make()
        with pytest.raises(ConfigurationError, match=r"file: ") as told:
            read(path, catalog)
        assert said in told.value.message


def test_a_file_without_the_right_to_read_it_is_said(
    path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path.write_text(ONE)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        read(path, catalog)


def test_a_folder_that_is_a_file_is_said(tmp_path: Path, catalog: Catalog) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Not a directory"):
        read(tmp_path / "file" / "autolaunch.toml", catalog)


@pytest.mark.parametrize(
    ("user", "own", "system", "expected"),
    [(0, True, False, "system"), (1000, True, True, "own"), (1000, False, True, "system"), (1000, False, False, "own")],
)
def test_the_file_is_roots_or_the_users_own(
    user: int, own: bool, system: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"own": tmp_path / "autolaunch" / "autolaunch.toml", "system": tmp_path / "etc" / "autolaunch.toml"}
    for there, place in ((own, places["own"]), (system, places["system"])):
        if there:
            place.parent.mkdir(parents=True)
            place.touch()
    monkeypatch.setattr(configuration, "SYSTEM_PATH", places["system"])
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert configuration.default_path() == places[expected]


def test_a_relative_folder_of_settings_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "settings")
    assert configuration.default_path() == Path.home() / ".config" / "autolaunch" / "autolaunch.toml"
