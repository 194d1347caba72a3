"""What is known to run and not to run, cell by cell: layouts, formats on devices, and published configurations."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from autolaunch import api
from selector import legality
from selector.catalog import Catalog
from selector.contract import LaunchPlan, Parallel
from selector.devices import Group, groups
from selector.engine_facts import Loads
from selector.facts import CheckpointFacts, ModelFacts, Storage
from selector.legality import Refusal, Verdict
from selector.machines import report_from_spec
from selector.request import Pins
from selector.versions import in_versions


def group_of(catalog: Catalog, machine: str) -> Group:
    found, _ = groups(report_from_spec(machine, catalog), catalog.accelerator_for)
    return found[0]


def checkpoint_of(model: ModelFacts, form: str) -> CheckpointFacts:
    """The model's checkpoint of a format, or its first one retold in it."""
    found = next((each for each in model.checkpoints if each.format == form), None)
    return found or msgspec.convert({**msgspec.to_builtins(model.checkpoints[0]), "format": form}, CheckpointFacts)


# --- how ranks cut the two models ---------------------------------------------------------------------


class Cell(NamedTuple):
    """One model at one tensor parallelism. ``int4`` is what groups of 128 come to when experts are cut."""

    model: str
    tensor: int
    legal: bool
    int4: str = ""
    fp8_marlin: bool = False
    fp8_cutlass: bool = False
    vision: bool = True


CELLS = [
    Cell("glm-4.5v", 1, legal=True, int4="marlin", fp8_marlin=True, fp8_cutlass=True),
    Cell("glm-4.5v", 2, legal=True, int4="slow", fp8_cutlass=True),
    Cell("glm-4.5v", 3, legal=False),
    Cell("glm-4.5v", 4, legal=True, int4="slow", fp8_cutlass=True),
    Cell("glm-4.5v", 6, legal=False),
    Cell("glm-4.5v", 8, legal=True, int4="no", vision=False),
    Cell("glm-4.5v", 12, legal=False),
    Cell("glm-4.5v", 16, legal=True, int4="no", vision=False),
    Cell("glm-4.6", 1, legal=True, int4="marlin", fp8_marlin=True, fp8_cutlass=True),
    Cell("glm-4.6", 2, legal=True, int4="marlin", fp8_marlin=True, fp8_cutlass=True),
    Cell("glm-4.6", 3, legal=False),
    Cell("glm-4.6", 4, legal=True, int4="marlin", fp8_marlin=True, fp8_cutlass=True),
    Cell("glm-4.6", 6, legal=False),
    Cell("glm-4.6", 8, legal=True, int4="slow", fp8_marlin=True, fp8_cutlass=True),
    Cell("glm-4.6", 12, legal=False),
    Cell("glm-4.6", 16, legal=True, int4="slow", fp8_cutlass=True),
]
LEGAL = [cell for cell in CELLS if cell.legal]


def named(cell: Cell) -> str:
    return f"{cell.model}-tp{cell.tensor}"


def verdict(
    catalog: Catalog, cell: Cell, form: str, machine: str, *, expert: bool = False, version: str | None = None
) -> Refusal | Verdict:
    engine, model = catalog.engine("vllm"), catalog.model(cell.model)
    return legality.rules(
        engine,
        version=version or engine.version,
        model_id=model.id,
        checkpoint=checkpoint_of(model, form),
        arch=model.architecture,
        group=group_of(catalog, machine),
        parallel=Parallel(tensor=cell.tensor, expert=expert),
        speculative=False,
    )


def codes(answer: Refusal | Verdict) -> set[str]:
    return {answer.code} if isinstance(answer, Refusal) else {note.code for note in answer.notes}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("cell", CELLS, ids=named)
