"""Golden exports: every file of every target for six plans. They change with ``--update-golden``, and are read then.

What stands in them is held against schemas, shells and systemd in ``tests/integration/test_exports.py``.
"""

from __future__ import annotations

import pytest

from autolaunch import __version__
from autolaunch.exporting import Target
from tests.fakes.exported import CASES, GOLDEN, exported

PAIRS = [(name, to) for name, case in CASES.items() for to in case.targets]


@pytest.mark.parametrize(("name", "to"), PAIRS)
def test_an_export_changes_only_on_purpose(name: str, to: Target, update_golden: bool) -> None:
    folder = GOLDEN / name / to
    shown = {
        file.name: file.text.replace(f"autolaunch {__version__}", "autolaunch VERSION")
        for file in exported(name, to).files
    }
    if update_golden:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for file, text in shown.items():
            (folder / file).write_text(text)
    kept = {path.name: path.read_text() for path in sorted(folder.iterdir())}
    assert kept == shown, f"{name}/{to} differs: run pytest --update-golden and read the diff"


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert [exported(name, to) for name, to in PAIRS] == [exported(name, to) for name, to in PAIRS]


def test_every_golden_export_belongs_to_a_case() -> None:
    assert {(path.parent.name, path.name) for path in GOLDEN.glob("*/*")} == set(PAIRS)
