"""``autolaunch plan --fleet`` as a person runs it, and what scripts/bench_fleet holds, in its quick form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = (sys.executable, "-c", "from autolaunch.__main__ import main; main()")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FLEET = """
[[hosts]]
name = "big"
hardware = "8xh100"
count = 300

[[hosts]]
name = "large"
hardware = "8xh200"
names = ["l1", "l2"]

[[hosts]]
name = "small"
hardware = "4xl40s"
count = 700

[[deployments]]
name = "chat"
model = "glm-4.6"
minimum_replicas = 20
pinned = { format = "fp8" }

[[deployments]]
name = "images"
model = "glm-4.5v"
maximum_replicas = 500

[[deployments]]
name = "original"
model = "glm-4.6"
pinned = { format = "bf16" }
maximum_replicas = 3
"""


def finished(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*MAIN, "plan", *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "AUTOLAUNCH_HOME": str(folder / "home"), "COLUMNS": "80"},
        timeout=120,
        check=False,
    )


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


def test_a_thousand_hosts_of_three_kinds_are_told_on_one_screen(fleet: Path, tmp_path: Path) -> None:
    done = finished(tmp_path, "--fleet", str(fleet))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("1,002 hosts, ")
    whole = finished(tmp_path, "--fleet", str(fleet), "--all").stdout.splitlines()
    assert max(map(len, whole)) <= 80
    assert whole[: len(lines)] == lines
    assert {line.split()[0] for line in whole if line} >= {"big/1", "big/300", "l1", "l2", "small/699"}


def test_the_same_fleet_is_the_same_bytes(fleet: Path, tmp_path: Path) -> None:
    first, second = (finished(tmp_path, "--fleet", str(fleet), "--json") for _ in range(2))
    assert first.stdout == second.stdout
    plan = json.loads(first.stdout)
    assert (plan["schema"], plan["feasible"], plan["hosts"]) == (1, True, 1002)
    assert plan["gap"] <= 0.05
    served = {each["name"]: each for each in plan["deployments"]}
    assert served["chat"]["replicas"] >= 20
    assert served["images"]["replicas"] <= 500
    on = [hosts for each in plan["placements"] for hosts in each["on"]]
    assert len(on) == sum(each["replicas"] for each in served.values())


def test_a_minimum_that_cannot_be_met_exits_3_after_the_plan(fleet: Path, tmp_path: Path) -> None:
    fleet.write_text(FLEET.replace("minimum_replicas = 20", "minimum_replicas = 5000"))
    done = finished(tmp_path, "--fleet", str(fleet))
    assert done.returncode == 3
    assert "Fewer than the minimum" in done.stdout
    assert "chat" in done.stdout.partition("Fewer than the minimum")[2]
    as_json = finished(tmp_path, "--fleet", str(fleet), "--json")
    assert as_json.returncode == 3
    assert json.loads(as_json.stdout)["feasible"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--fleet", "none.toml"), 78, "none.toml: there is no such file"),
        (("glm-4.6", "--fleet", "FILE"), 2, "MODEL cannot stand beside --fleet"),
        (("--fleet", "FILE", "--hardware", "8xh100"), 2, "--hardware cannot stand beside --fleet"),
        (("--fleet", "FILE", "--context", "4k"), 2, "--context cannot stand beside --fleet"),
        ((), 2, "missing argument 'MODEL'"),
    ],
)
def test_what_does_not_go_together_is_told(
    arguments: tuple[str, ...], code: int, told: str, fleet: Path, tmp_path: Path
) -> None:
    done = finished(tmp_path, *(str(fleet) if each == "FILE" else each for each in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    as_json = finished(tmp_path, *(str(fleet) if each == "FILE" else each for each in arguments), "--json")
    assert json.loads(as_json.stdout)["error"]["exit_code"] == code


def test_the_benchs_bars_are_held_in_its_quick_form() -> None:
    done = subprocess.run(
        (sys.executable, "scripts/bench_fleet", "--check"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    assert done.stdout.count("  held") == 16