def test_a_layout_is_legal_where_kv_heads_divide_or_repeat(catalog: Catalog, cell: Cell, engine: str) -> None:
    arch, group = catalog.model(cell.model).architecture, group_of(catalog, "16xh100")
    answer = legality.layout(arch, catalog.engine(engine), Parallel(tensor=cell.tensor), group)
    assert (answer is None) == cell.legal
    assert answer is None or answer.code == "layout.kv_heads"


@pytest.mark.parametrize("cell", [cell for cell in LEGAL if cell.tensor > 1], ids=named)
def test_experts_divide_at_every_legal_size(catalog: Catalog, cell: Cell) -> None:
    arch, group = catalog.model(cell.model).architecture, group_of(catalog, "16xh100")
    assert legality.layout(arch, catalog.engine("vllm"), Parallel(tensor=cell.tensor, expert=True), group) is None


@pytest.mark.parametrize("expert", [False, True])
@pytest.mark.parametrize("cell", LEGAL, ids=named)
def test_four_bit_groups_are_marlin_slow_or_impossible(catalog: Catalog, cell: Cell, expert: bool) -> None:
    answer = verdict(catalog, cell, "awq", "16xh100", expert=expert)
    if isinstance(answer, Refusal):
        assert answer.code == "rule.int4_group_impossible"
        found = "no"
    else:
        found = "slow" if "int4_group_slow" in codes(answer) else "marlin"
        assert (answer.speed_factor < 1) == (found == "slow")
    assert found == ("marlin" if expert else cell.int4)


@pytest.mark.parametrize("cell", LEGAL, ids=named)
def test_fp8_crashed_on_ampere_where_a_width_left_marlins_tile(catalog: Catalog, cell: Cell) -> None:
    old = verdict(catalog, cell, "fp8", "16xa100-80gb", version="0.20.0")
    assert ("rule.fp8_marlin_tile" in codes(old)) == (not cell.fp8_marlin)
    assert isinstance(verdict(catalog, cell, "fp8", "16xa100-80gb"), Verdict)
    assert isinstance(verdict(catalog, cell, "fp8", "16xh100", version="0.20.0"), Verdict)


@pytest.mark.parametrize("cell", LEGAL, ids=named)
def test_fp8_leaves_cutlass_where_the_dense_width_does(catalog: Catalog, cell: Cell) -> None:
    assert ("fp8_cutlass_side" in codes(verdict(catalog, cell, "fp8", "16xh100"))) == (not cell.fp8_cutlass)


@pytest.mark.parametrize("cell", LEGAL, ids=named)
def test_a_vision_tower_divides_or_runs_whole(catalog: Catalog, cell: Cell) -> None:
    answer = verdict(catalog, cell, "bf16", "16xh100")
    assert ("vision_heads_replicated" in codes(answer)) == (not cell.vision)


@pytest.mark.parametrize("cell", LEGAL, ids=named)
def test_kv_heads_repeat_beyond_eight_ranks_and_only_there(catalog: Catalog, cell: Cell) -> None:
    """Decode context parallelism has something to share out there alone."""
    assert ("kv_heads_repeated" in codes(verdict(catalog, cell, "bf16", "16xh100"))) == (cell.tensor > 8)


@pytest.mark.parametrize("model", ["glm-4.5v", "glm-4.5-air"])
def test_24_ranks_pass_the_heads_and_fail_the_width_of_the_experts(catalog: Catalog, model: str) -> None:
    arch, engine = catalog.model(model).architecture, catalog.engine("vllm")
    answer = legality.layout(arch, engine, Parallel(tensor=24), group_of(catalog, "24xh100"))
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.numbers["width"]) == ("layout.width", 1408)


