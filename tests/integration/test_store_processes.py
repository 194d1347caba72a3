"""The memory under two processes at once, and where no more of it can be written."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autolaunch.daemon.store import Store, where_of
from autolaunch.measured import Measured
from tests.fakes.plans import candidate, plan

ROOT = Path(__file__).parents[2]
ROWS = 60
ONE = candidate("llamacpp", "glm-tiny")
HERE = where_of(ONE, plan(ONE).hardware)

WRITER = f"""
import sys
from pathlib import Path
import msgspec
from autolaunch.daemon import learned_file
from autolaunch.daemon.store import Store
from tests.integration.test_store_processes import HERE, ONE
from autolaunch.measured import Measured
learned_file.BUSY_SECONDS = 20.0  # what is tried is that nothing is lost, not how soon one gives up
store, first = Store(Path(sys.argv[1])), int(sys.argv[2])
for number in range(first, first + {ROWS}):
    limits = msgspec.structs.replace(ONE.limits, context_tokens=1 + number)
    one = msgspec.structs.replace(ONE, limits=limits)
    assert store.measured(HERE, one, Measured(source="start", at=float(number), load_seconds=1.0)) is None
"""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "learned.sqlite3"
    writers = [subprocess.Popen((sys.executable, "-c", WRITER, str(path), str(first)), cwd=ROOT) for first in (0, ROWS)]
    try:
        assert [each.wait(100) for each in writers] == [0, 0]
    finally:
        for each in writers:
            each.kill()
            each.wait()
    found = {row.configuration.context_tokens for row in Store(path).measurements()}
    assert found == set(range(1, 2 * ROWS + 1))


def test_where_the_disk_is_full_nothing_is_learned_and_it_is_said_once(tmp_path: Path) -> None:
    """The kernel refuses what would grow the files, as it does on a full disk."""
    store = Store(tmp_path / "learned.sqlite3")
    assert store.measured(HERE, ONE, Measured(source="start", at=1.0, load_seconds=1.0)) is None
    before = store.measurements()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        said = store.measured(HERE, ONE, Measured(source="served", at=2.0, samples=9, decode_tokens_per_second=3.0))
        again = store.measured(HERE, ONE, Measured(source="served", at=3.0, samples=9, decode_tokens_per_second=3.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert said is not None
    assert "not kept" in said
    assert again is None
    assert store.measurements() == before
    assert store.measured(HERE, ONE, Measured(source="bench", at=4.0, decode_tokens_per_second=3.0)) is None
    assert len(store.measurements()) == 2
