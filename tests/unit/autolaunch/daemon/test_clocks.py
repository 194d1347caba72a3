"""Nothing is decided by a clock that can be set."""

from __future__ import annotations

import ast
from pathlib import Path

DAEMON = Path(__file__).parents[4] / "autolaunch/daemon"
#: Who may look at the wall clock, and what for.
TELLS_TIME = {
    "journal.py": "when an event was",
    "learned_file.py": "which of the things learned is the older",
    "lock.py": "since when somebody holds the lock",
    "pace.py": "when speed was measured",
    "runs.py": "names of runs, and the age of folders that no process has",
    "state_file.py": "the name of a file that was set aside",
}


def wall_clocks(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in {"time.time", "time.time_ns", "time.localtime", "datetime.now", "datetime.utcnow", "date.today"}:
                found.append(f"{name} in line {node.lineno}")
    return found


def test_only_what_tells_a_person_the_time_asks_the_wall_clock() -> None:
    found = {path.name: clocks for path in DAEMON.glob("*.py") if (clocks := wall_clocks(path))}
    assert {name: clocks for name, clocks in found.items() if name not in TELLS_TIME} == {}
    assert set(found) == set(TELLS_TIME)
