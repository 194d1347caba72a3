"""The state file and the memory of failures, tried in earnest: writers that are killed, and a disk that is full."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from autolaunch import api
from autolaunch.daemon.deployment import Fault, Kept, KeptDeployment
from autolaunch.daemon.state_file import StateFile
from autolaunch.daemon.store import Store, where_of
from selector.catalog import Catalog
from selector.machines import report_from_spec

WRITER = """
import itertools, sys
from pathlib import Path
from autolaunch.daemon.deployment import Kept, KeptDeployment
from autolaunch.daemon.state_file import StateFile
file = StateFile(Path(sys.argv[1]))
for number in itertools.count():
    deployments = {f"model-{each}": KeptDeployment(failures=(float(number),) * 50) for each in range(20)}
    assert file.write(Kept(boot_id="one", deployments=deployments)) is None
    if number == 0:
        print("writing", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    moments = random.Random(1)  # noqa: S311 (moments, no secret)
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(moments.uniform(0, 0.02))
            writer.kill()
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        figures = {failure for each in kept.deployments.values() for failure in each.failures}
        assert len(kept.deployments) == 20
        assert len(figures) == 1
    file = StateFile(path)
    assert file.read("one")[1] is None
    assert file.write(Kept(boot_id="one")) is None
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    tools = shutil.which("mount"), shutil.which("umount")
    if sys.platform != "linux" or os.geteuid() or None in tools:
        pytest.skip("mounting a small file system needs rights that this user has not")
    mounting = [str(tools[0]), "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(place)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")  # a container
    yield place
    subprocess.run([str(tools[1]), "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return filler


def test_a_full_disk_costs_the_state_and_not_the_service(small_disk: Path) -> None:
    path = small_disk / "state.json"
    file = StateFile(path)
    first = Kept(boot_id="one", deployments={"glm-4.6": KeptDeployment()})
    assert file.write(first) is None
    filler = fill(small_disk)
    large = Kept(boot_id="one", deployments={f"model-{each}": KeptDeployment() for each in range(200)})
    said = file.write(large)
    assert said is not None
    assert "No space left on device" in said
    assert file.write(large) is None
    assert sorted(each.name for each in small_disk.iterdir()) == ["filler", "state.json"]
    assert StateFile(path).read("one") == (first, None)
    filler.unlink()
    assert file.write(large) == f"the state is written to {path} again"
    assert StateFile(path).read("one") == (large, None)


def test_a_full_disk_costs_what_would_be_learned_and_nothing_else(small_disk: Path, catalog: Catalog) -> None:
    report = report_from_spec("8xh100", catalog)
    plan = api.plan("glm-4.6", hardware=report, known=catalog)
    assert plan.chosen is not None
    where = where_of(plan.chosen, report)
    store = Store(small_disk / "learned.sqlite3")
    fault = Fault(reason="out of memory", permanent=True, message="m")
    assert store.failed(where, plan.chosen, fault) is None
    filler = fill(small_disk)
    said = store.served(where, plan.chosen)
    assert said is not None
    assert "full" in said
    assert store.served(where, plan.chosen) is None
    assert [each.served for each in store.tried(where)] == [False]
    filler.unlink()
    assert store.served(where, plan.chosen) is None
    assert [each.served for each in store.tried(where)] == [False, True]
