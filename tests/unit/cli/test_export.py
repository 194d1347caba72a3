"""``autolaunch export``: where the files go, and what a person is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autolaunch.cli.app import run

LINE = ("export", "glm-4.6", "--hardware", "8xh200", "--engine", "vllm", "--to")


def test_one_file_goes_to_standard_output_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINE, "shell"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/usr/bin/env bash\n") and out.endswith("esac\n") and err == ""


def test_several_files_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINE, "systemd"]) == 0
    names = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# ==> ")]
    assert names == [f"# ==> llm-glm-4-6-{each}.service <==" for each in ("prepare", "1", "2")]


def test_files_go_into_a_folder_with_their_permissions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINE, "systemd", "--output", f"{tmp_path}/units/"]) == 0
    assert run([*LINE, "shell", "--output", str(tmp_path)]) == 0
    assert run([*LINE, "slurm", "--output", f"{tmp_path}/job"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and f"wrote {tmp_path}/units/llm-glm-4-6-1.service" in err
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {
        "llm-glm-4-6-prepare.service": 0o644,
        "llm-glm-4-6-1.service": 0o644,
        "llm-glm-4-6-2.service": 0o644,
        "glm-4-6.sh": 0o755,
        "job": 0o755,
    }


def test_several_files_take_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINE, "systemd", "--output", f"{tmp_path}/unit"]) == 2
    assert "3 files come out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINE, "shell", "--output", f"{tmp_path}/no/such"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_json_holds_the_files_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINE, "kubernetes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {name: document[name] for name in ("schema", "model", "to")} == {
        "schema": 1,
        "model": "glm-4.6",
        "to": "kubernetes",
    }
    (file,) = document["files"]
    assert file["name"] == "glm-4-6.yaml" and file["mode"] == 0o644 and "kind: Deployment" in file["text"]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["export", "glm-4.6"], 2, "--to"),
        (["export", "glm-4.6", "--to", "nomad"], 2, "nomad"),
        (["export", "glm-4.6", "--to", "shell", "--hardware", "cpu-64gb"], 3, "no plan"),
        (["export", "glm-9", "--to", "shell", "--hardware", "8xh200"], 2, "glm-9"),
        (["export", "glm-4.6", "--to", "shell", "--engine-path", "/x"], 2, "--engine-path"),
        ([*LINE, "shell", "--", "--port", "1"], 2, "--port"),
        ([*LINE, "shell", "--", "--no-such"], 2, "no option"),
    ],
)
def test_what_is_wrong_is_a_sentence(line: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line) == code
    out, err = capsys.readouterr()
    assert said in err and out == ""


def test_the_help_names_the_command_and_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Usage: autolaunch export MODEL --to TARGET")
    assert all(len(line) <= 80 for line in told.splitlines())
    for name in ("systemd", "compose", "kubernetes", "slurm", "shell", "--output", "--api-key-file"):
        assert name in told


def test_what_is_wrong_with_an_option_leads_to_the_commands_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "glm-4.6", "--to", "sell"]) == 2
    assert "autolaunch export --help tells every option" in capsys.readouterr().err
