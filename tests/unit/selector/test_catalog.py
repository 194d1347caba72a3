"""Finding models, engines and accelerators by the names people and drivers use; refusing wrong files clearly."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli

from profiles import DIRECTORY
from selector.catalog import MAXIMUM_BYTES, Catalog
from selector.engine_facts import EngineFacts
from selector.errors import ProfileError, UnknownModel, UsageError
from selector.hardware import Accelerator, Metal, Vendor
from selector.legality import CHECKS
from selector.sound import engine_faults

GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's directory with a copy of one model."""
    (tmp_path / "models").mkdir()
    shutil.copy(DIRECTORY / "models" / "glm-4.6.toml", tmp_path / "models")
    return tmp_path


def edit(directory: Path, old: str, new: str, file: str = "models/glm-4.6.toml") -> Path:
    path = directory / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


# --- models by name ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model", "repo"),
    [
        ("glm-4.6", "glm-4.6", None),
        ("GLM-4.6", "glm-4.6", None),
        ("zai-org/GLM-4.6", "glm-4.6", None),
        ("zhipuai/glm-4.6", "glm-4.6", None),
        ("zai-org/GLM-4.6-FP8", "glm-4.6", "zai-org/GLM-4.6-FP8"),
        ("ZAI-ORG/glm-4.6-fp8", "glm-4.6", "zai-org/GLM-4.6-FP8"),
        ("tclf90/GLM-4.6-AWQ", "glm-4.6", "QuantTrio/GLM-4.6-AWQ"),
        ("unsloth/GLM-4.6-GGUF", "glm-4.6", "unsloth/GLM-4.6-GGUF"),
        ("zai-org/GLM-4.6V", "glm-4.6v", None),
        ("mlx-community/GLM-4.5-Air-4bit", "glm-4.5-air", "mlx-community/GLM-4.5-Air-4bit"),
        ("autolaunch/glm-tiny", "glm-tiny", None),
    ],
)
def test_a_model_is_found_by_id_alias_and_hub_id_and_only_a_variant_is_pinned(
    catalog: Catalog, name: str, model: str, repo: str | None
) -> None:
    match = catalog.find_model(name)
    assert (match.model.id, match.repo) == (model, repo)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("glm-46", "did you mean glm-4.6?"),
        ("glm4.5v", "did you mean glm-4.5v?"),
        ("GLM-TINI", "did you mean glm-tiny?"),
        ("zai-org/GLM-4.6-FP9", "did you mean zai-org/GLM-4.6-FP8?"),
    ],
)
def test_a_near_name_gets_did_you_mean(catalog: Catalog, name: str, hint: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.find_model(name)
    assert caught.value.message == f"no model is called {name!r}"
    assert caught.value.hint == hint


def test_a_name_like_nothing_gets_the_list(catalog: Catalog) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.find_model("qwen")
    assert caught.value.hint == f"known models: {', '.join(catalog.model_ids())}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "../models/glm-4.6",
        "../../../etc/passwd",
        "/etc/passwd",
        "glm-4.6.toml",
        "glm-4.6\0",
        "glm-4.6\n",
        "\x1b[31mglm-4.6",
        "glm-4.\u0431",
        "g\u217cm-4.6",
        "\uff47lm-4.6",
        "x" * 100_000,
    ],
)
def test_a_trick_in_a_name_is_only_an_unknown_name_and_is_echoed_safely(catalog: Catalog, name: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.find_model(name)
    assert caught.value.message.isprintable()
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 500


def test_a_kelvin_sign_is_not_a_k(own: Path) -> None:
    (own / "models" / "kilo.toml").write_text(
        (own / "models" / "glm-4.6.toml")
        .read_text()
        .replace('id = "glm-4.6"', 'id = "kilo"')
        .replace("GLM-4.6", "Kilo")
    )
    catalog = Catalog((DIRECTORY, own))
    assert catalog.find_model("KILO").model.id == "kilo"
    with pytest.raises(UnknownModel):
        catalog.find_model("\u212ailo")


# --- directories -------------------------------------------------------------------------------------


def test_a_users_directory_adds_a_model_and_replaces_one_of_the_same_id(own: Path) -> None:
    edit(own, 'title = "GLM-4.6"', 'title = "mine"')
    shutil.copy(DIRECTORY / "models" / "glm-tiny.toml", own / "models" / "my-glm.toml")
    edit(own, 'id = "glm-tiny"', 'id = "my-glm"', "models/my-glm.toml")
    catalog = Catalog((DIRECTORY, own))
    assert catalog.model("glm-4.6").title == "mine"
    assert "my-glm" in catalog.model_ids()
    assert Catalog((own, DIRECTORY)).model("glm-4.6").title == "GLM-4.6"


def test_a_directory_that_is_not_there_is_empty(tmp_path: Path) -> None:
    catalog = Catalog((tmp_path / "none",))
    assert catalog.model_ids() == ()
    assert catalog.engine_names() == ()
    assert catalog.every_accelerator() == ()
    with pytest.raises(UnknownModel):
        catalog.find_model("glm-4.6")


def test_only_what_is_asked_for_is_read(own: Path) -> None:
    (own / "models" / "broken.toml").write_text("=")
    (own / "accelerators").mkdir()
    (own / "accelerators" / "amd.toml").write_text("=")
    catalog = Catalog((DIRECTORY, own))
    assert catalog.find_model("zai-org/GLM-4.6-FP8").repo == "zai-org/GLM-4.6-FP8"
    assert catalog.accelerators("nvidia")
    with pytest.raises(ProfileError):
        catalog.model("broken")


def test_a_file_is_read_once(own: Path) -> None:
    catalog = Catalog((own,))
    first = catalog.model("glm-4.6")
    (own / "models" / "glm-4.6.toml").unlink()
    assert catalog.model("glm-4.6") is first


def test_hidden_files_folders_and_other_endings_are_no_profiles(own: Path) -> None:
    (own / "models" / ".glm-4.6.toml").write_text("=")
    (own / "models" / "notes.md").write_text("=")
    (own / "models" / "folder.toml").mkdir()
    assert Catalog((own,)).model_ids() == ("glm-4.6",)


# --- wrong files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'quantization = "FP8"',
            'quantizaton = "FP8"',
            "checkpoints[1].quantizaton: unknown key, did you mean 'quantization'?",
        ),
        ("head_dim = 128", "head_dims = 128", "architecture.head_dims: unknown key, did you mean 'head_dim'?"),
        ('title = "GLM-4.6"', 'titel = "GLM-4.6"', "titel: unknown key, did you mean 'title'?"),
        ("{ bits = 16,", "{ bitts = 16,", "checkpoints[0].storage.bitts: unknown key, did you mean 'bits'?"),
        ('title = "GLM-4.6"', 'title = "GLM-4.6"\nzzz = 1', "zzz: unknown key"),
        ("hidden_size = 5120\n", "", "architecture.hidden_size: missing"),
        ('title = "GLM-4.6"\n', "", "title: missing"),
        ("hidden_size = 5120", 'hidden_size = "5120"', "architecture.hidden_size: expected `int`, got `str`"),
        ('format = "fp8"', 'format = "fp7"', "checkpoints[1].format: invalid enum value 'fp7', did you mean 'fp8'?"),
        ("schema = 1", "schema = 2", "schema: invalid enum value 2"),
        ('id = "glm-4.6"', 'id = "glm-4.7"', "id: is 'glm-4.7', but the file's name says 'glm-4.6'"),
        (
            "num_attention_heads = 96",
            "num_attention_heads = 0",
            "architecture.num_attention_heads: must be above 0, is 0",
        ),
        ("rope_theta = 1000000.0", "rope_theta = nan", "architecture.rope_theta: must be above 0, is nan"),
        ("context_tokens = 202752", "context_tokens = -1", "context_tokens: must be above 0, is -1"),
        (
            "download_bytes = 361_292_648_939",
            "download_bytes = 0",
            "checkpoints[1].download_bytes: must be above 0, is 0",
        ),
        ("quality = 0.995", "quality = 1.5", "checkpoints[1].quality: must be above 0 and at most 1, is 1.5"),
        ("group_size = 128", "group_size = 0", "checkpoints[3].storage: bits and group_size must be above 0"),
        (
            'repo = "zai-org/GLM-4.6-FP8"',
            'repo = "ZAI-org/GLM-4.6"',
            "checkpoints[1]: the same repository as checkpoints[0]: ZAI-org/GLM-4.6",
        ),
        ("[[parsers]]", "[[checkpoints]]\n[[parsers]]", "checkpoints[0].repo: missing"),
        (
            "first_k_dense_replace = 3",
            "first_k_dense_replace = 93",
            "architecture.first_k_dense_replace: is 93, more than the 92 of num_hidden_layers",
        ),
        (
            "num_key_value_heads = 8",
            "num_key_value_heads = 7",
            "architecture.num_key_value_heads: 7 does not divide the 96 of num_attention_heads",
        ),
        (
            "num_experts_per_tok = 8",
            "num_experts_per_tok = 161",
            "architecture.num_experts_per_tok: is 161, more than the 160 of n_routed_experts",
        ),
        (
            "moe_intermediate_size = 1536",
            "moe_intermediate_size = 3",
            "architecture.moe_intermediate_size: is 3, less than the 96 of num_attention_heads",
        ),
        ("vocab_size = 151552", "vocab_size = 0", "architecture.vocab_size: must be above 0, is 0"),
        (
            "hidden_size = 5120",
            "hidden_size = 9_000_000_000_000_000",
            "architecture.hidden_size: cannot be as much as 9000000000000000",
        ),
        ("rope_theta = 1000000.0", "rope_theta = inf", "architecture.rope_theta: cannot be as much as inf"),
        (
            "partial_rotary_factor = 0.5",
            "partial_rotary_factor = 1.5",
            "architecture.partial_rotary_factor: must be above 0 and at most 1, is 1.5",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file_and_path(own: Path, old: str, new: str, message: str) -> None:
    path = edit(own, old, new)
    with pytest.raises(ProfileError) as caught:
        Catalog((own,)).model("glm-4.6")
    assert str(caught.value) == f"{path}: {message}"
    assert caught.value.exit_code == 78


ENGINE = "engines/vllm.toml"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "rules[2].check",
            "fp8_marlin_tle",
            "there is no check 'fp8_marlin_tle', only " + ", ".join(sorted(CHECKS)),
        ),
        ("rules[0].speed_factor", 0.0, "must be above 0 and at most 1, is 0.0"),
        ("batch_defaults", [], "there must be one at least"),
        ("batch_defaults[1].sequences", 0, "must be above 0, is 0"),
        ("batch_defaults[0].batched_tokens", -1, "must be above 0, is -1"),
        ("kv_cache_dtypes", [], "there must be one at least"),
        ("memory.utilizations", [], "there must be one at least"),
        ("memory.utilizations[1]", 0.0, "must be above 0 and at most 1, is 0.0"),
        ("memory.utilizations[1]", 1.5, "must be above 0 and at most 1, is 1.5"),
        ("memory.utilizations[0]", float("nan"), "must be above 0 and at most 1, is nan"),
        ("memory.runtime_bytes", -1, "must be 0 or more, is -1"),
        ("speed.collectives.link_efficiency", 1.5, "must be above 0 and at most 1, is 1.5"),
        ("speed.mtp.step_seconds", -0.1, "must be 0 or more, is -0.1"),
        ("speed.sequence_seconds", -1.0, "must be 0 or more, is -1.0"),
        ("speed.bandwidth_efficiency", 0.0, "must be above 0 and at most 1, is 0.0"),
        ("speed.prefill_efficiency", -0.1, "must be above 0 and at most 1, is -0.1"),
        ("speed.decode_efficiency", 0.0, "must be above 0 and at most 1, is 0.0"),
        ("speed.layer_seconds", 0.0, "must be above 0, is 0.0"),
        ("speed.eager_layer_seconds", -1.0, "must be above 0, is -1.0"),
        ("speed.read_gb_per_second", 0.0, "must be above 0, is 0.0"),
        ("speed.start_seconds", -1.0, "must be 0 or more, is -1.0"),
        ("speed.cpu_tflops", 0.0, "must be above 0, is 0.0"),
        ("packages", [], "there must be one at least"),
    ],
)
def test_a_slip_in_an_engine_is_named_before_it_is_reckoned_with(key: str, value: object, message: str) -> None:
    document = tomli.loads((DIRECTORY / ENGINE).read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", key)]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    faults = list(engine_faults(msgspec.convert(document, EngineFacts)))
    assert faults[0] == (key, message)


@pytest.mark.parametrize(
    ("table", "key", "value", "fault"),
    [
        ("offload", "host_bytes", -1, ("offload.host_bytes", "must be 0 or more, is -1")),
        ("offload", "crossing_seconds", -0.1, ("offload.crossing_seconds", "must be 0 or more, is -0.1")),
        ("offload", "copied_share", 1.5, ("offload.copied_share", "must be above 0 and at most 1, is 1.5")),
        ("offload", "copy_efficiency", 0.0, ("offload.copy_efficiency", "must be above 0 and at most 1, is 0.0")),
        ("offload", "unknown_gb_per_second", 0.0, ("offload.unknown_gb_per_second", "must be above 0, is 0.0")),
        (
            "speed",
            "cpu_tflops",
            None,
            ("speed.cpu_tflops", "missing: what lies in main memory is read and computed at it"),
        ),
        (
            "memory",
            "kind",
            "utilization",
            ("offload", "needs an engine that takes memory on demand and puts whole layers on the devices"),
        ),
    ],
)
def test_a_slip_in_what_stays_in_main_memory_is_named(
    table: str, key: str, value: object, fault: tuple[str, str]
) -> None:
    document: dict[str, Any] = tomli.loads((DIRECTORY / "engines" / "llamacpp.toml").read_text())
    document[table][key] = value
    assert next(iter(engine_faults(msgspec.convert(document, EngineFacts)))) == fault


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("efficiency", 0.0, ("networks[0].efficiency", "must be above 0 and at most 1, is 0.0")),
        ("unknown_gb_per_second", 0.0, ("networks[0].unknown_gb_per_second", "must be above 0, is 0.0")),
        ("handover_seconds", -1.0, ("networks[0].handover_seconds", "must be 0 or more, is -1.0")),
        ("all_reduce_seconds", -1.0, ("networks[0].all_reduce_seconds", "must be 0 or more, is -1.0")),
        ("kind", "roce", ("networks[1].kind", "roce is there already")),
    ],
)
def test_a_slip_in_a_network_is_named(key: str, value: object, fault: tuple[str, str]) -> None:
    document: dict[str, Any] = tomli.loads((DIRECTORY / "engines" / "vllm.toml").read_text())
    document["speed"]["collectives"]["networks"][0][key] = value
    path, reason = next(iter(engine_faults(msgspec.convert(document, EngineFacts))))
    assert (path.removeprefix("speed.collectives."), reason) == fault


