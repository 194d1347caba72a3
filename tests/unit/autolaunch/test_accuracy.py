"""Predictions beside measurements: distances, means, order, and the script that prints them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from autolaunch.accuracy.compare import Comparison, Planner, Prediction, distance, groups, pins_of
from autolaunch.accuracy.order import pairs, splits
from autolaunch.accuracy.table import Bar, Findings, broken, markdown
from selector.catalog import Catalog
from selector.measurements import Measurement, Result, Run, Source, measurements

ROOT = Path(__file__).parents[3]


def result(value: bool | float, **more: Any) -> Result:
    given = {"id": "row", "metric": "output_tokens_per_second", "used": "fit", "trust": "high", **more}
    return Result(value=value, **given)


def row(
    measured: float, predicted: float | None, *, name: str = "one", source: str = "them", devices: int = 8, **more: Any
) -> Comparison:
    asked = {"input_tokens": 200, "output_tokens": 200, "concurrency": 100, "requests": 100, **more}
    one = result(measured, id=f"{name}-{measured:g}", **asked)
    run = Run(
        id=name, model="glm-4.6", repo="them/it", machine=f"{devices}xh200", source="https://them", results=(one,)
    )
    whole = Source(id=source, title="Them", source="https://them", runs=(run,))
    return Comparison(Measurement(whole, run, one), "graphs", devices, Prediction(predicted), distance(predicted, one))


# --- distances ---------------------------------------------------------------------------------------


def test_half_and_twice_are_equally_far() -> None:
    assert distance(50.0, result(100.0)) == distance(200.0, result(100.0)) == 2.0


def test_what_rounding_leaves_open_is_no_error() -> None:
    rounded = result(100.0, plus_minus=5.0)
    assert distance(104.9, rounded) == distance(95.1, rounded) == 1.0
    assert distance(210.0, rounded) == pytest.approx(2.0)
    assert distance(47.5, rounded) == pytest.approx(2.0)


def test_no_figure_and_a_wrong_verdict_are_infinitely_far() -> None:
    assert distance(None, result(100.0)) == math.inf
    fits = result(value=True, metric="fits")
    assert distance(predicted=True, result=fits) == 1.0
    assert distance(predicted=False, result=fits) == distance(None, fits) == math.inf


def test_the_mean_is_of_factors_either_way_and_leaves_out_what_was_refused() -> None:
    found = groups([row(100, 200), row(100, 50), row(100, None), row(100, 100, source="others")])
    whole, others, them = found
    assert (whole.source, others.source, them.source) == (None, "others", "them")
    assert (them.rows, them.refused) == (3, 1)
    assert them.mean == pytest.approx(2.0)
    assert others.mean == 1.0
    assert whole.mean == pytest.approx(2.0 ** (2 / 3))


def test_fitted_and_checked_rows_have_means_of_their_own() -> None:
    _, them = groups([row(100, 100), row(100, 300, used="check")])
    assert them.mean_fitted == 1.0
    assert them.mean_checked == pytest.approx(3.0)


# --- order -------------------------------------------------------------------------------------------


def test_two_configurations_are_ranked_where_the_measured_ones_are_clearly_apart() -> None:
    assert pairs([row(100, 1, name="a"), row(109, 2, name="b")]) == ()
    (pair,) = pairs([row(100, 1, name="a"), row(120, 2, name="b")])
    assert pair.alike
    assert pair.better.measurement.run.id == "b"
    (pair,) = pairs([row(100, 2, name="a"), row(120, 1, name="b")])
    assert not pair.alike


@pytest.mark.parametrize(
    "other", [{"concurrency": 4}, {"requests": 7}, {"input_tokens": 400}, {"output_tokens": 10}, {"source": "others"}]
)
def test_what_was_not_measured_alike_is_not_ranked(other: dict[str, Any]) -> None:
    assert pairs([row(100, 1, name="a"), row(200, 2, name="b", **other)]) == ()


def test_sampled_lengths_may_differ_by_a_tenth() -> None:
    assert len(pairs([row(100, 1, name="a", output_tokens=94), row(200, 2, name="b", output_tokens=100)])) == 1


def test_throughput_is_ranked_a_device_and_latency_as_it_is() -> None:
    (pair,) = pairs([row(100, 100, name="narrow", devices=4), row(120, 120, name="wide", devices=8)])
    assert pair.better.measurement.run.id == "narrow"
    metric: dict[str, Any] = {"metric": "time_per_token_seconds"}
    (pair,) = pairs([row(0.2, 0.2, name="narrow", devices=4, **metric), row(0.1, 0.1, name="wide", **metric)])
    assert pair.better.measurement.run.id == "wide"
    assert pair.alike


def test_a_configuration_that_was_refused_is_ranked_otherwise_than_measured() -> None:
    (pair,) = pairs([row(100, None, name="a"), row(200, 2, name="b")])
    assert (pair.alike, pair.predicted) == (False, None)


# --- planning ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(Catalog())


@pytest.fixture(scope="module")
def known() -> dict[str, Measurement]:
    return {each.result.id: each for each in measurements()}


def test_everything_that_is_known_of_a_run_is_pinned(known: dict[str, Measurement]) -> None:
    pins = pins_of(known["kempner-02"].run)
    assert (pins.engine, pins.engine_version, pins.repo) == ("vllm", "0.25.1", "zai-org/GLM-4.6-FP8")
    assert (pins.tensor_parallel, pins.pipeline_parallel, pins.data_parallel) == (4, 1, 1)
    assert (pins.expert_parallel, pins.eager, pins.speculative) == (False, True, "mtp")
    assert pins.memory_utilization == 0.9


def test_an_engine_too_old_to_be_planned_is_estimated_in_a_version_that_is_told(
    planner: Planner, known: dict[str, Measurement]
) -> None:
    recent = known["fit-07"]
    aged = recent._replace(run=msgspec.structs.replace(recent.run, engine_version="0.9.2"))
    old = planner.compare(aged)
    assert old.prediction.version == Catalog().engine("vllm").version
    assert planner.compare(known["kempner-02"]).prediction.version is None


def test_a_verdict_is_right_only_for_a_reason_of_its_kind(planner: Planner, known: dict[str, Measurement]) -> None:
    crash = known["gpustack-a100-sglang-fp8-crash"]
    told = planner.compare(crash)
    assert (told.prediction.value, told.distance) == (False, 1.0)
    assert str(told.prediction.refusal).startswith("engine.")
    as_memory = crash._replace(result=msgspec.structs.replace(crash.result, metric="fits"))
    assert planner.compare(as_memory).distance == math.inf


def test_an_unknown_repository_is_a_row_without_a_figure(planner: Planner, known: dict[str, Measurement]) -> None:
    row = known["kempner-02"]
    told = planner.compare(row._replace(run=msgspec.structs.replace(row.run, repo="nobody/nothing")))
    assert told.prediction.value is None
    assert "nobody/nothing" in str(told.prediction.refusal)
    assert told.distance == math.inf


def test_two_replicas_against_one_on_h200_are_found_in_the_measurements(
    planner: Planner, known: dict[str, Measurement]
) -> None:
    (split,) = splits(planner, [known["gpustack-32"], known["gpustack-33"], known["gpustack-34"]])
    assert (split.narrow.run.tensor, split.wide.run.tensor, split.replicas) == (4, 8, 2)
    assert split.throughput_measured == pytest.approx(2 * 3416.25 / 3791.55)
    assert split.interval_measured == pytest.approx(62.64 / 52.76)


# --- the page and the script -------------------------------------------------------------------------

BARS: dict[Any, Bar] = {"graphs": Bar(mean=1.35, worst=2.0)}


def findings(*rows: Comparison) -> Findings:
    return Findings(rows, groups(rows), pairs(rows), (), ())


def test_every_broken_bar_is_named() -> None:
    assert broken(findings(row(100, 110)), BARS, 0.9) == ()
    mean, worst = broken(findings(row(100, 300)), BARS, 0.9)
    assert "them is off by a mean factor of 3.00, 1.35 at most" in mean
    assert "one-100 is off by a factor of 3.00, 2 at most" in worst
    (refused,) = broken(findings(row(100, None), row(100, 100)), BARS, 0.9)
    assert "1 of 2 rows have no figure" in refused
    order = broken(findings(row(100, 130, name="a"), row(120, 101, name="b")), BARS, 0.9)
    assert [fault.split(":")[:2] for fault in order] == [
        ["Order", " all pairs"],
        ["Order", " on one kind of accelerator"],
    ]


def test_the_page_tells_broken_bars_and_rows_without_a_figure() -> None:
    text = markdown(findings(row(100, 300), row(100, None)), BARS, 0.9, {})
    assert "All of them are kept" not in text
    assert "| [one-100](https://them) |" in text
    assert "| none |" in text
    assert "All of them are kept." in markdown(findings(row(100, 110)), BARS, 0.9, {})


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("validate", str(ROOT / "scripts" / "validate"))
    spec = importlib.util.spec_from_loader("validate", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(script: ModuleType) -> Findings:
    whole = script.find()
    assert isinstance(whole, Findings)
    return whole


def test_the_script_writes_the_same_page_twice_and_checks_it(
    script: ModuleType,
    found: Findings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "docs" / "accuracy.md"
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "DOCUMENT", page)
    assert script.main([]) == 0
    first = page.read_text()
    monkeypatch.setattr(script, "find", lambda: found)
    assert script.main([]) == 0
    assert page.read_text() == first
    for each in measurements():
        assert f"[{each.result.id}](" in first

    capsys.readouterr()
    monkeypatch.setattr(script, "BARS", dict.fromkeys(script.BARS, Bar(mean=None, worst=None)))
    monkeypatch.setattr(script, "ORDER_SHARE", 0.0)
    monkeypatch.setattr(script, "MISSED", {})
    monkeypatch.setattr(script, "find", lambda: findings(row(100, 110)))
    assert script.main(["--check"]) == 1
    assert "docs/accuracy.md is stale" in capsys.readouterr().err
    assert page.read_text() == first
    script.main([])
    assert script.main(["--check"]) == 0
    monkeypatch.setattr(script, "BARS", dict.fromkeys(script.BARS, Bar(mean=1.01, worst=None)))
    assert script.main(["--check"]) == 1
    assert "1.01 at most" in capsys.readouterr().err


def test_a_miss_that_is_known_is_told_and_must_stay_what_it_is(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "DOCUMENT", tmp_path / "accuracy.md")
    monkeypatch.setattr(script, "find", lambda: findings(row(100, 300)))
    faults = broken(findings(row(100, 300)), script.BARS, script.ORDER_SHARE)
    monkeypatch.setattr(script, "MISSED", dict.fromkeys(faults, "the moon was full"))
    script.main([])
    assert "the moon was full" in (tmp_path / "accuracy.md").read_text()
    assert script.main(["--check"]) == 0
    monkeypatch.setattr(script, "find", lambda: findings(row(100, 310)))
    script.main([])
    capsys.readouterr()
    assert script.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "3.10" in told
    assert "kept, and said to be missed" in told


def test_the_script_prints_rows_and_json(
    script: ModuleType, found: Findings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "find", lambda: found)
    assert script.main(["--rows", "kempner-0[23]"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == ["kempner-02", "kempner-03"]
    assert script.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert {each["id"] for each in document["rows"]} == {
        each.result.id for each in measurements() if each.result.excluded is None
    }


def test_a_pattern_that_is_none_is_a_usage_error(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--rows", "("])
    assert ended.value.code == 2
    assert "--rows" in capsys.readouterr().err