@pytest.mark.parametrize(
    ("group", "tensor", "found"),
    [(32, 2, "marlin"), (32, 4, "padded"), (32, 8, "no"), (64, 2, "marlin"), (64, 4, "slow"), (128, 2, "slow")],
)
def test_a_checkpoints_own_groups_decide(catalog: Catalog, group: int, tensor: int, found: str) -> None:
    """1408 columns an expert: 704 is eleven tiles, 352 eleven groups of 32 and no whole tile, 176 neither."""
    engine, model = catalog.engine("vllm"), catalog.model("glm-4.5-air")
    checkpoint = msgspec.structs.replace(checkpoint_of(model, "int4"), storage=Storage(bits=4, group_size=group))
    answers = [
        legality.rules(
            engine,
            version=version,
            model_id=model.id,
            checkpoint=checkpoint,
            arch=model.architecture,
            group=group_of(catalog, "8xh100"),
            parallel=Parallel(tensor=tensor),
            speculative=False,
        )
        for version in ("0.20.0", engine.version)
    ]
    slow = [not isinstance(each, Refusal) and each.speed_factor < 1 for each in answers]
    refused = [isinstance(each, Refusal) for each in answers]
    expected = {"marlin": [False, False], "padded": [True, False], "slow": [True, True], "no": [False, False]}[found]
    assert slow == expected
    assert refused == [found == "no"] * 2


# --- what loads where ---------------------------------------------------------------------------------

#: The devices of a column, by what sets them apart.
DEVICES = {
    "volta": "8xv100-32gb",
    "turing": "8xt4",
    "ampere": "8xa100-80gb",
    "ampere86": "8xrtx3090",
    "ada": "8x4090",
    "hopper": "8xh100",
    "blackwell": "8xb200",
    "blackwell120": "8xrtx-pro-6000",
    "gb10": "gb10",
    "cdna2": "8xmi250x",
    "cdna3": "8xmi300x",
    "apple": "m3-ultra-512gb",
    "cpu": "cpu-64gb",
}
NVIDIA = ("volta", "turing", "ampere", "ampere86", "ada", "hopper", "blackwell", "blackwell120", "gb10")
BEFORE_BF16 = ("volta", "turing")
AMPERE = ("ampere", "ampere86")
FROM_ADA = ("ada", "hopper", "blackwell", "blackwell120", "gb10")
BLACKWELL = ("blackwell", "blackwell120", "gb10")
AMD = ("cdna2", "cdna3")


def everywhere(names: tuple[str, ...], kernel: str) -> dict[str, str]:
    return dict.fromkeys(names, kernel)


#: Engine and format: the kernel on each device; a device that is not named is refused.
RUNS: dict[tuple[str, str], dict[str, str]] = {
    ("vllm", "bf16"): everywhere((*AMPERE, *FROM_ADA, *AMD, "cpu"), "bf16"),
    ("vllm", "fp8"): everywhere(AMPERE, "marlin-fp8") | everywhere((*FROM_ADA, "cdna3"), "fp8"),
    ("vllm", "awq"): everywhere((*AMPERE, *FROM_ADA), "marlin-int4"),
    ("vllm", "gptq"): everywhere((*AMPERE, *FROM_ADA), "marlin-int4"),
    ("vllm", "int4"): everywhere((*AMPERE, *FROM_ADA), "marlin-int4"),
    ("vllm", "nvfp4"): everywhere((*AMPERE, "ada", "hopper"), "marlin-fp4") | everywhere(BLACKWELL, "fp4"),
    ("vllm", "bnb"): {},
    ("vllm", "gguf"): {},
    ("vllm", "mlx"): {},
    ("sglang", "bf16"): everywhere((*AMPERE, *FROM_ADA, *AMD), "bf16"),
    ("sglang", "fp8"): everywhere((*FROM_ADA, "cdna3"), "fp8"),
    ("sglang", "awq"): everywhere((*AMPERE, *FROM_ADA), "marlin-int4"),
    ("sglang", "int4"): everywhere((*AMPERE, *FROM_ADA), "marlin-int4"),
    ("sglang", "gptq"): {},
    ("sglang", "nvfp4"): everywhere(BLACKWELL, "fp4"),
    ("sglang", "bnb"): {},
    ("sglang", "gguf"): {},
    ("sglang", "mlx"): {},
    ("transformers", "bf16"): everywhere((*AMPERE, *FROM_ADA, *AMD, "cpu"), "bf16"),
    ("transformers", "fp8"): {},
    ("transformers", "awq"): {},
    ("transformers", "gptq"): {},
    ("transformers", "int4"): {},
    ("transformers", "nvfp4"): {},
    ("transformers", "bnb"): {},
    ("transformers", "gguf"): {},
    ("transformers", "mlx"): {},
    ("mlx", "mlx"): {"apple": "mlx"},
    ("mlx", "bf16"): {"apple": "mlx"},
    ("mlx", "fp8"): {},
    ("mlx", "awq"): {},
    ("mlx", "gptq"): {},
    ("mlx", "int4"): {},
    ("mlx", "nvfp4"): {},
    ("mlx", "bnb"): {},
    ("mlx", "gguf"): {},
    ("llamacpp", "gguf"): everywhere((*NVIDIA, *AMD, "apple", "cpu"), "gguf"),
    ("llamacpp", "bf16"): {},
    ("llamacpp", "fp8"): {},
    ("llamacpp", "awq"): {},
    ("llamacpp", "gptq"): {},
    ("llamacpp", "int4"): {},
    ("llamacpp", "nvfp4"): {},
    ("llamacpp", "bnb"): {},
    ("llamacpp", "mlx"): {},
}


