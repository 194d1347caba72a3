"""What an engine can run: each rule refuses what crashed and allows what ran."""

from __future__ import annotations

import pytest

from autolaunch import api
from selector import legality
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.devices import Group, groups
from selector.engine_facts import EngineFacts, Loads
from selector.facts import CheckpointFacts, ModelFacts
from selector.legality import Refusal, Verdict
from selector.machines import report_from_spec
from selector.request import Pins
from selector.versions import version_key


def group_of(catalog: Catalog, machine: str) -> Group:
    found, _ = groups(report_from_spec(machine, catalog), catalog.accelerator_for)
    return found[0]


def checkpoint_of(model: ModelFacts, quantization: str) -> CheckpointFacts:
    return next(each for each in model.checkpoints if each.quantization == quantization)


def verdict(
    catalog: Catalog,
    engine_name: str,
    model_name: str,
    quantization: str,
    machine: str,
    parallel: Parallel,
    *,
    version: str | None = None,
    speculative: bool = False,
) -> Refusal | Verdict:
    engine, model = catalog.engine(engine_name), catalog.model(model_name)
    return legality.rules(
        engine,
        version=version or engine.version,
        model_id=model.id,
        checkpoint=checkpoint_of(model, quantization),
        arch=model.architecture,
        group=group_of(catalog, machine),
        parallel=parallel,
        speculative=speculative,
    )


