"""What the README shows is what the commands print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from autolaunch.cli.app import autolaunch
from autolaunch.daemon import configuration
from selector.catalog import Catalog

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n\$ uv run autolaunch ((?:plan|advise) .*?)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_shows_a_plan_and_an_advice() -> None:
    assert {arguments.split()[0] for arguments, _ in BLOCKS} == {"plan", "advise"}


@pytest.mark.parametrize(("arguments", "shown"), BLOCKS, ids=[arguments for arguments, _ in BLOCKS])
def test_what_the_readme_shows_is_what_is_printed(arguments: str, shown: str) -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(autolaunch, arguments.split())
    assert result.exit_code == 0
    printed = result.stdout.splitlines()
    missing = [line for line in shown.splitlines() if line.strip() != "…" and line not in printed]
    assert missing == []


def test_every_option_in_the_readme_exists() -> None:
    helps = (
        CliRunner().invoke(autolaunch, ["plan", "--help"]).stdout
        + CliRunner().invoke(autolaunch, ["glm-tiny", "--help"]).stdout
        + CliRunner().invoke(autolaunch, ["service", "install", "--help"]).stdout
    )
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in helps, option


def test_the_configuration_in_the_readme_is_right(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    path = tmp_path / "autolaunch.toml"
    path.write_text(shown)
    found = configuration.read(path, Catalog())
    assert [each.name for each in found.deployments] == ["glm-4.6", "glm-4.5v"]
