"""The dimensions of a layout: which values are tried."""

from __future__ import annotations

import pytest

from selector import candidates
from selector.catalog import Catalog
from selector.devices import Group, groups
from selector.engine_facts import EngineFacts
from selector.machines import report_from_spec
from selector.placement import Floor
from selector.request import Objective, Pins

ALL = frozenset({"tensor", "pipeline", "data", "expert", "nodes"})
LAYERS = frozenset({"layers", "data"})


def group(catalog: Catalog, spec: str) -> Group:
    return groups(report_from_spec(spec, catalog), catalog.accelerator_for)[0][0]


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [("8xh100", (8, 4, 2, 1)), ("6xh100", (6, 4, 2, 1)), ("1xh100", (1,)), ("2x8xh100", (8, 4, 2, 1))],
)
def test_sizes_are_those_that_the_heads_divide_by_and_the_whole_node(
    catalog: Catalog, spec: str, sizes: tuple[int, ...]
) -> None:
    arch = catalog.model("glm-4.6").architecture
    assert candidates.tensor_sizes(arch, ALL, group(catalog, spec), Pins()) == sizes


def test_an_engine_without_tensor_parallelism_has_one_size(catalog: Catalog) -> None:
    arch = catalog.model("glm-4.6").architecture
    assert candidates.tensor_sizes(arch, LAYERS, group(catalog, "8xh100"), Pins()) == (1,)


def test_a_count_of_gpus_bounds_every_dimension(catalog: Catalog) -> None:
    arch, here, pins = catalog.model("glm-4.6").architecture, group(catalog, "8xh100"), Pins(gpu_count=4)
    assert candidates.tensor_sizes(arch, ALL, here, pins) == (4, 2, 1)
    assert max(candidates.stages(ALL, Floor(here), 1, pins).counts) == 4
    assert candidates.most_replicas(ALL, here, 2, pins, None) == 2


def test_stages_that_fill_the_devices_evenly_may_still_win(catalog: Catalog) -> None:
    stages = candidates.stages(ALL, Floor(group(catalog, "7xh100")), 1, Pins())
    assert stages.counts == (1, 2, 3, 4, 5, 6, 7)
    assert stages.filling == {7, 3, 2, 1}
    assert stages.side_by_side
    assert not candidates.stages(LAYERS, Floor(group(catalog, "7xh100")), 1, Pins()).side_by_side


def test_numbers_of_stages_grow_slower_than_a_cluster(catalog: Catalog) -> None:
    few = candidates.stages(ALL, Floor(group(catalog, "8x8xh100")), 8, Pins()).counts
    many = candidates.stages(ALL, Floor(group(catalog, "512x8xh100")), 8, Pins()).counts
    assert max(many) == 512
    assert len(many) <= len(few) + 16


def test_a_pin_is_the_only_value(catalog: Catalog) -> None:
    arch, here = catalog.model("glm-4.6").architecture, group(catalog, "8xh100")
    assert candidates.tensor_sizes(arch, ALL, here, Pins(tensor_parallel=3)) == (3,)
    assert candidates.stages(ALL, Floor(here), 1, Pins(pipeline_parallel=5)).counts == (5,)
    vllm = catalog.engine("vllm")
    assert candidates.speculative_choices(vllm, has_mtp=True, pins=Pins(speculative="mtp"), objective="balanced") == (
        True,
    )


def test_speculative_decoding_is_tried_for_latency_where_engine_and_checkpoint_have_it(catalog: Catalog) -> None:
    vllm, llamacpp = catalog.engine("vllm"), catalog.engine("llamacpp")

    def tried(engine: EngineFacts, objective: Objective, *, has_mtp: bool = True) -> tuple[bool, ...]:
        return candidates.speculative_choices(engine, has_mtp=has_mtp, pins=Pins(), objective=objective)

    assert tried(vllm, "latency") == (False, True)
    assert tried(vllm, "balanced") == (False,)
    assert tried(vllm, "latency", has_mtp=False) == (False,)
    assert tried(llamacpp, "latency") == (False,)


def test_no_more_replicas_than_requests_at_once(catalog: Catalog) -> None:
    here = group(catalog, "8xh100")
    assert candidates.most_replicas(ALL, here, 1, Pins(), None) == 8
    assert candidates.most_replicas(ALL, here, 1, Pins(), 3) == 3
    assert candidates.most_replicas(frozenset({"tensor"}), here, 1, Pins(), None) == 1
