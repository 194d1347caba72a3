from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.cli.app import run
from selector.contract import LaunchPlan
from selector.errors import ConfigurationError, DownloadError, EngineStartError, ProbeError, UnknownModel
from selector.hardware import Accelerator, Finding, HardwareReport


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan) -> dict[str, Any]:
    """What ``api.plan`` was called with; it answers with the literal plan."""
    seen: dict[str, Any] = {}

    def answer(model: str, **given: Any) -> LaunchPlan:
        seen.update(given, model=model)
        return plan

    monkeypatch.setattr(api, "plan", answer)
    return seen


def test_every_option_of_a_plan_reaches_the_planner(asked: dict[str, Any]) -> None:
    line = (
        "plan glm-4.6 --objective latency --context 32k --concurrency 4 --input-tokens 2k --output-tokens 300 "
        "--workload agent --engine vllm --engine-version 0.33.0 --repo a/b --format fp8 --quantization FP8 --gpus 0,1 "
        "--tensor-parallel 2 --pipeline-parallel 1 --data-parallel 1 --no-expert-parallel --kv-cache-dtype fp8 "
        "--memory-utilization 0.9 --max-sequences 8 --speculative off --eager --hub modelscope --revision main "
        "--hardware 8xh200 --all --json"
    )
    assert run(line.split()) == 0
    pins = asked.pop("pins")
    machine = asked.pop("hardware")  # read already: --gpus is about its devices
    assert machine == api.hardware_report("8xh200", asked.pop("known"))
    assert asked == {
        "model": "glm-4.6",
        "objective": "latency",
        "context_tokens": 32768,
        "concurrency": 4,
        "input_tokens": 2048,
        "output_tokens": 300,
        "workload": "agent",
        "keep_all": True,
        "thorough": False,
        "engine_path": None,
        "nodes": None,
        "here": False,  # neither another machine's weights are known, nor what failed on it
    }
    assert msgspec.to_builtins(pins) == {
        "engine": "vllm",
        "engine_version": "0.33.0",
        "repo": "a/b",
        "format": "fp8",
        "quantization": "FP8",
        "hub": "modelscope",
        "revision": "main",
        "gpus": (0, 1),
        "gpu_count": None,
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "data_parallel": 1,
        "expert_parallel": False,
        "kv_cache_dtype": "fp8",
        "memory_utilization": 0.9,
        "max_sequences": 8,
        "speculative": "off",
        "eager": True,
    }


def test_json_is_the_plan_and_nothing_else(
    asked: dict[str, Any], plan: LaunchPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", "glm-4.6", "--json"]) == 0
    out, err = capsys.readouterr()
    assert msgspec.json.decode(out, type=LaunchPlan) == plan
    assert err == ""


def test_a_dry_run_is_a_plan(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--objective", "latency", "glm-4.6", "--dry-run", "--hardware", "8xh200"]) == 0
    launched = capsys.readouterr().out
    assert run(["plan", "glm-4.6", "--objective", "latency", "--hardware", "8xh200"]) == 0
    assert capsys.readouterr().out == launched


@pytest.mark.parametrize(
    "line", ["plan glm-4.6", "plan glm-4.6 --json", "glm-4.6", "glm-4.6 --dry-run", "glm-4.6 --json"]
)
def test_no_feasible_plan_exits_3_and_says_why(
    monkeypatch: pytest.MonkeyPatch, infeasible: LaunchPlan, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.setattr(api, "plan", lambda *_, **__: infeasible)
    assert run(line.split()) == 3
    out, err = capsys.readouterr()
    if "--json" in line:
        assert json.loads(out)["feasible"] is False
    else:
        assert "4xh100" in out + err
        assert "glm-tiny" in out + err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownModel("no model is called 'x'", hint="did you mean y?"), 2),
        (ProbeError("the machine could not be asked"), 4),
        (EngineStartError("it exited"), 5),
        (DownloadError("no network"), 6),
        (ConfigurationError("profiles/x.toml: y"), 78),
    ],
)
def test_an_error_is_a_sentence_a_hint_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> LaunchPlan:
        raise error

    monkeypatch.setattr(api, "plan", fail)
    assert run(["plan", "x"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"autolaunch: {error.args[0]}\n")
    assert run(["plan", "x", "--json"]) == code
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["schema"], told["error"]["exit_code"], told["error"]["message"]) == (1, code, error.args[0])
    assert err == ""


