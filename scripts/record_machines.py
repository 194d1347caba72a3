#!/usr/bin/env python3
"""Write the reports of ``tests/data/machines`` anew: the real probe over the stub of NVML and recorded Macs.

    python scripts/record_machines.py [NAME ...]

Needs a C compiler. Look at the difference before keeping it: plans are golden on these reports.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fakes import machines
from tests.fakes.nvml import stub


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(machines.NAMES))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(machines.NAMES)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("library", "none", "work")]
        for folder in folders:
            folder.mkdir()
        library, no_library = stub.build(folders[0]), stub.build_none(folders[1])
        for name in names or machines.NAMES:
            report = machines.record(name, folders[2] / name, library, no_library)
            (machines.DATA / f"{name}.json").write_text(report.to_json() + "\n")
            print(f"{name}: {len(report.accelerators)} accelerators, {len(report.links)} links")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
