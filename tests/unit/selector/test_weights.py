"""What lies on a rank, against engine logs, by hand and by its own laws."""

from __future__ import annotations

import pytest

from selector import architecture
from selector.architecture import StoredWeights, stored_weights
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.devices import GIB
from selector.facts import Architecture
from selector.weights import Stage, rank_kv_bytes_per_token, rank_stages, stage_layers


def stages(
    catalog: Catalog,
    model: str,
    quantization: str,
    parallel: Parallel,
    *,
    engine: str = "vllm",
    mtp: bool = False,
    whole_vision: bool = False,
) -> tuple[Stage, ...]:
    facts = catalog.model(model)
    checkpoint = next(each for each in facts.checkpoints if each.quantization == quantization)
    return rank_stages(
        facts.architecture,
        stored_weights(facts.architecture, checkpoint),
        parallel,
        catalog.engine(engine).memory,
        mtp=mtp,
        whole_vision=whole_vision,
    )


@pytest.mark.parametrize(
    ("model", "quantization", "tensor", "mtp", "logged_gib"),
    [
        # https://github.com/KempnerInstitute/hpc-agentic-recipes recipes/GLM-4.6-FP8/h200-4, vLLM 0.25.1
        ("glm-4.6", "FP8", 4, True, 84.22),
        # https://github.com/vllm-project/vllm/issues/25143, vLLM 0.10.2: "Model loading took 51.4067 GiB"
        ("glm-4.5v", "FP8", 2, False, 51.4067),
    ],
)
def test_weights_a_rank_agree_with_what_vllm_logged(
    catalog: Catalog, model: str, quantization: str, tensor: int, mtp: bool, logged_gib: float
) -> None:
    (only,) = stages(catalog, model, quantization, Parallel(tensor=tensor), mtp=mtp)
    assert only.weight_bytes / GIB == pytest.approx(logged_gib, rel=0.002)


@pytest.mark.parametrize(("tensor", "share"), [(1, 1), (2, 2), (4, 4), (8, 8), (16, 8)])
def test_a_rank_holds_its_share_of_the_kv_heads_and_no_less_than_one(catalog: Catalog, tensor: int, share: int) -> None:
    arch = catalog.model("glm-4.6").architecture
    per_rank = rank_kv_bytes_per_token(arch, Parallel(tensor=tensor), arch.num_hidden_layers, 2)
    assert per_rank == 376_832 // share


def test_a_token_takes_what_sglang_allocated_for_it(catalog: Catalog) -> None:
    """GLM-4.5-Air-FP8, attention over two ranks: 1,339,395 tokens in twice 58.76 GiB
    (https://github.com/sgl-project/sglang/issues/11208).
    """
    arch = catalog.model("glm-4.5-air").architecture
    per_rank = rank_kv_bytes_per_token(arch, Parallel(tensor=2), arch.num_hidden_layers, 2)
    assert per_rank == 94_208
    assert 1_339_395 * per_rank == pytest.approx(2 * 58.76 * GIB, rel=1e-3)


def test_kv_projections_are_repeated_beyond_their_heads(catalog: Catalog) -> None:
    """Sixteen ranks of GLM-4.6 hold eight KV heads twice: 2 x 1024 x 5120 weights and 2 x 1024 biases a layer."""
    (eight,) = stages(catalog, "glm-4.6", "BF16", Parallel(tensor=8))
    (sixteen,) = stages(catalog, "glm-4.6", "BF16", Parallel(tensor=16))
    keys_values = 92 * 2 * 1024 * (5120 + 1) * 2
    whole = whole_bytes(catalog.model("glm-4.6").architecture)
    assert sixteen.weight_bytes == pytest.approx((eight.weight_bytes - whole) / 2 + whole + keys_values / 16, rel=1e-6)


def whole_bytes(arch: Architecture) -> int:
    """What every rank of GLM-4.6 in bf16 holds: router in 32 bits with its correction bias, norms of three kinds."""
    sparse = arch.num_hidden_layers - arch.first_k_dense_replace
    router = sparse * arch.n_routed_experts * (arch.hidden_size + 1) * 4
    norms = arch.num_hidden_layers * (2 * arch.hidden_size + 2 * arch.head_dim) * 2 + arch.hidden_size * 2
    return router + norms


def test_dealt_out_experts_take_their_scales_with_them(catalog: Catalog) -> None:
    """A scale for each of a down projection's 5120 rows is whole on a rank that holds a slice of every expert."""
    (cut,) = stages(catalog, "glm-4.6", "FP8", Parallel(tensor=8))
    (dealt,) = stages(catalog, "glm-4.6", "FP8", Parallel(tensor=8, expert=True))
    assert cut.weight_bytes - dealt.weight_bytes == pytest.approx(89 * 160 * 5120 * 4 * 7 / 8, abs=2)


def test_a_vision_tower_that_does_not_divide_is_whole_on_every_rank(catalog: Catalog) -> None:
    parallel = Parallel(tensor=8)
    (whole,) = stages(catalog, "glm-4.5v", "BF16", parallel, whole_vision=True)
    (divided,) = stages(catalog, "glm-4.5v", "BF16", parallel, whole_vision=False)
    # 858,681,856 parameters, of which convolutions, positions and norms are whole in either case.
    norms = 24 * 2 * 1536 + 2 * 1536 + 2 * 4096
    convolutions = (3 * 2 * 14 * 14 * 1536 + 1536) + (1536 * 4 * 4096 + 4096)
    split = 858_681_856 - norms - convolutions - 24 * 24 * 1536
    assert whole.weight_bytes - divided.weight_bytes == pytest.approx(split * 2 * 7 / 8, abs=2)