@pytest.mark.parametrize(
    "line",
    [
        "glm-tiny --ask hi --dry-run",
        "glm-tiny --hardware 8xh100",
        "glm-tiny --all",
        "glm-tiny --dry-run -- --log-level DEBUG",
        "glm-tiny --model-path /x --revision y",
        "glm-tiny --model-path /x --hub modelscope",
        "glm-tiny --host 0.0.0.0",
        "glm-tiny --host example.org",
        "glm-tiny --host ::",
        "glm-tiny --host example.org --api-key-file /nowhere",
        "glm-tiny --host 0.0.0.0 --rehearse",
        "glm-tiny --api-key-file /nowhere --rehearse",
        "glm-tiny --api-key-file /nowhere --ask hi",
        "glm-tiny --no-such-option",
        "glm-tiny another",
        "plan",
        "--json",
        "plan glm-4.6 --ask hi",
        "plan glm-4.6 --engine nothing",
    ],
)
def test_options_that_contradict_or_make_no_sense_exit_2(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert "autolaunch: " in err or json.loads(out)["error"]["exit_code"] == 2
    assert not asked, "nothing was planned"


def test_keys_that_cannot_be_used_exit_78_before_anything_is_planned(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    line = ["glm-tiny", "--host", "0.0.0.0", "--api-key-file", str(path)]  # noqa: S104 - nothing listens
    assert run(line) == 78
    assert "there is no such file" in capsys.readouterr().err
    path.write_text("a-key-that-somebody-pasted\n")
    path.chmod(0o600)
    assert run(line) == 78
    err = capsys.readouterr().err
    assert "line 1" in err
    assert "pasted" not in err
    assert not asked, "nothing was planned"


def test_a_misspelt_option_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "glm-4.6", "--objectiv", "latency"]) == 2
    assert "did you mean --objective" in capsys.readouterr().err