@pytest.mark.parametrize(("engine", "form"), RUNS, ids=str)
def test_a_format_loads_where_its_arithmetic_is(catalog: Catalog, engine: str, form: str) -> None:
    facts, model = catalog.engine(engine), catalog.model("glm-4.6")
    checkpoint = checkpoint_of(model, form)
    found = {}
    for device, machine in DEVICES.items():
        answer = legality.loader(facts, facts.version, checkpoint, model.architecture, group_of(catalog, machine))
        if isinstance(answer, Loads):
            found[device] = answer.kernel
        else:
            assert answer.code in ("engine.format", "engine.device", "engine.capability")
    assert found == RUNS[engine, form]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers", "mlx", "llamacpp"])
def test_a_format_that_is_never_loaded_has_its_reason_where_one_is_known(catalog: Catalog, engine: str) -> None:
    facts = catalog.engine(engine)
    loaded = {form for row in facts.loads for form in row.formats}
    without_architectures = {form for row in facts.unsupported if not row.architectures for form in row.formats}
    assert not loaded & without_architectures
    model, group = catalog.model("glm-4.6"), group_of(catalog, "8xh100")
    for row in facts.unsupported:
        if row.architectures or not in_versions(facts.version, row.since, row.before):
            continue
        for form in row.formats:
            answer = legality.loader(facts, facts.version, checkpoint_of(model, form), model.architecture, group)
            assert isinstance(answer, Refusal)
            assert answer.message.endswith(row.message)


@pytest.mark.parametrize(
    ("engine", "form", "device", "loads"),
    [
        ("vllm", "bf16", "hopper", True),
        ("sglang", "bf16", "hopper", True),
        ("transformers", "bf16", "hopper", True),
        ("mlx", "mlx", "apple", True),
        ("llamacpp", "gguf", "hopper", False),
    ],
)
def test_the_vision_model_is_loaded_by_the_engines_that_have_it(
    catalog: Catalog, engine: str, form: str, device: str, loads: bool
) -> None:
    facts, model = catalog.engine(engine), catalog.model("glm-4.5v")
    package = next((each for each in facts.packages if "glm4v_moe" in each.architectures), facts.packages[0])
    answer = legality.loader(
        facts,
        package.version or facts.version,
        checkpoint_of(model, form),
        model.architecture,
        group_of(catalog, DEVICES[device]),
    )
    assert isinstance(answer, Loads) == loads
    assert loads or (isinstance(answer, Refusal) and answer.code == "engine.architecture")