@pytest.mark.parametrize("name", Catalog().engine_names())
def test_a_shipped_engine_has_no_slip(catalog: Catalog, name: str) -> None:
    assert list(engine_faults(catalog.engine(name))) == []


def test_a_slip_in_a_users_engine_is_told_with_its_file_each_time(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    shutil.copy(DIRECTORY / ENGINE, tmp_path / "engines")
    path = edit(tmp_path, "layer_seconds = 0.00014", "layer_seconds = 0.0", ENGINE)
    known = Catalog((DIRECTORY, tmp_path))
    for _ in range(2):
        with pytest.raises(ProfileError) as caught:
            known.engine("vllm")
        assert str(caught.value) == f"{path}: speed.layer_seconds: must be above 0, is 0.0"
        assert caught.value.exit_code == 78


def test_a_slip_in_an_accelerator_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "accelerators").mkdir()
    shutil.copy(DIRECTORY / "accelerators" / "nvidia.toml", tmp_path / "accelerators")
    path = tmp_path / "accelerators" / "nvidia.toml"
    path.write_text(re.sub(r"bf16_tflops = [\d.]+", "bf16_tflops = 0.0", path.read_text(), count=1))
    with pytest.raises(ProfileError, match=r"accelerators\[\d+\]\.bf16_tflops: must be above 0, is 0\.0"):
        Catalog((tmp_path,)).accelerators("nvidia")


