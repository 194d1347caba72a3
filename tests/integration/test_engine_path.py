"""``--engine-path``: the plan is for what is there, the launch runs it, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from autolaunch import api
from autolaunch.cli.app import run
from autolaunch.launching import LaunchOptions, launch
from engines import registry
from engines.base import Serving
from engines.environments import Environments
from selector.catalog import Catalog
from selector.contract import LaunchPlan, Rejection
from selector.errors import EngineError, EngineStartError, UsageError
from selector.hardware import Accelerator, HardwareReport
from selector.request import Pins
from tests.fakes.plans import candidate, plan
from tests.integration.test_cli import HOME, finished, left_running
from tests.integration.test_installations import MLX, environment, program


@pytest.fixture(scope="module")
def installed() -> Path:
    """An environment with a real mlx-lm, as somebody else would have it."""
    facts = Catalog().engine("mlx")
    return Environments(HOME / "engines").ensure(facts, facts.packages[0]).directory


def test_a_plan_pins_what_is_there_and_says_that_it_is_installed(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", *MLX)
    decided = api.plan("glm-tiny", engine_path=place)
    assert decided.chosen is not None
    assert (decided.chosen.engine.name, decided.chosen.engine.version) == ("mlx", "0.32.2")
    assert all(each.engine.installed for each in (decided.chosen, *decided.alternatives))
    assert decided.request.pinned["engine"] == "mlx"
    with pytest.raises(UsageError, match="--engine vllm was asked for"):
        api.plan("glm-tiny", engine_path=place, pins=Pins(engine="vllm"))


def test_a_launch_answers_from_there_and_makes_no_environment(installed: Path, tmp_path: Path) -> None:
    done = finished(
        "glm-tiny", "--engine-path", str(installed), "--port", "0", "--ask", "hello", "--json", home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["plan"]["engine"] == {
        "name": "mlx",
        "version": "0.32.2",
        "installed": True,
        "package": "mlx-lm",
    }
    assert document["completion_tokens"] > 0
    assert not (tmp_path / "engines").exists()
    assert left_running(tmp_path) == []


@pytest.mark.parametrize(
    ("distributions", "said"),
    [
        (("mlx_lm-0.20.0", "mlx-0.20.0"), "mlx-lm 0.20.0 is older than 0.26.2"),
        (("mlx_vlm-0.7.10", "mlx-0.32.4"), "holds mlx-vlm 0.7.10, which does not serve glm-tiny"),
        ((), "holds no engine"),
    ],
)
@pytest.mark.parametrize("command", [(), ("plan",)])
def test_an_engine_that_cannot_serve_exits_5_with_its_place_and_leaves_nothing(
    tmp_path: Path,
    distributions: tuple[str, ...],
    said: str,
    command: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = environment(tmp_path / "venv", *distributions)
    assert run([*command, "glm-tiny", "--engine-path", str(place)]) == 5
    told = capsys.readouterr().err
    assert said in told
    assert str(place) in told
    assert not api.home().exists() or not list(api.home().glob("models/*"))


def test_a_program_that_is_not_there_is_said_before_weights_are_fetched(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "vllm-0.33.0")
    options = LaunchOptions(home=tmp_path / "home", port=0, engine_path=place)
    chosen = candidate("vllm", "glm-4.6", devices=(0,))
    device = Accelerator(index=0, vendor="nvidia", name="A GPU", memory_kind="dedicated")
    with pytest.raises(EngineError, match=r"vllm 0\.33\.0 and no program .*/venv/bin/vllm"):
        launch(plan(chosen, "glm-4.6", accelerators=(device,)), catalog=Catalog(), options=options)
    assert not (tmp_path / "home").exists()


def test_a_llama_server_is_planned_and_run_as_the_program_that_it_is(tmp_path: Path) -> None:
    server = program(tmp_path / "llama-server", "#!/bin/sh\necho 'version: 11000 (abc)' >&2\n")
    decided = api.plan("glm-4.6", engine_path=server, hardware=machine_report(512))
    assert decided.chosen is not None
    assert decided.chosen.engine.package == "llama-server"
    assert decided.chosen.engine.version == "b11000"
    found = api.installation_at(server, Catalog().model("glm-4.6"), Catalog(), Pins())
    serving = Serving(model="/m", served_name="m", executable_directory=str(found.bin_directory))
    command = registry.engine("llamacpp").command(decided.chosen, Catalog().model("glm-4.6"), serving)
    assert found.runs(command).argv[0] == str(server)


def machine_report(gib: int) -> HardwareReport:
    return api.hardware_report(f"cpu-{gib}gb", Catalog())


def test_an_engine_that_changed_since_the_plan_is_not_started(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "mlx_lm-0.31.0", "mlx-0.31.0", programs=("mlx_lm.server",))
    options = LaunchOptions(home=tmp_path / "home", port=0, engine_path=place)
    with pytest.raises(EngineStartError, match=r"holds mlx 0\.31\.0, and 0\.32\.2 was planned with"):
        launch(plan(candidate("mlx", "glm-tiny")), catalog=Catalog(), options=options)


def test_another_machine_has_other_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = environment(tmp_path / "venv", *MLX)
    assert run(["plan", "glm-tiny", "--hardware", "8xh100", "--engine-path", str(place)]) == 2
    assert "--hardware is about another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [
        (("rule.cuda_graphs", "rule.cuda_graphs"), 5),
        (("engine.format", "engine.version"), 5),
        (("engine.format", "memory.weights"), 3),
        (("rule.cuda_graphs", "memory.weights"), 3),
        (("engine.format",), 3),
    ],
)
def test_a_version_with_a_known_fault_is_the_engines_fault_and_memory_is_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    codes: tuple[str, ...],
    exit_code: int,
) -> None:
    rejected = tuple(
        Rejection(repo="a/b", quantization="FP8", engine="vllm", parallel=None, code=code, message=f"because of {code}")
        for code in codes
    )
    infeasible: LaunchPlan = msgspec.structs.replace(plan(None, "glm-4.6"), rejected=rejected)
    monkeypatch.setattr(api, "plan", lambda *_, **__: infeasible)
    for line in (["plan", "glm-4.6"], ["glm-4.6"]):
        assert run([*line, "--engine-path", str(tmp_path)]) == exit_code
        told = capsys.readouterr()
        assert ("because of" in told.err) == (exit_code == 5 or "plan" not in line)