def test_an_unknown_capability_is_said(catalog: Catalog) -> None:
    group = group_of(catalog, "8xh100")
    blind = group._replace(devices=tuple(msgspec.structs.replace(each, capability=None) for each in group.devices))
    facts, model = catalog.engine("vllm"), catalog.model("glm-4.6")
    answer = legality.loader(facts, facts.version, checkpoint_of(model, "fp8"), model.architecture, blind)
    assert isinstance(answer, Refusal)
    assert answer.code == "engine.capability"
    assert "unknown compute capability" in answer.message


# --- the oldest versions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "model", "pinned", "known"),
    [
        ("vllm", "glm-4.6", "0.10.0", False),
        ("vllm", "glm-4.6", "0.10.2", True),
        ("vllm", "glm-4.5v", "0.10.0", False),
        ("vllm", "glm-4.5v", "0.10.1", True),
        ("sglang", "glm-4.5v", "0.5.0", False),
        ("sglang", "glm-4.5v", "0.5.1", True),
        ("sglang", "glm-4.6", "0.5.2", False),
        ("sglang", "glm-4.6", "0.5.3", True),
        ("transformers", "glm-4.6", "4.57.5", False),
    ],
)
def test_a_pinned_version_is_held_against_what_is_known(
    catalog: Catalog, engine: str, model: str, pinned: str, known: bool
) -> None:
    pins = msgspec.convert(
        {"engine": engine, "engine_version": pinned, "format": "bf16", "tensor_parallel": 4 if known else None}, Pins
    )
    plan = api.plan(
        model, hardware="8xa100-80gb" if "v" in model else "8xb200", known=catalog, pins=pins, keep_all=True
    )
    refused = {each.code for each in plan.rejected} & {"engine.version", "rule.parser_names"}
    assert bool(refused) == (not known)
    assert plan.feasible == known