def test_a_syntax_error_is_named_with_its_line(own: Path) -> None:
    path = edit(own, "schema = 1", "schema 1")
    with pytest.raises(ProfileError, match="line 2, column 8") as caught:
        Catalog((own,)).model("glm-4.6")
    assert str(caught.value).startswith(f"{path}: not TOML: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * (MAXIMUM_BYTES + 1), "larger than 1 MiB, which no profile is"),
        (b'title = "\xff"', "not UTF-8 (byte 9)"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"", "schema: missing"),
    ],
)
def test_content_that_is_no_profile_is_refused_in_bounds(own: Path, content: bytes, message: str) -> None:
    path = own / "models" / "glm-4.6.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        Catalog((own,)).model("glm-4.6")
    assert str(caught.value) == f"{path}: {message}"


def test_an_id_that_nobody_could_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    text = (DIRECTORY / "models" / "glm-tiny.toml").read_text().replace('id = "glm-tiny"', 'id = "My GLM"')
    (tmp_path / "models" / "My GLM.toml").write_text(text)
    with pytest.raises(ProfileError, match="use lower-case letters"):
        Catalog((tmp_path,)).model("My GLM")


def test_a_model_without_checkpoints_is_refused(own: Path) -> None:
    path = own / "models" / "glm-4.6.toml"
    text = path.read_text()
    path.write_text("checkpoints = []\n" + text[: text.index("[[checkpoints]]")])
    with pytest.raises(ProfileError, match="there must be one at least"):
        Catalog((own,)).model("glm-4.6")