def loads(catalog: Catalog, engine_name: str, model_name: str, quantization: str, machine: str) -> Loads | Refusal:
    engine, model = catalog.engine(engine_name), catalog.model(model_name)
    return legality.loader(
        engine, engine.version, checkpoint_of(model, quantization), model.architecture, group_of(catalog, machine)
    )


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.9.2", "0.11.0"),
        ("0.11.0", "0.33.0"),
        ("b6092", "b7400"),
        ("0.5.3rc1", "0.5.3"),
        ("0.11.0rc2.dev371+gaafb99a4d", "0.11.0"),
        ("0.5.4", "0.5.4.post2"),
        ("0.5.4.post2", "0.5.5"),
        ("0.10.1", "0.10.1.1"),
        ("nightly", "0.0.1"),
    ],
)
def test_versions_compare_by_number(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


@pytest.mark.parametrize("other", ["0.25.1+cu129", "v0.25.1", "0.25.1.0"])
def test_a_build_of_a_version_is_that_version(other: str) -> None:
    assert version_key(other) == version_key("0.25.1")


@pytest.mark.parametrize(
    ("engine", "parallel", "code"),
    [
        ("mlx", Parallel(pipeline=2), "layout.pipeline"),
        ("mlx", Parallel(data=2), "layout.data"),
        ("mlx", Parallel(tensor=2), "layout.tensor"),
        ("transformers", Parallel(expert=True), "layout.expert"),
        ("sglang", Parallel(tensor=8, pipeline=2), "layout.node"),
    ],
)
def test_a_layout_that_an_engine_has_not_is_refused(
    catalog: Catalog, engine: str, parallel: Parallel, code: str
) -> None:
    arch = catalog.model("glm-4.6").architecture
    answer = legality.layout(arch, catalog.engine(engine), parallel, group_of(catalog, "2x8xh100"))
    assert isinstance(answer, Refusal)
    assert answer.code == code


@pytest.mark.parametrize(("tensor", "code"), [(3, "layout.kv_heads"), (6, "layout.kv_heads"), (5, "layout.heads")])
def test_a_size_that_does_not_divide_the_heads_is_refused(catalog: Catalog, tensor: int, code: str) -> None:
    arch = catalog.model("glm-4.6").architecture
    answer = legality.layout(arch, catalog.engine("vllm"), Parallel(tensor=tensor), group_of(catalog, "8xh100"))
    assert isinstance(answer, Refusal)
    assert answer.code == code
    assert answer.numbers["tensor_parallel"] == tensor


def test_sixteen_ranks_repeat_kv_heads_and_are_legal_in_a_node_of_sixteen(catalog: Catalog) -> None:
    arch = catalog.model("glm-4.6").architecture
    assert legality.layout(arch, catalog.engine("vllm"), Parallel(tensor=16), group_of(catalog, "16xh100")) is None


@pytest.mark.parametrize(
    ("engine", "machine", "tensor", "refused"),
    [
        ("vllm", "2x8xh100", 16, False),  # the maker's own layout of GLM-4.5 in bf16 on sixteen H100
        ("vllm", "8xh100", 16, True),
        ("vllm", "2x4xh100", 16, False),
        ("sglang", "2x8xh100", 16, True),
    ],
)
def test_tensor_parallelism_leaves_a_node_only_over_whole_ones(
    catalog: Catalog, engine: str, machine: str, tensor: int, refused: bool
) -> None:
    arch = catalog.model("glm-4.6").architecture
    answer = legality.layout(arch, catalog.engine(engine), Parallel(tensor=tensor), group_of(catalog, machine))
    assert isinstance(answer, Refusal) == refused
    assert answer is None or answer.code == "layout.node"


def test_tensor_parallelism_over_nodes_is_kept_when_pinned_and_never_chosen(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", repo="zai-org/GLM-4.5", tensor_parallel=16)
    pinned = api.plan("glm-4.5", hardware="2x8xh100", known=catalog, pins=pins).chosen
    assert pinned is not None
    assert (pinned.parallel.tensor, pinned.parallel.nodes) == (16, 2)
    assert pinned.command is not None
    assert "ray" in pinned.command.argv
    free = api.plan("glm-4.5", hardware="2x8xh100", known=catalog, pins=Pins(repo="zai-org/GLM-4.5"), keep_all=True)
    assert free.chosen is not None
    assert all(each.parallel.tensor <= 8 for each in (free.chosen, *free.alternatives))
    assert (free.chosen.speed.decode_tokens_per_second or 0) > (pinned.speed.decode_tokens_per_second or 0)


def test_experts_must_divide_under_expert_parallelism(catalog: Catalog) -> None:
    arch = catalog.model("glm-4.6").architecture
    engine, group = catalog.engine("vllm"), group_of(catalog, "8xh100")
    assert legality.layout(arch, engine, Parallel(tensor=8, expert=True), group) is None
    alone = legality.layout(arch, engine, Parallel(tensor=1, expert=True), group)
    assert isinstance(alone, Refusal)
    assert alone.code == "layout.expert"


def test_an_engine_without_tensor_parallelism_is_not_given_any(catalog: Catalog) -> None:
    arch = catalog.model("glm-4.6").architecture
    answer = legality.layout(arch, catalog.engine("llamacpp"), Parallel(tensor=2), group_of(catalog, "2xh100"))
    assert isinstance(answer, Refusal)
    assert answer.code == "layout.tensor"


# --- formats ----------------------------------------------------------------------------------------


def test_fp8_runs_natively_from_sm_89_and_weight_only_below_on_vllm(catalog: Catalog) -> None:
    native = loads(catalog, "vllm", "glm-4.6", "FP8", "8xh100")
    ada = loads(catalog, "vllm", "glm-4.6", "FP8", "8x4090")
    ampere = loads(catalog, "vllm", "glm-4.6", "FP8", "8xa100-80gb")
    assert isinstance(native, Loads)
    assert isinstance(ada, Loads)
    assert isinstance(ampere, Loads)
    assert (native.kernel, ada.kernel, ampere.kernel) == ("fp8", "fp8", "marlin-fp8")


def test_sglang_refuses_fp8_on_ampere_and_says_what_it_needs(catalog: Catalog) -> None:
    answer = loads(catalog, "sglang", "glm-4.6", "FP8", "8xa100-80gb")
    assert isinstance(answer, Refusal)
    assert answer.code == "engine.capability"
    assert "8.9" in answer.message
    assert "8.0" in answer.message


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers", "llamacpp"])
def test_mlx_checkpoints_are_for_mlx_alone(catalog: Catalog, engine: str) -> None:
    answer = loads(catalog, engine, "glm-4.6", "4bit", "m3-ultra-512gb")
    assert isinstance(answer, Refusal)
    assert answer.code == "engine.format"


@pytest.mark.parametrize(("model", "quantization"), [("glm-4.6", "4bit"), ("glm-4.5v", "6bit")])
def test_a_mac_loads_mlx_checkpoints(catalog: Catalog, model: str, quantization: str) -> None:
    assert isinstance(loads(catalog, "mlx", model, quantization, "m3-ultra-512gb"), Loads)


def test_bfloat16_is_refused_before_ampere(catalog: Catalog) -> None:
    answer = loads(catalog, "vllm", "glm-4.5v", "BF16", "4xt4")
    assert isinstance(answer, Refusal)
    assert answer.code == "engine.capability"


def test_nvfp4_is_native_on_blackwell_and_weight_only_below_on_vllm(catalog: Catalog) -> None:
    native = loads(catalog, "vllm", "glm-4.7", "NVFP4", "8xb200")
    hopper = loads(catalog, "vllm", "glm-4.7", "NVFP4", "8xh100")
    assert isinstance(native, Loads)
    assert isinstance(hopper, Loads)
    assert (native.kernel, hopper.kernel) == ("fp4", "marlin-fp4")
    assert isinstance(loads(catalog, "sglang", "glm-4.7", "NVFP4", "8xh100"), Refusal)


def test_the_bf16_miniature_of_a_cpu_is_float32(catalog: Catalog) -> None:
    """MLX's CPU back end fails on bf16 experts at the first request, so it is never offered there."""
    answer = loads(catalog, "mlx", "glm-4.6", "BF16", "cpu-64gb")
    assert isinstance(answer, Refusal)
    assert answer.code == "engine.device"


# --- known faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_fp8_of_45v_crashed_in_marlin_on_ampere_before_the_padding(catalog: Catalog, tensor: int) -> None:
    parallel = Parallel(tensor=tensor)
    old = verdict(catalog, "vllm", "glm-4.5v", "FP8", "8xa100-80gb", parallel, version="0.20.0")
    new = verdict(catalog, "vllm", "glm-4.5v", "FP8", "8xa100-80gb", parallel)
    assert isinstance(old, Refusal)
    assert old.code == "rule.fp8_marlin_tile"
    assert isinstance(new, Verdict)


def test_fp8_of_45v_ran_in_pipeline_stages_of_one_and_46_ran_at_eight(catalog: Catalog) -> None:
    staged = verdict(
        catalog, "vllm", "glm-4.5v", "FP8", "8xa100-80gb", Parallel(tensor=1, pipeline=4), version="0.20.0"
    )
    measured = verdict(catalog, "vllm", "glm-4.6", "FP8", "8xa100-80gb", Parallel(tensor=8), version="0.20.0")
    assert isinstance(staged, Verdict)
    assert isinstance(measured, Verdict)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers", "mlx", "llamacpp"])
def test_a_version_older_than_the_oldest_safe_one_is_refused(catalog: Catalog, engine: str) -> None:
    facts = catalog.engine(engine)
    answer = legality.too_old(facts, facts.packages[0], "0.0.1")
    assert isinstance(answer, Refusal)
    assert answer.code == "engine.version"
    assert legality.too_old(facts, facts.packages[0], facts.version) is None


def test_mlx_vlm_counts_in_its_own_versions(catalog: Catalog) -> None:
    facts = catalog.engine("mlx")
    package = next(each for each in facts.packages if each.name == "mlx-vlm")
    assert legality.too_old(facts, package, "0.7.10") is None
    assert isinstance(legality.too_old(facts, package, "0.3.3"), Refusal)


@pytest.mark.parametrize(
    ("engine", "pins"),
    [
        ("transformers", Pins(kv_cache_dtype="fp32")),
        ("transformers", Pins(memory_utilization=0.8)),
        ("transformers", Pins(max_sequences=2)),
        ("mlx", Pins(kv_cache_dtype="fp32")),
        ("mlx", Pins(eager=True)),
        ("llamacpp", Pins(memory_utilization=0.5)),
        ("llamacpp", Pins(speculative="mtp")),
    ],
)
def test_a_pin_that_an_engine_cannot_carry_out_refuses_it(catalog: Catalog, engine: str, pins: Pins) -> None:
    answer = legality.unkept_pin(catalog.engine(engine), pins)
    assert isinstance(answer, Refusal)
    assert answer.code == "pin.engine"
    assert legality.unkept_pin(catalog.engine("vllm"), pins) is None


def test_amds_gpus_without_fp8_are_not_given_it(catalog: Catalog) -> None:
    assert isinstance(loads(catalog, "vllm", "glm-4.6", "FP8", "8xmi300x"), Loads)
    refused = loads(catalog, "vllm", "glm-4.6", "FP8", "8xmi250x")
    assert isinstance(refused, Refusal)
    assert refused.code == "engine.capability"


def rules_of(catalog: Catalog) -> list[tuple[EngineFacts, str]]:
    return [(catalog.engine(name), rule.code) for name in catalog.engine_names() for rule in catalog.engine(name).rules]


def test_every_rule_has_a_source_and_a_check_that_exists(catalog: Catalog) -> None:
    assert rules_of(catalog)
    for engine, code in rules_of(catalog):
        rule = next(each for each in engine.rules if each.code == code)
        assert rule.source
        assert rule.check is None or rule.check in legality.CHECKS
        assert 0 < rule.speed_factor <= 1