def test_the_vision_model_has_no_mtp_layer_to_speculate_with(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", format="bf16", speculative="mtp")
    plan = api.plan("glm-4.5v", hardware="8xh100", known=catalog, pins=pins, keep_all=True)
    assert not plan.feasible
    assert "rule.no_mtp" in {each.code for each in plan.rejected}


# --- contexts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "most"), [("glm-4.6", 202_752), ("glm-4.5v", 65_536)])
def test_a_context_ends_where_the_model_does(catalog: Catalog, model: str, most: int) -> None:
    assert api.plan(model, hardware="8xh200", known=catalog, context_tokens=most).feasible
    beyond = api.plan(model, hardware="8xh200", known=catalog, context_tokens=most + 1)
    assert {each.code for each in beyond.rejected} == {"context.beyond_model"}


# --- published configurations -------------------------------------------------------------------------


class Published(NamedTuple):
    """A configuration that somebody ran, or that its makers give: layout and engine, on their hardware."""

    engine: str
    repo: str
    machine: str
    tensor: int
    version: str | None = None
    pipeline: int = 1
    expert: bool = False
    speculative: bool = False
    eager: bool = False


GPUSTACK = [  # https://github.com/gpustack/gpustack docs/performance-lab, glm-4.x and glm-4.5-air
    Published("vllm", "zai-org/GLM-4.5-Air", "4xa100-80gb", 4, "0.11.0"),
    Published("sglang", "zai-org/GLM-4.5-Air", "4xa100-80gb", 4, "0.5.4.post2"),
    Published("sglang", "zai-org/GLM-4.5-Air", "4xa100-80gb", 4, "0.5.4.post2", expert=True),
    Published("vllm", "zai-org/GLM-4.5-Air", "4xh100", 4, "0.11.0"),
    Published("sglang", "zai-org/GLM-4.5-Air", "4xh100", 4, "0.5.4.post2"),
    Published("sglang", "zai-org/GLM-4.5-Air-FP8", "4xh100", 4, "0.5.4.post2"),
    Published("sglang", "zai-org/GLM-4.5-Air-FP8", "4xh100", 4, "0.5.4.post2", expert=True),
    Published("sglang", "zai-org/GLM-4.5-Air", "4xh100", 1, "0.5.4.post2", pipeline=4),
    Published("vllm", "zai-org/GLM-4.6-FP8", "8xa100-80gb", 8, "0.11.0"),
    Published("vllm", "zai-org/GLM-4.6-FP8", "8xa100-80gb", 8, "0.11.0", expert=True),
    Published("vllm", "zai-org/GLM-4.6-FP8", "8xh100", 8, "0.11.0"),
    Published("sglang", "zai-org/GLM-4.6-FP8", "8xh100", 8, "0.5.3"),
    Published("sglang", "zai-org/GLM-4.6-FP8", "8xh100", 8, "0.5.3", expert=True),
    Published("vllm", "zai-org/GLM-4.6", "8xh200", 8, "0.11.0"),
    Published("sglang", "zai-org/GLM-4.6", "8xh200", 8, "0.5.3"),
    Published("sglang", "zai-org/GLM-4.6-FP8", "8xh200", 8, "0.5.3"),
    Published("sglang", "zai-org/GLM-4.6-FP8", "4xh200", 4, "0.5.3"),
    Published("sglang", "zai-org/GLM-4.6-FP8", "4xh200", 4, "0.5.3", expert=True),
]
OTHERS = [
    # https://github.com/KempnerInstitute/hpc-agentic-recipes recipes/GLM-4.6-FP8/h200-4
    Published("vllm", "zai-org/GLM-4.6-FP8", "4xh200", 4, "0.25.1+cu129", speculative=True, eager=True),
    # https://github.com/sgl-project/sglang docs_new/cookbook/autoregressive/GLM
    Published("sglang", "zai-org/GLM-4.6", "8xb200", 8, "0.5.6.post1"),
    Published("sglang", "zai-org/GLM-4.6-FP8", "8xh100", 8, speculative=True),
    Published("sglang", "zai-org/GLM-4.6-FP8", "4xmi300x", 4),
    Published("sglang", "zai-org/GLM-4.6-FP8", "2xmi355x", 2),
    Published("sglang", "zai-org/GLM-4.5V-FP8", "2xh100", 2),
    Published("sglang", "zai-org/GLM-4.5V-FP8", "4xh100", 4),
    # https://github.com/vllm-project/recipes models/zai-org
    Published("vllm", "zai-org/GLM-4.6", "8xh200", 8),
    Published("vllm", "zai-org/GLM-4.6-FP8", "8xh200", 8),
    Published("vllm", "zai-org/GLM-4.6-FP8", "4xh200", 4, speculative=True),
    Published("vllm", "zai-org/GLM-4.5V-FP8", "4xh100", 4, "0.12.0", expert=True),
    Published("vllm", "zai-org/GLM-4.5V", "4xh100", 4, "0.12.0", expert=True),
    Published("vllm", "zai-org/GLM-4.5V-FP8", "4xmi300x", 4),
    Published("vllm", "zai-org/GLM-4.5-FP8", "8xh100", 8),
    # https://github.com/zai-org/GLM-4.5 README.md and example/AMD_GPU
    Published("vllm", "zai-org/GLM-4.7-FP8", "4xh200", 4, speculative=True),
    Published("sglang", "zai-org/GLM-4.7-FP8", "8xh200", 8, speculative=True),
    Published("vllm", "zai-org/GLM-4.5-Air", "8xh100", 8),
    Published("vllm", "zai-org/GLM-4.5-Air-FP8", "2xh100", 2),
    Published("vllm", "zai-org/GLM-4.5-Air", "2xh200", 2),
    Published("vllm", "zai-org/GLM-4.5-Air-FP8", "1xh200", 1),
    Published("vllm", "zai-org/GLM-4.5", "2x8xh100", 8, pipeline=2),
    Published("vllm", "zai-org/GLM-4.5", "16xh100", 16),
    Published("sglang", "zai-org/GLM-4.5", "16xh100", 16),
    Published("vllm", "zai-org/GLM-4.5", "8xmi300x", 8),
    # model cards of QuantTrio, whose options of memory are gone since
    Published("vllm", "QuantTrio/GLM-4.6-GPTQ-Int4-Int8Mix", "8xa100-80gb", 8, expert=True),
    Published("vllm", "QuantTrio/GLM-4.6-GPTQ-Int4-Int8Mix", "8xa100-80gb", 8, "0.10.2", expert=True),
    Published("vllm", "QuantTrio/GLM-4.6-AWQ", "8xa100-80gb", 8, expert=True),
    # https://github.com/zai-org/GLM-V/issues/111: what an owner of eight 4090 came to
    Published("vllm", "zai-org/GLM-4.5V-FP8", "8x4090", 4, "0.10.1", pipeline=2),
    # https://simonwillison.net/2025/Jul/29/space-invaders/ and the model cards of mlx-community
    Published("mlx", "mlx-community/GLM-4.5-Air-3bit", "m3-ultra-96gb", 1, "0.26.2"),
    Published("mlx", "mlx-community/GLM-4.6-4bit", "m3-ultra-512gb", 1),
    Published("mlx", "mlx-community/GLM-4.5V-4bit", "m3-ultra-96gb", 1),
]
#: Versions of their own day, or none: then the one that is installed today.
PUBLISHED = [*GPUSTACK, *OTHERS, *(each._replace(version=None) for each in GPUSTACK)]


def planned(catalog: Catalog, each: Published) -> LaunchPlan:
    pins = msgspec.convert(
        {
            "engine": each.engine,
            "engine_version": each.version,
            "tensor_parallel": each.tensor,
            "pipeline_parallel": each.pipeline,
            "data_parallel": 1,
            "expert_parallel": each.expert,
            "repo": each.repo,
            "eager": each.eager or None,
            "speculative": "mtp" if each.speculative else None,
        },
        Pins,
    )
    return api.plan(
        catalog.find_model(each.repo).model.id, hardware=each.machine, known=catalog, pins=pins, keep_all=True
    )


@pytest.mark.parametrize("each", PUBLISHED, ids=lambda each: f"{each.engine}-{each.version}-{each.repo}-{each.machine}")
def test_what_was_published_as_running_is_not_refused(catalog: Catalog, each: Published) -> None:
    plan = planned(catalog, each)
    assert plan.feasible, [refusal.message for refusal in plan.rejected if refusal.repo == each.repo]


def test_what_was_published_as_failing_is_refused(catalog: Catalog) -> None:
    """Eight A100: the original weights do not fit, and SGLang has no FP8 there."""
    bf16 = planned(catalog, Published("vllm", "zai-org/GLM-4.6", "8xa100-80gb", 8))
    fp8 = planned(catalog, Published("sglang", "zai-org/GLM-4.6-FP8", "8xa100-80gb", 8, "0.5.3"))
    mine = [refusal.code for refusal in (*bf16.rejected, *fp8.rejected) if not refusal.code.startswith("pin.")]
    assert mine == ["memory.weights", "engine.capability"]


def test_a_pinned_old_version_speaks_in_the_plan(catalog: Catalog) -> None:
    """AWQ in its garbled days is refused, and answers from the version that mended it."""
    old = planned(catalog, Published("vllm", "QuantTrio/GLM-4.6-AWQ", "4xh100", 4, "0.10.2"))
    new = planned(catalog, Published("vllm", "QuantTrio/GLM-4.6-AWQ", "4xh100", 4, "0.13.0"))
    assert "rule.awq_garbled" in {refusal.code for refusal in old.rejected}
    assert not old.feasible
    assert new.feasible