def test_a_shipped_file_is_shown_from_profiles_on() -> None:
    from selector.catalog import place_of

    assert place_of(DIRECTORY / "models" / "glm-4.6.toml") == str(Path("profiles/models/glm-4.6.toml"))


# --- engines -----------------------------------------------------------------------------------------


def test_every_engine_is_read_by_name(catalog: Catalog) -> None:
    assert catalog.engine_names() == ("llamacpp", "mlx", "sglang", "transformers", "vllm")
    for name in catalog.engine_names():
        assert catalog.engine(name).name == name


def test_an_unknown_engine_gets_did_you_mean(catalog: Catalog) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.engine("vlm")
    assert (caught.value.message, caught.value.hint) == ("no engine is called 'vlm'", "did you mean vllm?")


# --- accelerators ------------------------------------------------------------------------------------


def found(
    catalog: Catalog,
    name: str,
    vendor: Vendor = "nvidia",
    *,
    total_bytes: int | None = None,
    capability: tuple[int, int] | None = None,
    cores: int | None = None,
) -> str | None:
    metal = Metal(gpu_cores=cores) if vendor == "apple" else None
    device = Accelerator(
        index=0, vendor=vendor, name=name, memory_total_bytes=total_bytes, compute_capability=capability, metal=metal
    )
    facts = catalog.accelerator_for(device)
    return None if facts is None else facts.id


