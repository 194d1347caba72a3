"""Every rule of ``profiles/engines`` beside a candidate that it concerns, and the nearest ones that it spares."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest

from selector import legality
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.devices import groups
from selector.engine_facts import EngineFacts, Rule
from selector.facts import CheckpointFacts, Storage
from selector.legality import REFUSING, Refusal
from selector.machines import report_from_spec


class Setting(NamedTuple):
    """A candidate, as a rule sees it; ``None`` for the version is the one that is installed today."""

    model: str = "glm-4.6"
    quantization: str = "FP8"
    machine: str = "8xh100"
    version: str | None = None
    tensor: int = 8
    pipeline: int = 1
    expert: bool = False
    speculative: bool = False
    eager: bool = False
    driver: str | None = None
    group: int | None = None


class Case(NamedTuple):
    """``spares`` are the fields by which a candidate differs from ``fires`` and goes free: one for each condition."""

    engine: str
    code: str
    fires: Setting
    spares: tuple[dict[str, Any], ...]


def case(engine: str, code: str, fires: Setting, *spares: dict[str, Any]) -> Case:
    return Case(engine, code, fires, spares)


VISION = Setting(model="glm-4.5v")
VISION_BF16 = VISION._replace(quantization="BF16")
AIR32 = Setting(model="glm-4.5-air", quantization="AWQ-4bit", tensor=4, group=32)
AMPERE, ADA, B200, RTX_PRO = "8xa100-80gb", "8xl40s", "8xb200", "8xrtx-pro-6000"
OFF: dict[str, Any] = {"speculative": False}
BF16: dict[str, Any] = {"quantization": "BF16"}
FP8: dict[str, Any] = {"quantization": "FP8"}


def v(version: str) -> dict[str, Any]:
    return {"version": version}


def on(machine: str) -> dict[str, Any]:
    return {"machine": machine}


def of(model: str) -> dict[str, Any]:
    return {"model": model}


def tp(tensor: int, pipeline: int = 1) -> dict[str, Any]:
    return {"tensor": tensor, "pipeline": pipeline}


WHOLE: dict[str, Any] = {"expert": True}

UNTUNED: tuple[Any, ...] = (
    "experts_untuned",
    Setting(),
    on("8xh200"),
    tp(4, 2),
    {"quantization": "Int4"},
    of("glm-4.5-air"),
)

VLLM: list[tuple[Any, ...]] = [
    UNTUNED,
    ("pipeline_and_mtp", Setting(tensor=4, pipeline=2, speculative=True), tp(4), OFF),
    (
        "mtp_borrowed_embedding",
        Setting(quantization="BF16", version="0.11.0", speculative=True),
        of("glm-4.5"),
        v("0.11.1"),
        OFF,
    ),
    ("mtp_fp8", Setting(model="glm-4.5", version="0.13.0", speculative=True), v("0.14.0"), BF16, OFF),
    ("vision_heads", VISION_BF16._replace(machine=AMPERE, version="0.11.0"), tp(4, 2), v("0.12.0")),
    ("vision_tensor_32", VISION._replace(machine="32xh100", tensor=32), tp(16), of("glm-4.6")),
    (
        "vision_flash_attention",
        VISION_BF16._replace(version="0.10.2", tensor=4),
        on(AMPERE),
        on(B200),
        v("0.12.0"),
        of("glm-4.5-air"),
    ),
    (
        "vision_quantized_loader",
        VISION._replace(quantization="Int4", machine=AMPERE, version="0.11.0", tensor=1),
        v("0.13.0"),
        BF16,
        {"model": "glm-4.5-air", "quantization": "AWQ-4bit"},
    ),
    ("glm46v_needs_0_12", Setting("glm-4.6v", "BF16", AMPERE, "0.11.2", tensor=4), v("0.12.0"), of("glm-4.5v")),
    (
        "fp8_sm120_tensor",
        Setting("glm-4.5-air", machine=RTX_PRO, version="0.10.1", tensor=2),
        tp(1, 3),
        v("0.10.2"),
        BF16,
        on(B200),
    ),
    (
        "fp8_marlin_tile",
        Setting("glm-4.5-air", machine=AMPERE, version="0.11.0", tensor=2),
        tp(1),
        v("0.25.0"),
        BF16,
        on(ADA),
    ),
    (
        "nvfp4_marlin_tile",
        Setting("glm-4.6v", "NVFP4", version="0.20.0", tensor=4),
        tp(1, 4),
        v("0.25.0"),
        FP8,
        on(B200),
    ),
    ("int4_group_impossible", VISION._replace(quantization="Int4"), WHOLE, tp(4), FP8),
    ("int4_fallback_crash", Setting(quantization="Int4", version="0.12.0"), v("0.13.0"), BF16),
    ("int4_fallback_crash", Setting(quantization="Int4-Int8Mix", version="0.10.2"), WHOLE, tp(4)),
    ("awq_garbled", Setting(quantization="Int4", version="0.10.2", tensor=4), v("0.13.0"), FP8),
    (
        "gptq_mixed_bits",
        Setting(quantization="Int4-Int8Mix", tensor=4),
        WHOLE,
        v("0.10.2"),
        {"quantization": "Int4"},
    ),
    ("int4_group_slow", Setting(quantization="Int4"), WHOLE, tp(4), FP8),
    ("int4_tile_slow", AIR32._replace(version="0.24.0"), v("0.25.0"), tp(2), FP8),
    ("fp8_weight_only", Setting(machine=AMPERE), on(ADA), BF16),
    ("nvfp4_weight_only", Setting("glm-4.7", "NVFP4"), on(B200), FP8),
    ("nvfp4_pipeline_slow", Setting("glm-4.7", "NVFP4", B200, tensor=4, pipeline=2), tp(4), FP8),
    ("fp8_cutlass_side", VISION, tp(4), BF16, on(AMPERE)),
    ("kv_heads_repeated", Setting(machine="16xh100", tensor=16), tp(8)),
    (
        "fp8_cutlass_under_load",
        Setting(version="0.11.0"),
        v("0.10.1"),
        v("0.12.0"),
        BF16,
        on(B200),
        on(ADA),
    ),
    (
        "cuda_graphs_crash",
        Setting(machine="8xh200", tensor=4, version="0.25.1+cu129"),
        {"eager": True},
        on("8xh100"),
        v("0.25.0"),
        v("0.25.2"),
        BF16,
        tp(8),
    ),
    (
        "cuda_graphs_4xh200",
        Setting(machine="8xh200", tensor=4),
        {"eager": True},
        on("8xh100"),
        v("0.25.0"),
        BF16,
        tp(8),
    ),
    (
        "cuda_13_wheel",
        Setting(driver="575.57.08"),
        {"driver": "580.65.06"},
        {"driver": None},
        v("0.24.0"),
        on("8xmi300x"),
    ),
    (
        "fp8_ada_hang",
        VISION._replace(machine="8x4090", tensor=4),
        on("8xh100"),
        on(AMPERE),
        BF16,
        of("glm-4.6"),
    ),
    ("fp8_sm120", Setting(machine=RTX_PRO), on(B200), BF16),
    ("vision_heads_replicated", VISION, tp(4)),
]
SGLANG: list[tuple[Any, ...]] = [
    UNTUNED,
    ("pipeline_and_mtp", Setting(tensor=4, pipeline=2, speculative=True), tp(4), OFF),
    ("kv_pool_small", Setting()),
    ("parser_names", Setting(version="0.5.2"), v("0.5.3rc1"), of("glm-4.5v")),
    ("glm46v_transformers_5", Setting("glm-4.6v", version="0.5.5"), v("0.5.6.post1"), of("glm-4.5v")),
    ("int4_group_impossible", VISION._replace(quantization="Int4"), WHOLE, tp(4), FP8),
    ("int4_group_slow", Setting(quantization="Int4"), WHOLE, tp(4), FP8),
    ("int4_tile_slow", AIR32, tp(2), FP8),
    ("kv_heads_repeated", Setting(machine="16xh100", tensor=16), tp(8)),
    ("fp8_sm120", Setting(machine=RTX_PRO), on(B200), BF16),
    ("vision_conv_loader", VISION._replace(tensor=4), v("0.5.9"), of("glm-4.6")),
    ("vision_heads_replicated", VISION, tp(2)),
    ("amd_aiter_vision", VISION._replace(machine="8xmi300x"), on("8xh200"), of("glm-4.6")),
]
CASES = [
    *(Case("vllm", code, fires, tuple(spares)) for code, fires, *spares in VLLM),
    *(Case("sglang", code, fires, tuple(spares)) for code, fires, *spares in SGLANG),
    case("transformers", "no_batching", Setting(quantization="BF16", tensor=1), of("glm-tiny")),
    case(
        "mlx",
        "large_prompts_slow",
        Setting(quantization="4bit", machine="m3-ultra-512gb", tensor=1),
        of("glm-4.5v"),
        BF16,
    ),
    case("llamacpp", "chat_template", Setting(quantization="UD-Q4_K_XL", tensor=1), BF16),
    case("llamacpp", "own_installation", Setting(quantization="UD-Q4_K_XL", tensor=1), on("cpu-64gb")),
    case("vllm", "own_installation", Setting(machine="8xmi300x"), on("8xh200")),
    case("sglang", "own_installation", Setting(machine="8xmi300x"), on("8xh200")),
]


def checkpoint_of(catalog: Catalog, setting: Setting) -> CheckpointFacts:
    """The checkpoint of a setting, the model's first where it has none of that name; in the setting's groups."""
    checkpoints = catalog.model(setting.model).checkpoints
    found = next((each for each in checkpoints if each.quantization == setting.quantization), checkpoints[0])
    if setting.group is None:
        return found
    return msgspec.structs.replace(found, storage=Storage(bits=4, group_size=setting.group))


def raised(catalog: Catalog, engine: EngineFacts, setting: Setting) -> tuple[set[str], bool]:
    """Codes of the rules that speak, and whether the candidate is refused."""
    model = catalog.model(setting.model)
    found, _ = groups(report_from_spec(setting.machine, catalog), catalog.accelerator_for)
    package = next(each for each in engine.packages if model.architecture.model_type in each.architectures)
    answer = legality.rules(
        engine,
        version=setting.version or package.version or engine.version,
        model_id=model.id,
        checkpoint=checkpoint_of(catalog, setting),
        arch=model.architecture,
        group=found[0],
        parallel=Parallel(tensor=setting.tensor, pipeline=setting.pipeline, expert=setting.expert),
        speculative=setting.speculative,
        eager=setting.eager,
        driver=setting.driver,
    )
    if isinstance(answer, Refusal):
        return {answer.code.removeprefix("rule.")}, True
    return {note.code for note in answer.notes}, False


def rule_of(engine: EngineFacts, code: str) -> Rule:
    (rule,) = (each for each in engine.rules if each.code == code)
    return rule


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.engine}-{one.code}")
def test_a_rule_speaks_where_it_holds_and_is_silent_beside(catalog: Catalog, one: Case) -> None:
    engine = catalog.engine(one.engine)
    codes, refused = raised(catalog, engine, one.fires)
    assert one.code in codes
    assert refused == (rule_of(engine, one.code).severity in REFUSING)
    for change in one.spares:
        spared, still_refused = raised(catalog, engine, one.fires._replace(**change))
        assert one.code not in spared, change
        assert not still_refused, f"{spared} refuses what {one.code} spares by {change}: it shows nothing"


CONDITIONS = [
    field
    for field in Rule.__struct_fields__
    if field not in ("code", "severity", "message", "source", "workaround", "speed_factor")
]


@pytest.mark.parametrize("name", ["vllm", "sglang", "transformers", "mlx", "llamacpp"])
def test_no_rule_and_none_of_its_conditions_is_without_a_case(catalog: Catalog, name: str) -> None:
    """A rule that lost a condition would speak of something that it spares."""
    engine = catalog.engine(name)
    cases = [one for one in CASES if one.engine == name]
    assert {rule.code for rule in engine.rules} == {one.code for one in cases}
    blank = Rule(code="blank", severity="info", message="", source="")
    for rule in engine.rules:
        spared = [one.fires._replace(**change) for one in cases if one.code == rule.code for change in one.spares]
        for condition in CONDITIONS:
            if getattr(rule, condition) == getattr(blank, condition):
                continue
            wider = msgspec.structs.replace(rule, **{condition: getattr(blank, condition)})
            alone = msgspec.structs.replace(engine, rules=(wider,))
            assert any(rule.code in raised(catalog, alone, each)[0] for each in spared), (rule.code, condition)


def test_names_in_rules_are_known(catalog: Catalog) -> None:
    """A condition on a name that nothing has would never hold, and say nothing."""
    models = [catalog.model(name) for name in catalog.model_ids()]
    repos = {name for model in models for each in model.checkpoints for name in (each.repo, each.modelscope)}
    accelerators = {each.id for each in catalog.every_accelerator()}
    for name in catalog.engine_names():
        for rule in catalog.engine(name).rules:
            assert set(rule.models) <= {model.id for model in models}, rule.code
            assert set(rule.repos) <= repos, rule.code
            assert set(rule.accelerators) <= accelerators, rule.code
