"""Weights are never freed while somebody has them: a daemon, or any process that has their files open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autolaunch.freeing import doomed_of
from autolaunch.in_use import refuse_in_use
from autolaunch.on_disk import repository_folder
from engines import miniature
from selector.catalog import Catalog
from selector.errors import InUse
from tests.fakes.served import ROOT, Served

FP8 = "zai-org/GLM-4.6-FP8"


def autolaunch(home: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    environ = {**os.environ, "AUTOLAUNCH_HOME": str(home), "HF_HOME": str(home / "hf")}
    command = (sys.executable, "-m", "autolaunch", *arguments, "--json")
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    yield one
    one.close()


def test_what_a_daemon_serves_is_not_freed_until_it_is_stopped(served: Served) -> None:
    engine = served.begin()
    weights = served.home / "models" / "glm-tiny"
    miniature.generate(Catalog().model("glm-tiny"), weights)
    code, document = autolaunch(served.home, "rm", "glm-tiny", "--yes")
    assert (code, document["error"]["code"]) == (5, "engine.in_use")
    assert served.process is not None
    assert f"a of the daemon (process {served.process.pid}) is ready" in document["error"]["message"]
    assert engine in [each.pid for each in served.engines()]
    assert weights.exists()
    assert autolaunch(served.home, "stop", "a")[0] == 0
    served.until(lambda: served.engines() == [])
    code, document = autolaunch(served.home, "rm", "glm-tiny", "--yes")
    assert code == 0, document
    assert document["freed_bytes"] == miniature.size_bytes(Catalog().model("glm-tiny"))
    assert not weights.exists()
    served.stop()


def cached(root: Path) -> Path:
    place = repository_folder(root, FP8)
    (place / "snapshots" / "aaa").mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "blobs" / "one").write_bytes(b"x" * 5000)
    (place / "snapshots" / "aaa" / "model.safetensors").symlink_to("../../blobs/one")
    return place


@pytest.mark.parametrize(
    ("code", "argument"),
    [
        ("import mmap; f = open({blob!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=1); f.close()", "x"),
        ("f = open({blob!r}, 'rb')", "x"),
        ("pass", "{folder}"),
    ],
)
def test_what_any_process_has_open_or_was_told_to_load_is_in_use(
    tmp_path: Path, catalog: Catalog, code: str, argument: str
) -> None:
    place = cached(tmp_path)
    model = catalog.model("glm-4.6")
    checkpoints = [each for each in model.checkpoints if each.repo == FP8]
    (doomed,) = doomed_of(model, checkpoints, cache=tmp_path, home=tmp_path)
    refuse_in_use(doomed, catalog, tmp_path)
    program = f"{code.format(blob=str(place / 'blobs' / 'one'))}; print(1, flush=True); input()"
    folder = argument.format(folder=place / "snapshots" / "aaa")
    with subprocess.Popen(
        (sys.executable, "-c", program, folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        with pytest.raises(InUse, match=rf"process {reader.pid} \("):
            refuse_in_use(doomed, catalog, tmp_path)
        reader.communicate(b"\n", timeout=10)
    refuse_in_use(doomed, catalog, tmp_path)


def test_what_is_not_there_is_no_error_and_nobody_is_asked_without_a_terminal(tmp_path: Path) -> None:
    code, document = autolaunch(tmp_path, "rm", "glm-4.6")
    assert (code, document["freed"]) == (0, [])
    cached(tmp_path / "hf" / "hub")
    code, document = autolaunch(tmp_path, "rm", FP8)
    assert (code, document["error"]["code"]) == (2, "usage")
    code, document = autolaunch(tmp_path, "models")
    rows = [each for model in document["models"] for each in model["checkpoints"] if each["local"]]
    assert [(each["repo"], each["local"][0]["bytes_on_disk"]) for each in rows] == [(FP8, 5000)]
    assert document["local_bytes"] == 5000
    code, document = autolaunch(tmp_path, "rm", FP8, "--yes")
    assert (code, document["freed_bytes"]) == (0, 5000)
