"""What was foretold of a load, what is kept of it, and what goes from one host to another."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest

from autolaunch import api
from autolaunch.bench.exchange import exported_lines, import_rows, is_like, write_rows
from autolaunch.bench.kept import beside, foretold, keep
from autolaunch.bench.load import load_of
from autolaunch.bench.report import Stretch
from autolaunch.bench.run import Bench, measured_of
from autolaunch.cli.app import run
from autolaunch.cli.render_bench import render_bench
from autolaunch.cli.terminal import Terminal
from autolaunch.daemon.rows import LINE_BYTES, Row
from selector.contract import LaunchPlan
from selector.errors import ConfigurationError
from selector.measured import configuration_of

ALONE = Stretch(
    requests=4, input_tokens=1000, output_tokens=500, time_to_first_token_seconds=0.2, decode_tokens_per_second=60.0
)
TOGETHER = Stretch(requests=256, input_tokens=1000, output_tokens=500, throughput_tokens_per_second=900.0, seconds=60.0)


def planned(hardware: str = "8xh100") -> LaunchPlan:
    return api.plan("glm-4.6", hardware=hardware)


def measured(plan: LaunchPlan, together: Stretch = TOGETHER) -> Bench:
    """A benchmark of the plan's own load, kept."""
    assert plan.chosen is not None
    load = load_of(input_tokens=1000, output_tokens=500, concurrency=plan.chosen.speed.concurrency)
    figures = measured_of(load, ALONE, together, at=1.7e9)
    found = Bench(
        model="glm-4.6",
        url="http://127.0.0.1:8000/v1",
        load=load,
        alone=ALONE,
        together=together,
        measured=figures,
        tool="0.3.1",
    )
    return keep(beside(found, "glm-4.6", plan, load), plan)


@pytest.mark.parametrize("hardware", ["8xh100", "4xh100+1024gb", "8x4090", "m3-ultra-512gb"])
def test_another_load_is_foretold_of_the_very_configuration_that_runs(hardware: str) -> None:
    plan = planned(hardware)
    other = foretold(plan, load_of(input_tokens=2000, output_tokens=200, concurrency=4))
    assert plan.chosen is not None
    assert other is not None
    assert configuration_of(other) == configuration_of(plan.chosen)
    assert other is not plan.chosen
    assert other.speed.concurrency == 4


def test_the_load_of_the_plan_is_foretold_by_the_plan() -> None:
    plan = planned()
    assert plan.chosen is not None
    load = load_of(input_tokens=1000, output_tokens=500, concurrency=plan.chosen.speed.concurrency)
    assert foretold(plan, load) is plan.chosen


def test_what_was_measured_stands_beside_what_was_foretold_and_is_kept() -> None:
    found = measured(planned())
    assert (found.kept, found.why_not, found.deployment) == (True, None, "glm-4.6")
    assert found.figures[0].name == "one request"
    (line,) = exported_lines()
    assert json.loads(line)["measured"]["decode_tokens_per_second"] == 60.0


def test_a_benchmark_in_which_requests_failed_is_not_kept() -> None:
    found = measured(planned(), msgspec.structs.replace(TOGETHER, errors=3, error="500"))
    assert (found.kept, found.why_not) == (False, "some of its requests failed")
    assert exported_lines() == ()


def test_a_benchmark_is_shown_in_80_columns() -> None:
    text = click.unstyle(render_bench(measured(planned()), Terminal()))
    assert max(map(len, text.splitlines())) <= 80
    assert "foretold" in text
    assert "60 tok/s" in text
    assert text.endswith("kept: the next plans of this host count with it")


def test_an_endpoint_of_others_is_shown_without_a_prediction() -> None:
    found = msgspec.structs.replace(measured(planned()), figures=(), kept=False, deployment=None, engine=None)
    text = click.unstyle(render_bench(found, Terminal()))
    assert "foretold" not in text
    assert "not kept: no plan of this host is of this endpoint" in text


# --- between hosts ----------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """What another host exported: this test's own home is empty afterwards."""
    measured(planned())
    path = tmp_path / "rows.jsonl"
    write_rows(path, exported_lines())
    api.learned_path().unlink()
    return path


def test_what_is_exported_is_imported_elsewhere_and_not_exported_again(rows: Path) -> None:
    done = import_rows(rows, planned("8xh100").hardware)
    assert (done.rows, done.like_this) == (1, 1)
    assert exported_lines() == ()


def test_rows_of_other_hardware_are_taken_and_counted_apart(rows: Path) -> None:
    done = import_rows(rows, planned("m3-ultra-512gb").hardware)
    assert (done.rows, done.like_this) == (1, 0)


def test_a_machine_is_like_a_row_when_it_has_as_many_devices_of_the_kind(rows: Path) -> None:
    row = msgspec.json.decode(rows.read_bytes(), type=Row)
    machines = {name: is_like(row, api.hardware_report(name, api.catalog())) for name in ("8xh100", "4xh100", "8xh200")}
    assert machines == {"8xh100": True, "4xh100": False, "8xh200": False}


def altered(rows: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> str:
    row = json.loads(rows.read_text())
    change(row)
    return json.dumps(row)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["measured"].update(decode_tokens_per_second=-5),
        lambda row: row["measured"].update(decode_tokens_per_second=1e300),
        lambda row: row["measured"].update(decode_tokens_per_second="fast"),
        lambda row: row["measured"].update(at=-1),
        lambda row: row["measured"].update(source="oracle"),
        lambda row: row["measured"].update(unheard_of=1),
        lambda row: row["where"].pop("hardware"),
        lambda row: row["configuration"].update(tensor="8"),
    ],
)
def test_an_absurd_row_is_refused_with_its_line_and_none_is_taken(
    rows: Path, change: Callable[[dict[str, dict[str, object]]], object]
) -> None:
    rows.write_text(f"{rows.read_text()}\n{altered(rows, change)}\n")
    with pytest.raises(ConfigurationError, match="line 3"):
        import_rows(rows, planned().hardware)
    assert not api.learned_path().exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\n", b"x" * (3 * LINE_BYTES), b"null\n", b"[" * 4000])
def test_what_is_no_file_of_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(ConfigurationError):
        import_rows(tmp_path / "rows", planned().hardware)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="no regular file"):
        import_rows(tmp_path / "pipe", planned().hardware)


def test_a_file_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_rows(tmp_path / "folder", ("{}",))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["bench", "--url", "http://h/v1"], "--url takes --model NAME"),
        (["bench", "glm-4.6", "--url", "http://h/v1", "--model", "x"], "is of this host"),
        (["bench", "--model", "x"], "that --url names"),
        (["bench", "--export", "a", "--import", "b"], "stand alone"),
        (["bench", "glm-4.6", "--export", "a"], "stand alone"),
        (["bench", "--import", "a", "--seconds", "5"], "stand alone"),
        (["bench", "--workload", "chess"], "chess"),
        (["bench", "--concurrency", "0"], "whole number"),
        (["bench", "--url", "http://h/v1", "--model", "x", "--output-tokens", "1"], "two tokens at least"),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(
    line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    assert words in capsys.readouterr().err


def test_where_nothing_runs_there_is_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench"]) == 5
    assert "no daemon of autolaunch runs here" in capsys.readouterr().err


def test_an_empty_memory_exports_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["bench", "--export", "-"]) == 0
    assert capsys.readouterr().out == ""
    assert run(["bench", "--export", str(tmp_path / "rows"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 0
