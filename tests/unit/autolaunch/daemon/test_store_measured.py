"""What was measured is kept a place, a configuration and a source at a time; what nobody of us wrote is passed over."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest

from autolaunch.daemon import store as module
from autolaunch.daemon.deployment import Fault
from autolaunch.daemon.rows import AHEAD_SECONDS, LINE_BYTES, LINES, Row, line_of, merged, rows_of
from autolaunch.daemon.store import Store, Where, configuration_of, where_of
from selector.contract import Candidate
from selector.errors import ConfigurationError
from selector.measured import Measured
from tests.fakes.plans import candidate as made
from tests.fakes.plans import plan

#: As the release before this one wrote it: a failure on eight H100, and a smaller context that served after it.
SCHEMA_1 = Path(__file__).parents[3] / "data" / "learned-schema-1.sqlite3"
EIGHT_H100 = Where(
    hardware="8 x NVIDIA H100 80GB HBM3 85520809984",
    driver=None,
    engine="sglang",
    engine_version="0.5.23",
    package="sglang",
    repo="zai-org/GLM-4.6-FP8",
    quantization="FP8",
)
ONE: Candidate = made("llamacpp", "glm-tiny")
HERE: Where = where_of(ONE, plan(ONE).hardware)
START = Measured(source="start", at=100.0, weights_bytes=1000, resident_bytes=5000, load_seconds=2.5)
SERVED = Measured(
    source="served", at=200.0, samples=20, decode_tokens_per_second=31.5, input_tokens=12, output_tokens=40
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "learned.sqlite3"


@pytest.fixture
def store(path: Path) -> Store:
    return Store(path)


def with_context(tokens: int) -> Candidate:
    return msgspec.structs.replace(ONE, limits=msgspec.structs.replace(ONE.limits, context_tokens=tokens))


def write(path: Path, *values: object) -> None:
    other = sqlite3.connect(path)
    other.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?)", values)
    other.commit()
    other.close()


def key(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def test_a_measurement_is_found_where_it_was_made_and_nowhere_else(store: Store, path: Path) -> None:
    assert store.measurements() == ()
    assert not path.exists()
    assert store.measured(HERE, ONE, START) is None
    expected = Row(where=HERE, configuration=configuration_of(ONE), measured=START)
    assert Store(path).measurements() == store.measurements(HERE) == (expected,)
    assert store.measurements(msgspec.structs.replace(HERE, driver="nvidia 1")) == ()
    assert store.tried(HERE) == ()


def test_each_source_has_its_own_and_its_last_counts(store: Store) -> None:
    later = msgspec.structs.replace(START, at=300.0, load_seconds=2.0)
    for each in (START, SERVED, later):
        assert store.measured(HERE, ONE, each) is None
    assert [row.measured for row in store.measurements(HERE)] == [later, SERVED]


def test_the_oldest_give_way_and_imported_ones_never_take_the_place_of_ones_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASURED_ROWS", 3)
    for tokens in range(5):
        store.measured(HERE, with_context(tokens), msgspec.structs.replace(START, at=float(tokens)))
    own = store.measurements()
    assert [row.configuration.context_tokens for row in own] == [4, 3, 2]
    others = [
        Row(
            where=HERE,
            configuration=configuration_of(with_context(100 + n)),
            measured=msgspec.structs.replace(SERVED, at=1e6 + n),
        )
        for n in range(5)
    ]
    assert store.import_rows(others) is None
    assert [row.configuration.context_tokens for row in store.measurements()] == [104, 103, 102, 4, 3, 2]


# --- an earlier and a later schema ----------------------------------------------------------------------


def test_a_file_of_schema_1_is_read_as_it_is_and_migrated_when_there_is_something_to_keep(
    store: Store, path: Path
) -> None:
    path.parent.mkdir()
    shutil.copy(SCHEMA_1, path)
    before = path.read_bytes()
    failed, served = store.tried(EIGHT_H100)
    assert (failed.served, failed.reason, served.served) == (False, "out of memory", True)
    assert store.measurements() == ()
    assert store.trouble() is None
    assert path.read_bytes() == before, "a reading changes nothing"
    assert store.measured(HERE, ONE, START) is None
    assert store.tried(EIGHT_H100) == (failed, served)
    assert [row.measured for row in store.measurements()] == [START]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_failure_migrates_as_well(store: Store, path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(SCHEMA_1, path)
    assert store.failed(HERE, ONE, Fault(reason="out of memory", permanent=True, message="m")) is None
    assert len(store.tried(EIGHT_H100)) == 2
    assert store.measured(HERE, ONE, START) is None


def test_a_later_schema_is_left_alone(store: Store, path: Path) -> None:
    store.measured(HERE, ONE, START)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 3")
    other.close()
    before = path.read_bytes()
    assert store.measurements() == ()
    said = store.measured(HERE, ONE, SERVED)
    assert said is not None
    assert "schema 3" in said
    assert path.read_bytes() == before


def test_a_file_that_claims_a_schema_it_has_not_is_said(store: Store, path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(SCHEMA_1, path)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 2")
    other.close()
    assert store.measurements() == ()
    assert "measured" in (store.trouble() or "")
    assert store.measured(HERE, ONE, START) is None, "said once"


# --- rows that nobody of us wrote -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "figures",
    [
        "",
        "{}",
        "null",
        "[" * 5000,
        '{"source":"start","at":1.0,"weights_bytes":-1}',
        '{"source":"start","at":1.0,"weights_bytes":"many"}',
        '{"source":"start","at":1.0,"weights_bytes":1e300}',
        '{"source":"start","at":1.0,"weights_bytes":99999999999999999999}',
        '{"source":"start","at":1.0,"load_seconds":0}',
        '{"source":"start","at":1.0,"decode_tokens_per_second":NaN}',
        '{"source":"start","at":1.0,"decode_tokens_per_second":1e999}',
        '{"source":"start","at":1.0,"samples":0}',
        '{"source":"start","at":-1.0}',
        '{"source":"start","at":1.0,"later":1}',
        '{"source":"bench","at":1.0}',
        '{"source":"start","at":1.0}' + " " * LINE_BYTES,
        7,
        b"\xff\xfe",
        "\udcff".encode("utf-8", "surrogateescape"),
    ],
)
def test_a_row_of_wrong_types_ranges_or_size_is_passed_over_and_said(store: Store, path: Path, figures: object) -> None:
    store.measured(HERE, ONE, SERVED)
    write(path, key(HERE), key(configuration_of(ONE)), "start", figures, 1.0)
    assert [row.measured for row in store.measurements()] == [SERVED]
    assert "1 of the measurements" in (store.trouble() or "")


def test_a_row_of_the_future_is_passed_over_and_said(path: Path) -> None:
    store = Store(path, clock=lambda: 1_000.0)
    store.measured(HERE, ONE, SERVED)
    later = msgspec.structs.replace(START, at=1_001.0 + AHEAD_SECONDS)
    write(path, key(HERE), key(configuration_of(ONE)), "start", key(later), later.at)
    assert [row.measured for row in store.measurements()] == [SERVED]
    assert "1 of the measurements" in (store.trouble() or "")


@pytest.mark.parametrize(("place", "configuration"), [("{}", None), (None, "{}"), ("x" * 9000, None), (3, None)])
def test_a_row_of_no_place_or_configuration_is_passed_over(
    store: Store, path: Path, place: object, configuration: object
) -> None:
    store.measured(HERE, ONE, SERVED)
    write(
        path,
        key(HERE) if place is None else place,
        key(configuration_of(ONE)) if configuration is None else configuration,
        "start",
        key(START),
        1.0,
    )
    assert [row.measured for row in store.measurements()] == [SERVED]


def test_a_row_of_many_megabytes_costs_no_memory_of_its_size(store: Store, path: Path) -> None:
    store.measured(HERE, ONE, SERVED)
    write(path, key(HERE), key(configuration_of(ONE)), "start", "9" * (32 << 20), 1.0)
    assert len(store.measurements()) == 1


# --- to another host and from it ------------------------------------------------------------------------


def test_what_is_exported_is_imported_as_such(store: Store, tmp_path: Path) -> None:
    store.measured(HERE, ONE, START)
    bench = msgspec.structs.replace(SERVED, source="bench", at=300.0)
    store.measured(HERE, ONE, bench)
    lines = [line_of(row) for row in store.export_rows()]
    assert len(lines) == 2
    assert all("\n" not in line for line in lines)
    other = Store(tmp_path / "other" / "learned.sqlite3")
    assert other.import_rows(rows_of([*lines, "", " \n"])) is None
    (found,) = other.measurements()
    assert found.measured == msgspec.structs.replace(
        bench, source="imported", weights_bytes=1000, resident_bytes=5000, load_seconds=2.5
    ), "what several sources told of one configuration is one row"
    assert list(other.export_rows()) == [], "what was imported is another host's to export"


def test_an_older_file_does_not_undo_a_newer_one(store: Store) -> None:
    newer = msgspec.structs.replace(SERVED, source="bench", at=900.0)
    older = msgspec.structs.replace(newer, at=800.0, decode_tokens_per_second=1.0, load_seconds=4.0)
    for each in (newer, older):
        assert store.import_rows((Row(where=HERE, configuration=configuration_of(ONE), measured=each),)) is None
    (found,) = store.measurements()
    assert (found.measured.decode_tokens_per_second, found.measured.load_seconds) == (31.5, 4.0)
    assert found.measured.at == 900.0


def test_what_was_measured_here_stays_beside_what_was_imported(store: Store) -> None:
    store.measured(HERE, ONE, START)
    assert store.import_rows((Row(where=HERE, configuration=configuration_of(ONE), measured=SERVED),)) is None
    assert {row.measured.source for row in store.measurements()} == {"start", "imported"}


GOOD = line_of(Row(where=HERE, configuration=configuration_of(ONE), measured=SERVED))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{}"], "line 1"),
        ([GOOD, "not json"], "line 2"),
        ([GOOD.replace('"samples":20', '"samples":-1')], "samples"),
        ([GOOD.replace('"schema":1', '"schema":2')], "schema"),
        ([GOOD.replace('"at":200.0', '"at":200.0,"note":1')], "note"),
        ([GOOD.replace("31.5", "NaN")], "line 1"),
        ([GOOD + " " * LINE_BYTES], "at most"),
        ([b"\xff" + GOOD.encode()], "line 1"),
        ([GOOD] * (LINES + 1), "more than"),
    ],
)
def test_a_wrong_line_refuses_the_file_and_names_it(store: Store, lines: list[str | bytes], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        store.import_rows(rows_of(lines, "rows.jsonl"))
    assert "rows.jsonl" in raised.value.message
    assert store.measurements() == (), "all or none"


def test_a_row_of_the_future_is_refused_for_it_would_stay_the_newest() -> None:
    lines = [line_of(Row(where=HERE, configuration=configuration_of(ONE), measured=SERVED))]
    at = SERVED.at
    assert len(list(rows_of(lines, latest_seconds=at))) == 1
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl, line 1: it was measured in the future"):
        list(rows_of(lines, "rows.jsonl", latest_seconds=at - 1))


def test_the_newer_of_two_wins_where_it_tells() -> None:
    both = merged(START, SERVED)
    assert both == merged(SERVED, START)
    assert (both.source, both.at, both.load_seconds, both.decode_tokens_per_second) == ("served", 200.0, 2.5, 31.5)
    assert merged(START, None) == START
