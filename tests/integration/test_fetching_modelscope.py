"""ModelScope, by its own client (requirements/clients/modelscope): where Hugging Face does not answer, and pinned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autolaunch.hubs.obtaining import Obtained, Wanted, obtain
from autolaunch.hubs.wire import Patience
from selector.errors import DownloadError, Gated, NotOnHub
from tests import clients
from tests.fakes.hub import COMMIT, Hub, checkpoint, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

REPO = "ZhipuAI/GLM-4.6-FP8"
SHORT = Patience(first_tries=2, tries=3, first_seconds=0.02, most_seconds=0.05)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    place = clients.programs("modelscope").parent
    (packages,) = place.glob("lib/python*/site-packages")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    with serving(Hub(files={REPO: checkpoint(shards=3, shard_bytes=2 * 2**20)})) as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield hub


def fetched(tmp_path: Path, wanted: Wanted) -> Obtained:
    return obtain(wanted, home=tmp_path / "home", patience=SHORT)


def test_modelscope_is_taken_where_hugging_face_does_not_answer(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    got = fetched(tmp_path, Wanted(huggingface="zai-org/GLM-4.6-FP8", modelscope=REPO))
    assert (got.listing.hub, got.listing.revision) == (
        "modelscope",
        COMMIT,
    )  # the branch's commit, though its id is cut
    assert got.fetched_bytes == got.listing.size_bytes
    assert all(f"Revision={COMMIT}" in asked for asked in hub.asked if "FilePath" in asked)
    assert fetched(tmp_path, Wanted(modelscope=REPO)).fetched_bytes == 0


def test_what_breaks_off_there_goes_on_and_what_is_refused_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {"cut": 2, "damaged": 1, "busy": 1}
    got = fetched(tmp_path, Wanted(modelscope=REPO))
    assert all((got.folder / each.path).stat().st_size == each.size_bytes for each in got.listing.files)
    cases: tuple[tuple[Wanted, type[DownloadError]], ...] = (
        (Wanted(modelscope="ZhipuAI/none"), NotOnHub),
        (Wanted(modelscope=REPO, revision="v9"), NotOnHub),
    )
    for wanted, error in cases:
        with pytest.raises(error):
            fetched(tmp_path, wanted)
    hub.faults = {"gated": None}
    with pytest.raises(Gated, match="ModelScope does not let"):
        fetched(tmp_path, Wanted(modelscope=REPO))
