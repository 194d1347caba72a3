"""Which checkpoint a pull is of, and where it may come from."""

from __future__ import annotations

import pytest

from autolaunch.pulling import the_only_one
from autolaunch.weights import wanted_of
from selector.catalog import Catalog
from selector.request import Pins


@pytest.mark.parametrize(
    ("pins", "repo"),
    [
        (Pins(repo="zai-org/GLM-4.6-FP8"), "zai-org/GLM-4.6-FP8"),
        (Pins(repo="ZAI-ORG/glm-4.6-fp8"), "zai-org/GLM-4.6-FP8"),
        (Pins(repo="unsloth/GLM-4.6-GGUF"), None),
        (Pins(), None),
    ],
)
def test_a_checkpoint_that_is_named_needs_no_plan(catalog: Catalog, pins: Pins, repo: str | None) -> None:
    found = the_only_one(catalog.model("glm-4.6"), pins)
    assert (None if found is None else found.repo) == repo


def test_one_quantization_of_a_repository_is_named_with_it(catalog: Catalog) -> None:
    model = catalog.model("glm-4.6")
    names = [each.quantization for each in model.checkpoints if each.repo == "unsloth/GLM-4.6-GGUF"]
    found = the_only_one(model, Pins(repo="unsloth/GLM-4.6-GGUF", quantization=names[0]))
    assert found is not None
    assert (found.quantization, bool(found.file_prefix)) == (names[0], True)


def test_another_hub_is_asked_only_where_none_and_no_commit_is_pinned(catalog: Catalog) -> None:
    model = catalog.model("glm-4.6")
    one = the_only_one(model, Pins(repo="zai-org/GLM-4.6-FP8"))
    assert one is not None
    both = wanted_of(one, model, hub_pinned=False)
    assert [hub for hub, _ in both.places] == ["huggingface", "modelscope"]
    assert [hub for hub, _ in wanted_of(one, model, hub_pinned=True).places] == ["huggingface"]
    at = the_only_one(model, Pins(repo="zai-org/GLM-4.6-FP8", revision="v1"))
    assert at is not None
    assert [hub for hub, _ in wanted_of(at, model, hub_pinned=False).places] == ["huggingface"]
    there = the_only_one(model, Pins(repo="zai-org/GLM-4.6-FP8", hub="modelscope"))
    assert there is not None
    assert [hub for hub, _ in wanted_of(there, model, hub_pinned=True).places] == ["modelscope"]