def test_an_apple_chip_is_told_by_its_gpu_cores_then_by_its_memory(catalog: Catalog) -> None:
    assert found(catalog, "Apple M4 Max", "apple", cores=40) == "m4-max"
    assert found(catalog, "Apple M4 Max", "apple", cores=32) == "m4-max-32"
    assert found(catalog, "Apple M4 Max", "apple", total_bytes=128 * GIB) == "m4-max"
    assert found(catalog, "Apple M4 Max", "apple", total_bytes=36 * GIB) == "m4-max-32"
    assert found(catalog, "Apple M3 Ultra", "apple", cores=80, total_bytes=512 * GIB) == "m3-ultra"
    assert found(catalog, "Apple M1", "apple") is None


def test_where_nothing_tells_two_chips_apart_the_slower_is_taken(catalog: Catalog) -> None:
    assert found(catalog, "Apple M4 Max", "apple") == "m4-max-32"


def test_a_name_with_another_compute_capability_is_another_device(catalog: Catalog) -> None:
    assert found(catalog, "NVIDIA H100 80GB HBM3", capability=(9, 0)) == "h100"
    assert found(catalog, "NVIDIA H100 80GB HBM3", capability=(8, 0)) is None


def test_a_vendor_is_never_looked_for_among_the_others(catalog: Catalog) -> None:
    assert found(catalog, "NVIDIA H100 80GB HBM3", "amd") is None
    assert found(catalog, "AMD Instinct MI300X", "amd") == "mi300x"
    assert found(catalog, "AMD Instinct MI300X OAM", "amd") == "mi300x"


