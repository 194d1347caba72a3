"""What the README shows, beside what ``tests/unit/docs`` holds of every page: commands, outputs, configuration."""

from __future__ import annotations

from pathlib import Path

from autolaunch.daemon import configuration
from selector.catalog import Catalog
from tests import documented

BLOCKS = documented.blocks(documented.README)


def test_the_readme_shows_a_plan_and_an_advice() -> None:
    typed = [documented.simple_commands(each.typed) for block in BLOCKS for each in documented.shown(block)]
    assert {"plan", "advise"} <= {words[1] for ((*words,), *_) in typed if words[0] == "autolaunch"}


def test_the_configuration_in_the_readme_keeps_both_models_up(tmp_path: Path) -> None:
    shown, *_ = [block.text for block in BLOCKS if block.language == "toml"]
    path = tmp_path / "autolaunch.toml"
    path.write_text(shown)
    found = configuration.read(path, Catalog())
    assert [each.name for each in found.deployments] == ["glm-4.6", "glm-4.5v"]