def test_the_mtp_layers_own_embedding_gives_way_to_the_main_models(catalog: Catalog) -> None:
    """GLM-4.5 stores a second embedding and head; vLLM shares the main model's, so both models grow alike."""
    grown = {}
    for model in ("glm-4.5", "glm-4.6"):
        (off,) = stages(catalog, model, "BF16", Parallel(tensor=8))
        (on,) = stages(catalog, model, "BF16", Parallel(tensor=8), mtp=True)
        grown[model] = on.weight_bytes - off.weight_bytes
        assert (off.kv_layers, on.kv_layers) == (92, 93)
    assert grown["glm-4.5"] == pytest.approx(grown["glm-4.6"], abs=2)


@pytest.mark.parametrize(
    ("layers", "pipeline", "counts"),
    [
        (46, 4, (11, 12, 12, 11)),
        (92, 8, (11, 11, 11, 12, 12, 12, 12, 11)),
        (92, 3, (31, 31, 30)),
        (92, 4, (23, 23, 23, 23)),
    ],
)
def test_stages_are_dealt_as_get_pp_indices_does(layers: int, pipeline: int, counts: tuple[int, ...]) -> None:
    assert stage_layers(layers, pipeline) == counts


def test_other_engines_deal_layers_their_own_way() -> None:
    assert stage_layers(46, 4, "even") == (12, 12, 11, 11)
    # accelerate: 46 / 4 + 1.25 layers a device, one fewer on the first, the rest on the last.
    assert stage_layers(46, 4, "balanced") == (11, 12, 12, 11)
    assert stage_layers(46, 8, "balanced") == (6, 7, 7, 7, 7, 7, 5, 0)


@pytest.mark.parametrize("dealing", ["pipeline", "even", "balanced"])
@pytest.mark.parametrize("layers", [46, 92])
@pytest.mark.parametrize("pipeline", [1, 2, 3, 4, 8])
def test_every_layer_is_dealt_once(layers: int, pipeline: int, dealing: str) -> None:
    counts = stage_layers(layers, pipeline, dealing)  # type: ignore[arg-type]  # a word of the literal
    assert sum(counts) == layers
    assert len(counts) == pipeline
    assert min(counts) >= 0


@pytest.mark.parametrize("model", ["glm-4.5-air", "glm-4.5v", "glm-4.6"])
@pytest.mark.parametrize("parallel", [Parallel(tensor=8), Parallel(tensor=8, expert=True), Parallel(pipeline=4)])
def test_ranks_together_hold_the_model(catalog: Catalog, model: str, parallel: Parallel) -> None:
    """Nothing is lost, and repeated are only routers, norms, a tower's odd parts: at most a hundredth."""
    (one,) = stages(catalog, model, "BF16", Parallel(), engine="sglang")
    found = stages(catalog, model, "BF16", parallel, engine="sglang")
    together = sum(stage.weight_bytes for stage in found) * parallel.tensor
    tower = catalog.model(model).architecture.vision
    extra = 0 if tower is None else (parallel.pipeline - 1) * 2 * architecture.vision(tower).parameters
    assert one.weight_bytes - 8 <= together <= one.weight_bytes * 1.01 + extra


def test_embedding_lies_on_the_first_stage_and_the_head_on_the_last(catalog: Catalog) -> None:
    first, *_, last = stages(catalog, "glm-4.6", "BF16", Parallel(pipeline=4))
    table = 151_552 * 5120 * 2
    arch = catalog.model("glm-4.6").architecture
    dense = architecture.layer(arch, dense=True).parameters - architecture.layer(arch, dense=False).parameters
    # Both have 23 layers and one of the two tables; three of the first are dense, and the last has a norm.
    routers = 3 * arch.n_routed_experts * arch.hidden_size * 2
    difference = first.weight_bytes - last.weight_bytes
    bias = 3 * arch.n_routed_experts * 2
    assert difference == pytest.approx(3 * dense * 2 - routers - bias - arch.hidden_size * 2, abs=4)
    assert last.weight_bytes > 23 * 7e9 + table


def test_a_described_layout_is_loaded_as_described_whatever_the_files_weigh(catalog: Catalog) -> None:
    model = catalog.model("glm-4.6")
    checkpoint = next(each for each in model.checkpoints if each.quantization == "FP8")
    stored: StoredWeights = stored_weights(model.architecture, checkpoint)
    (one,) = stages(catalog, "glm-4.6", "FP8", Parallel(), engine="transformers", mtp=True)
    assert stored.scale > 1.005
    assert one.weight_bytes == pytest.approx(stored.total / stored.scale, rel=1e-6)


def test_an_input_embedding_in_main_memory_takes_none_of_the_device(catalog: Catalog) -> None:
    mine = stages(catalog, "glm-4.6", "BF16", Parallel(), engine="llamacpp")[0].weight_bytes
    whole = stages(catalog, "glm-4.6", "BF16", Parallel(), engine="transformers")[0].weight_bytes
    assert whole - mine == 151_552 * 5120 * 2