def test_an_engine_option_that_looks_like_ours_is_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["glm-tiny", "--dry-run", "--", "--help", "--json"]) == 2
    assert "options for the engine are for a launch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["--help", "", "plan --help", "advise --help", "glm-4.6 --help", "probe -h", "models -h", "engines -h"]
)
def test_help_fits_80_columns_and_has_examples(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run(line.split()) == 0
    out = capsys.readouterr().out
    assert "Examples:" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_probe_in_doubt_exits_4(
    monkeypatch: pytest.MonkeyPatch, report_of: Callable[..., HardwareReport], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Finding(probe="nvidia", outcome="failed", reason="the driver is not loaded")
    report = msgspec.structs.replace(report_of(0), findings=(lost,))
    monkeypatch.setattr(api, "probe", lambda: report)
    assert run(["probe"]) == 4
    out = capsys.readouterr().out
    assert "those of NVIDIA could not be asked: the driver is not loaded" in out
    assert "none was found" not in out
    assert run(["probe", "--json"]) == 4
    assert msgspec.json.decode(capsys.readouterr().out, type=HardwareReport) == report


def test_ports_that_could_not_be_listed_leave_no_doubt_about_gpus(
    monkeypatch: pytest.MonkeyPatch, report_of: Callable[..., HardwareReport], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Finding(probe="network", outcome="failed", reason="the list cannot be read")
    monkeypatch.setattr(api, "probe", lambda: msgspec.structs.replace(report_of(0), findings=(lost,)))
    assert run(["probe"]) == 0
    assert "network failed: the list cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["plan glm-4.6", "glm-4.6", "glm-4.6 --dry-run", "plan glm-4.6 --gpus 2"])
@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_fits_without_a_driver_that_could_not_be_asked_is_a_failed_probe(
    monkeypatch: pytest.MonkeyPatch,
    infeasible: LaunchPlan,
    report_of: Callable[..., HardwareReport],
    capsys: pytest.CaptureFixture[str],
    line: str,
    as_json: bool,
) -> None:
    failed = Finding(probe="nvidia", outcome="failed", reason="this user may not talk to the driver")
    report = msgspec.structs.replace(report_of(0), findings=(failed,))
    monkeypatch.setattr(api, "probe", lambda: report)
    monkeypatch.setattr(api, "plan", lambda *_, **__: msgspec.structs.replace(infeasible, hardware=report))
    assert run([*line.split(), *(["--json"] if as_json else [])]) == 4
    out, err = capsys.readouterr()
    told = json.loads(out)["error"]["message"] if as_json else err
    assert "the NVIDIA driver could not be asked, and nothing fits without" in told
    assert "this user may not talk to the driver" in told
    assert "no GPU" not in out + err
    assert "4xh100" not in out + err
    assert (out == "") is not as_json


def test_a_recorded_report_of_a_driver_that_could_not_be_asked_is_as_little_an_answer(
    report_of: Callable[..., HardwareReport], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failed = Finding(probe="nvidia", outcome="failed", reason="the driver is not loaded")
    record = tmp_path / "host.json"
    record.write_text(msgspec.structs.replace(report_of(0), findings=(failed,)).to_json())
    assert run(["plan", "glm-4.6", "--hardware", str(record)]) == 4
    assert "the driver is not loaded" in capsys.readouterr().err
    assert run(["plan", "glm-tiny", "--hardware", str(record)]) == 0
    assert "could not be asked: the driver is not loaded" in " ".join(capsys.readouterr().out.split())


def test_a_gpu_left_out_beside_others_leaves_the_answer_to_the_plan(
    monkeypatch: pytest.MonkeyPatch, infeasible: LaunchPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Finding(probe="nvidia", outcome="failed", reason="GPU 7 is left out")
    hardware = msgspec.structs.replace(infeasible.hardware, findings=(lost,))
    device = Accelerator(index=0, vendor="nvidia", name="NVIDIA Test 80GB")
    hardware = msgspec.structs.replace(hardware, accelerators=(device,))
    monkeypatch.setattr(api, "plan", lambda *_, **__: msgspec.structs.replace(infeasible, hardware=hardware))
    assert run(["plan", "glm-4.6"]) == 3
    assert "nvidia could not be asked: GPU 7 is left out" in capsys.readouterr().out


def test_a_lost_gpu_beside_others_is_said_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, report_of: Callable[..., HardwareReport], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Finding(probe="nvidia", outcome="failed", reason="GPU 7 is lost")
    monkeypatch.setattr(api, "probe", lambda: msgspec.structs.replace(report_of(2), findings=(lost,)))
    assert run(["probe", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "GPU 7 is lost" in out
    assert "NVIDIA Test 80GB" in out


@pytest.mark.parametrize("what", ["models", "engines", "hardware"])
def test_what_is_known_is_there_for_people_and_for_programs(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([what]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert run([what, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    listed = document["accelerators" if what == "hardware" else what]
    assert all((each.get("id") or each["name"]) in text for each in listed)
    assert run([what, "--verbose"]) == 0


def test_an_engine_that_was_pinned_too_old_is_the_engines_fault_and_not_the_machines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["plan", "glm-tiny", "--hardware", "cpu-64gb", "--engine", "mlx", "--engine-version", "0.20.0"]) == 5
    err = capsys.readouterr().err
    assert "mlx 0.20.0 cannot serve glm-tiny here" in err
    assert "--engine-version" in err


@pytest.mark.parametrize("version", ["x;y", "../0.3", "0.33 ", "", "-1"])
def test_what_is_no_version_is_a_usage_error(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "glm-tiny", "--hardware", "cpu-64gb", "--engine", "mlx", f"--engine-version={version}"]) == 2
