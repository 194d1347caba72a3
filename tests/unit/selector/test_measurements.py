"""Published measurements: what the files may say, and that each of them can be planned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from selector.catalog import Catalog
from selector.errors import ProfileError
from selector.machines import report_from_spec
from selector.measurements import FOLDER, OF_A_WORKLOAD, OF_ANSWERS, Measurement, measurements, sources

KEMPNER = "kempner.toml"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture(scope="module")
def known() -> tuple[Measurement, ...]:
    return measurements()


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, str], Path]:
    """A folder with one file, of which the first occurrence of a text is another."""

    def edit(old: str, new: str) -> Path:
        text = (FOLDER / KEMPNER).read_text()
        assert old in text
        (tmp_path / KEMPNER).write_text(text.replace(old, new, 1))
        return tmp_path

    return edit


def test_every_file_is_read_and_holds_results() -> None:
    found = sources()
    assert [one.id for one in found] == sorted(path.stem for path in FOLDER.glob("*.toml"))
    assert all(run.results for one in found for run in one.runs)


def test_every_run_says_where_it_was_published(known: tuple[Measurement, ...]) -> None:
    assert {each.run.id for each in known if not each.run.source.startswith("https://")} == set()


def test_every_machine_and_model_that_is_compared_is_known(known: tuple[Measurement, ...], catalog: Catalog) -> None:
    for each in known:
        if each.result.excluded is None:
            assert catalog.find_model(each.run.model).model.id == each.run.model
            repos = {checkpoint.repo for checkpoint in catalog.model(each.run.model).checkpoints}
            assert each.run.repo in repos, each.run.id
        if each.run.machine is not None:
            report_from_spec(each.run.machine, catalog)


def test_a_machine_holds_exactly_the_devices_of_its_layout(known: tuple[Measurement, ...], catalog: Catalog) -> None:
    """Or a plan could put the configuration on more of them than were used."""
    for run in {each.run.id: each.run for each in known}.values():
        if run.machine is not None and run.tensor is not None:
            count = len(report_from_spec(run.machine, catalog).accelerators)
            assert count == run.tensor * (run.pipeline or 1), run.id


def test_a_figure_that_cannot_be_compared_says_why(known: tuple[Measurement, ...]) -> None:
    reasons = [each.result.excluded for each in known if each.result.excluded is not None]
    assert reasons
    assert all(len(reason) > 10 for reason in reasons)


def test_figures_stand_in_bytes_and_seconds(known: tuple[Measurement, ...]) -> None:
    """A GiB or a millisecond that slipped in is off by orders of magnitude."""
    for each in known:
        metric, value = each.result.metric, each.result.value
        if metric.endswith("_bytes") or "_bytes_" in metric:
            assert value > 1e9, each.result.id
        elif metric == "time_per_token_seconds":
            assert value < 0.1, each.result.id


def test_speeds_that_are_compared_say_their_requests(known: tuple[Measurement, ...]) -> None:
    for each in known:
        if each.result.metric in OF_A_WORKLOAD and each.result.excluded is None:
            assert None not in (each.result.input_tokens, each.result.concurrency), each.result.id
            assert each.result.output_tokens is not None or each.result.metric not in OF_ANSWERS, each.result.id


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('id = "kempner"', 'id = "harvard"', "profiles|kempner.toml: id: is 'harvard'"),
        ("tensor = 4", "tensors = 4", "unknown key, did you mean 'tensor'"),
        ('metric = "checkpoint_bytes"', 'metric = "checkpoint_gib"', "metric"),
        ('id = "kempner-02"', 'id = "kempner-01"', "'kempner-01' is that of kempner.toml"),
        ("value = 19.1", "value = true", "decode_tokens_per_second is a figure"),
        ('metric = "load_seconds"', 'metric = "fits"', "fits is true or false"),
        ("value = 19.1", "value = 0", "cannot be 0"),
        ("value = 19.1", "value = -19.1", "cannot be -19.1"),
        ("value = 19.1", "value = nan", "cannot be nan"),
        ("value = 19.1", "value = inf", "cannot be inf"),
        ("plus_minus = 0.5", "plus_minus = -0.5", "plus_minus: cannot be less than 0"),
        ('machine = "4xh200"', "", "without a machine nothing can be planned"),
        ("output_tokens = 1152, concurrency = 8,", "concurrency = 8,", "without tokens and concurrency no speed"),
        ("concurrency = 32, ", "", "without tokens and concurrency no speed can be planned"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(
    edited: Callable[[str, str], Path], old: str, new: str, told: str
) -> None:
    with pytest.raises(ProfileError, match=told):
        sources(edited(old, new))


def test_an_id_is_unique_over_all_files(tmp_path: Path) -> None:
    shutil.copy(FOLDER / KEMPNER, tmp_path / KEMPNER)
    (tmp_path / "other.toml").write_text((FOLDER / KEMPNER).read_text().replace('id = "kempner"', 'id = "other"', 1))
    with pytest.raises(ProfileError, match=r"other\.toml: .*'kempner-01' is that of kempner\.toml"):
        measurements(tmp_path)


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="nowhere: No such file"):
        sources(tmp_path / "nowhere")
