"""What the files of ``requirements/`` hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What is shipped with a tool that is run, and the rest.
TOOLS, FOLDER = ROOT / "profiles" / "tools", ROOT / "requirements"
FILES = sorted((*FOLDER.rglob("*.txt"), *TOOLS.glob("*.txt")))
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==[^\s;]+(?: ; [^\\]+)? \\")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_package_is_pinned_with_hashes_and_none_comes_from_an_address(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    packages = [line for line in lines if not line.startswith(" ")]
    assert packages
    assert [line for line in packages if _PINNED.fullmatch(line) is None] == []
    assert [line for line in lines if line.startswith(" ") and "--hash=sha256:" not in line] == []


def test_every_client_that_is_asked_for_is_pinned() -> None:
    for asked in sorted((*(FOLDER / "clients").glob("*.in"), *TOOLS.glob("*.in"))):
        lines = asked.read_text().splitlines()
        wanted = {re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0] for line in lines if line[:1] != "#"}
        pinned = {match[1] for match in _PINNED.finditer(asked.with_suffix(".txt").read_text())}
        assert wanted <= pinned
