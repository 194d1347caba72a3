"""The commands of the engines that are planned: what the plan decided is in them, one value one token."""

from __future__ import annotations

import msgspec
import pytest

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.request import Pins


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
    ("engine", "expected", "flags"),
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
    catalog: Catalog, engine: str, expected: dict[str, str], flags: tuple[str, ...]
) -> None:
    pins = msgspec.structs.replace(EVERYTHING, engine=engine)
    candidate = chosen(catalog, "glm-4.6", "8xh200", pins, 65_536)
    for option, value in expected.items():
        assert value_of(candidate, option) == value
    assert all(has(candidate, flag) for flag in flags)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_nothing_that_was_not_decided_is_in_the_command(catalog: Catalog, engine: str) -> None:
    pins = msgspec.convert({"engine": engine, "tensor_parallel": 8, "speculative": "off"}, Pins)
    candidate = chosen(catalog, "glm-4.6", "8xh200", pins)
    for option in ("--speculative-config.method", "--speculative-algorithm", "--kv-cache-dtype", "--enforce-eager"):
        assert not has(candidate, option)
    # Gone from vLLM 0.33, or dangerous wherever a card recommends them.
    for option in ("--swap-space", "--max-seq-len-to-capture", "--trust-remote-code", "--allowed-local-media-path"):
        assert not has(candidate, option)


@pytest.mark.parametrize(("engine", "option"), [("vllm", "--mm-encoder-tp-mode"), ("sglang", "--mm-enable-dp-encoder")])
def test_a_vision_tower_whose_heads_do_not_divide_is_run_whole(catalog: Catalog, engine: str, option: str) -> None:
    wide = msgspec.convert({"engine": engine, "quantization": "FP8", "tensor_parallel": 8}, Pins)
    narrow = msgspec.structs.replace(wide, tensor_parallel=4)
    assert has(chosen(catalog, "glm-4.5v", "8xh200", wide), option)
    assert not has(chosen(catalog, "glm-4.5v", "8xh200", narrow), option)


def test_replicas_are_named_by_the_first_ones_devices(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8xh200", Pins(tensor_parallel=4, data_parallel=2))
    assert candidate.command is not None
    assert candidate.parallel.devices == tuple(range(8))
    assert candidate.command.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}


def test_a_gguf_is_named_by_its_quantization(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8x4090", Pins())
    assert value_of(candidate, "--hf-repo") == "unsloth/GLM-4.6-GGUF:UD-Q3_K_XL"
    assert value_of(candidate, "--ctx-size") == str(candidate.memory.kv_cache_tokens)


def test_an_amd_host_is_told_its_devices_by_its_own_variable(catalog: Catalog) -> None:
    candidate = chosen(catalog, "glm-4.6", "8xmi300x", Pins())
    assert candidate.command is not None
    assert "HIP_VISIBLE_DEVICES" in candidate.command.env
    assert "CUDA_VISIBLE_DEVICES" not in candidate.command.env
