"""What failed here is remembered, and the memory is never a reason not to serve."""

from __future__ import annotations

import itertools
import sqlite3
import stat
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from autolaunch import api
from autolaunch.daemon import learned_file
from autolaunch.daemon import store as module
from autolaunch.daemon.deployment import Fault, Reason
from autolaunch.daemon.store import Store, Where, configuration_of, is_learned, where_of
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.machines import report_from_spec
from selector.request import Pins

OOM = Fault(reason="out of memory", permanent=True, message="out of memory (CUDA out of memory)")
WHERE = Where(
    hardware="8 x NVIDIA H100 80GB HBM3 85520809984",
    driver="nvidia 580.1",
    engine="vllm",
    engine_version="0.33.0",
    package="vllm",
    repo="zai-org/GLM-4.6-FP8",
    quantization="FP8",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "learned.sqlite3"


@pytest.fixture
def store(path: Path) -> Store:
    ticks = itertools.count(1000)
    return Store(path, clock=lambda: float(next(ticks)))


@pytest.fixture(scope="module")
def candidate(catalog: Catalog) -> Candidate:
    chosen = api.plan("glm-4.6", hardware="8xh100", known=catalog).chosen
    assert chosen is not None
    return chosen


def with_context(candidate: Candidate, tokens: int) -> Candidate:
    return msgspec.structs.replace(candidate, limits=msgspec.structs.replace(candidate.limits, context_tokens=tokens))


def test_a_failure_is_found_where_it_happened_and_nowhere_else(store: Store, path: Path, candidate: Candidate) -> None:
    assert store.tried(WHERE) == ()
    assert not path.exists()
    assert store.failed(WHERE, candidate, OOM) is None
    (found,) = Store(path).tried(WHERE)
    assert found.configuration == configuration_of(candidate)
    assert (found.served, found.reason, found.message, found.at) == (False, "out of memory", OOM.message, 1000.0)
    for other in ({"driver": "nvidia 590.1"}, {"engine_version": "0.34.0"}, {"hardware": "1 x x 1"}, {"revision": "a"}):
        assert store.tried(msgspec.structs.replace(WHERE, **other)) == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_last_of_each_outcome_is_kept(store: Store, candidate: Candidate) -> None:
    store.failed(WHERE, candidate, OOM)
    store.served(WHERE, candidate)
    store.failed(WHERE, candidate, msgspec.structs.replace(OOM, message="again"))
    served, failed = store.tried(WHERE)
    assert (served.served, served.at, served.reason, served.message) == (True, 1001.0, None, None)
    assert (failed.served, failed.at, failed.message) == (False, 1002.0, "again")


def test_what_is_forgotten_is_gone(store: Store, candidate: Candidate) -> None:
    elsewhere = msgspec.structs.replace(WHERE, repo="other/model")
    assert store.forget({WHERE.repo}) is None
    for each in (WHERE, elsewhere):
        store.failed(each, candidate, OOM)
    assert "is forgotten" in (store.forget({WHERE.repo}) or "")
    assert store.tried(WHERE) == ()
    assert len(store.tried(elsewhere)) == 1, "of another model"
    assert store.forget({WHERE.repo}) is None, "nothing more, and nothing to be said"


def test_the_oldest_give_way(store: Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 3)
    for tokens in range(5):
        store.failed(WHERE, with_context(candidate, tokens), OOM)
    assert [each.configuration.context_tokens for each in store.tried(WHERE)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("reason", "permanent", "kept"),
    [
        ("out of memory", True, True),
        ("out of memory", False, True),
        ("graph capture", False, True),
        ("missing kernel", True, True),
        ("model not supported", True, True),
        ("unknown", False, False),
        ("worker died", False, False),
        ("killed", True, False),
        ("stopped", False, False),
        ("port in use", True, False),
        ("download", True, False),
        ("device lost", True, False),
    ],
)
def test_only_what_tells_of_the_configuration_is_kept(
    store: Store, candidate: Candidate, reason: Reason, permanent: bool, kept: bool
) -> None:
    assert store.failed(WHERE, candidate, Fault(reason=reason, permanent=permanent, message="m")) is None
    assert bool(store.tried(WHERE)) is kept


def test_every_reason_of_the_two_sets_is_one_and_none_is_in_both() -> None:
    causes, others = get_args(Reason)
    assert {*get_args(causes), *get_args(others)} >= module.OF_CONFIGURATION | module.OF_SOMETHING_ELSE
    assert not module.OF_CONFIGURATION & module.OF_SOMETHING_ELSE
    assert not is_learned(Fault(reason="hangs", permanent=False, message="m"))


def test_a_token_is_not_kept(store: Store, path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    store.failed(WHERE, candidate, msgspec.structs.replace(OOM, message="with hf_sentinel"))
    assert b"sentinel" not in path.read_bytes()


# --- where --------------------------------------------------------------------------------------------


def test_where_names_the_devices_that_are_used(catalog: Catalog) -> None:
    report = report_from_spec("8xh100", catalog)
    plan = api.plan("glm-4.6", hardware=report, known=catalog, pins=Pins(gpu_count=4))
    assert plan.chosen is not None
    found = where_of(plan.chosen, report)
    first = report.accelerators[0]
    assert found.hardware == f"4 x {first.name} {first.memory_total_bytes}"
    assert found.repo == plan.chosen.checkpoint.repo


def test_where_names_the_processor_where_it_computes_or_holds_weights(catalog: Catalog) -> None:
    for machine, model, count in (("cpu-64gb", "glm-tiny", 1), ("4090+192gb", "glm-4.6", 2)):
        report = report_from_spec(machine, catalog)
        chosen = api.plan(model, hardware=report, known=catalog, pins=Pins(engine="llamacpp")).chosen
        assert chosen is not None
        found = where_of(chosen, report).hardware.split(" + ")
        assert len(found) == count
        assert found[-1].endswith(f" {report.host.memory_total_bytes}")


# --- faults of the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"no database at all, and long enough to be looked at" * 30, b"SQLite format 3\0x"]
)
def test_a_corrupt_file_is_set_aside_and_begun_anew(
    store: Store, path: Path, candidate: Candidate, content: bytes
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert store.tried(WHERE) == ()
    assert path.read_bytes() == content
    said = store.failed(WHERE, candidate, OOM)
    assert said is not None
    assert "set aside as learned.sqlite3.corrupt-" in said
    assert len(store.tried(WHERE)) == 1
    assert store.trouble() is None
    (aside,) = path.parent.glob("*.corrupt-*")
    assert aside.read_bytes() == content


def test_a_page_that_was_damaged_is_seen(store: Store, path: Path, candidate: Candidate) -> None:
    for tokens in range(300):
        store.failed(WHERE, with_context(candidate, tokens), OOM)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    assert store.tried(WHERE) == ()
    said = store.failed(WHERE, candidate, OOM)
    assert said is not None
    assert len(store.tried(WHERE)) == 1


def test_a_locked_file_is_not_waited_for_and_said_once(
    store: Store, path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_file, "BUSY_SECONDS", 0.0)
    store.failed(WHERE, candidate, OOM)
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        said = store.served(WHERE, candidate)
        assert said is not None
        assert "locked" in said
        assert store.served(WHERE, candidate) is None
        assert store.tried(WHERE) == ()
    finally:
        other.close()
    assert len(store.tried(WHERE)) == 1
    assert store.served(WHERE, candidate) is None
    assert len(store.tried(WHERE)) == 2


def test_a_place_that_cannot_be_written_is_said_once(tmp_path: Path, candidate: Candidate) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "learned.sqlite3")
    said = store.failed(WHERE, candidate, OOM)
    assert said is not None
    assert "file" in said
    assert store.failed(WHERE, candidate, OOM) is None
    assert store.tried(WHERE) == ()


def test_a_later_schema_is_left_alone(store: Store, path: Path, candidate: Candidate) -> None:
    store.failed(WHERE, candidate, OOM)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 3")
    other.close()
    before = path.read_bytes()
    assert store.tried(WHERE) == ()
    said = store.served(WHERE, candidate)
    assert said is not None
    assert "schema 3" in said
    assert path.read_bytes() == before


def test_an_empty_file_is_filled(store: Store, path: Path, candidate: Candidate) -> None:
    path.parent.mkdir()
    path.touch()
    assert store.tried(WHERE) == ()
    assert store.failed(WHERE, candidate, OOM) is None
    assert len(store.tried(WHERE)) == 1


def test_rows_that_nobody_can_read_are_passed_over(store: Store, path: Path, candidate: Candidate) -> None:
    store.failed(WHERE, candidate, OOM)
    other = sqlite3.connect(path)
    key = msgspec.json.encode(WHERE, order="deterministic").decode()
    other.execute("INSERT INTO tried VALUES (?, '{}', 0, 'x', 'y', 1.0)", (key,))
    other.execute("INSERT INTO tried SELECT place, configuration, 1, 'later reason', 'm', 'never' FROM tried LIMIT 1")
    other.commit()
    other.close()
    (found,) = store.tried(WHERE)
    assert not found.served


def test_a_python_without_sqlite_learns_nothing(
    store: Store, path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sqlite3", None)
    said = store.failed(WHERE, candidate, OOM)
    assert said is not None
    assert "no sqlite3" in said
    assert not path.exists()