def test_a_mig_slice_has_its_share_of_bandwidth_and_arithmetic(catalog: Catalog) -> None:
    whole = catalog.accelerator_for(Accelerator(index=0, vendor="nvidia", name="NVIDIA A100-SXM4-80GB"))
    part = catalog.accelerator_for(
        Accelerator(
            index=0,
            vendor="nvidia",
            name="NVIDIA A100-SXM4-80GB MIG 3g.40gb",
            memory_total_bytes=40_960 * MIB,
            mig_parent_uuid="GPU-0",
        )
    )
    assert whole is not None
    assert whole.bf16_tflops is not None
    assert part is not None
    assert part.bandwidth_gb_per_second == whole.bandwidth_gb_per_second / 2
    assert part.bf16_tflops == pytest.approx(whole.bf16_tflops * 3 / 7)
    assert part.fp8_tflops is None


def test_a_users_accelerator_is_added_and_replaces_one_of_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "accelerators").mkdir()
    text = (DIRECTORY / "accelerators" / "nvidia.toml").read_text()
    start = text.index('[[accelerators]]\nid = "rtx4090"')
    entry = text[start : text.index("[[accelerators]]", start + 1)]
    mine = entry.replace("bandwidth_gb_per_second = 1008.0", "bandwidth_gb_per_second = 1.0")
    other = entry.replace("rtx4090", "rtx4080").replace("4090", "4080").replace("rtx-4090", "rtx-4080")
    (tmp_path / "accelerators" / "nvidia.toml").write_text(f"schema = 1\n{mine}\n{other}")
    catalog = Catalog((DIRECTORY, tmp_path))
    known = {each.id: each for each in catalog.accelerators("nvidia")}
    assert known["rtx4090"].bandwidth_gb_per_second == 1.0
    assert len(known) == 37
    assert found(catalog, "NVIDIA GeForce RTX 4080") == "rtx4080"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('vendor = "nvidia"', 'vendor = "amd"', "accelerators[0].vendor: is amd, but the file's name says nvidia"),
        (
            "bandwidth_gb_per_second = 320.0",
            "bandwidth_gb_per_second = 0.0",
            "accelerators[0].bandwidth_gb_per_second: must be above 0",
        ),
        ('id = "a10"', 'id = "t4"', "accelerators[3]: 't4' is a name of accelerators[0] already"),
        ('aliases = ["a10-24gb"]', 'aliases = ["T4"]', "accelerators[3]: 'T4' is a name of accelerators[0] already"),
        (
            "bandwidth_gb_per_second = 320.0",
            "bandwith_gb_per_second = 320.0",
            "accelerators[0].bandwith_gb_per_second: unknown key, did you mean 'bandwidth_gb_per_second'?",
        ),
    ],
)
def test_a_wrong_accelerator_is_named_with_its_file_and_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "accelerators").mkdir()
    shutil.copy(DIRECTORY / "accelerators" / "nvidia.toml", tmp_path / "accelerators")
    path = edit(tmp_path, old, new, "accelerators/nvidia.toml")
    with pytest.raises(ProfileError) as caught:
        Catalog((tmp_path,)).accelerators("nvidia")
    assert str(caught.value) == f"{path}: {message}"
