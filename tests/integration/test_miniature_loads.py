"""Real engines load the miniatures whole, and read the same text out of them."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from engines import miniature
from engines.environments import Environments, without_secrets
from selector.catalog import Catalog

#: Shared with the other tests of real engines: environments are made once a machine.
HOME = Path(os.environ.get("AUTOLAUNCH_TEST_HOME") or platformdirs.user_cache_dir("autolaunch-tests", appauthor=False))
CATALOG = Catalog()
CONVERSATION: list[dict[str, object]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "<think>a greeting</think>yes?"},
    {"role": "user", "content": [{"type": "text", "text": "warm in "}, {"type": "text", "text": "Köln?"}]},
    {
        "role": "assistant",
        "reasoning_content": "ask",
        "tool_calls": [{"type": "function", "function": {"name": "warm", "arguments": {"city": "Köln", "days": 2}}}],
    },
    {"role": "tool", "content": "12°"},
    {"role": "tool", "content": "13°"},
]
WRITTEN = """<|system|>
Be brief.<|user|>
hi<|assistant|>
<think></think>
yes?<|user|>
warm in Köln?<|assistant|>
<think>ask</think>
<tool_call>warm
<arg_key>city</arg_key>
<arg_value>Köln</arg_value>
<arg_key>days</arg_key>
<arg_value>2</arg_value>
</tool_call><|observation|>
<tool_response>
12°
</tool_response>
<tool_response>
13°
</tool_response><|assistant|>"""
QUESTIONS = ("hello", "What is the capital of France?", "Grüße, 你好 🙂")
#: Engines that round differently may part ways once two words are nearly as good; not this early.
OPENING_WORDS = 12

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# Each prints one JSON object. They run in an engine's own environment: nothing here imports an engine.

MLX_LM = """
import json, sys
from mlx_lm import generate, load
folder, questions = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = load(folder)
ask = lambda text: tokenizer.apply_chat_template(
    [{"role": "user", "content": text}], add_generation_prompt=True, enable_thinking=False
)
print(json.dumps({"answers": [generate(model, tokenizer, ask(text), max_tokens=24) for text in questions]}))
"""

MLX_VLM = """
import json, sys
from mlx_vlm import generate, load
folder, questions = sys.argv[1], json.loads(sys.argv[2])
model, processor = load(folder)
tokenizer = getattr(processor, "tokenizer", processor)
def answer(content, **more):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    return generate(model, processor, prompt, max_tokens=24, temperature=0.0, **more).text
from PIL import Image
seen = []
for colour in ("red", "blue"):
    picture = f"{sys.argv[3]}/{colour}.png"
    Image.new("RGB", (200, 100), colour).save(picture)
    seen.append(answer([{"type": "image"}, {"type": "text", "text": "what is this"}], image=[picture]))
print(json.dumps({"answers": [answer(text) for text in questions], "seen": seen}))
"""

TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
folder, questions = sys.argv[1], json.loads(sys.argv[2])
vision = getattr(AutoConfig.from_pretrained(folder), "vision_config", None)
kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
model, info = kind.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
def answer(**inputs):
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(out[0][inputs["input_ids"].shape[1]:])
def ask(content):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
encode = lambda text: tokenizer(text, return_tensors="pt", add_special_tokens=False)
found = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
conversation, tools = json.loads(sys.argv[4]), [{"type": "function", "function": {"name": "warm"}}]
render = lambda messages, **more: tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=False, **more
)
found["plain"] = render(conversation)
found["with_tools"] = render(conversation, tools=tools)
found["may_call"] = render(conversation[1:2], tools=tools)
found["may_call_without_a_thought"] = render(conversation[1:2], tools=tools, enable_thinking=False)
found["call"] = answer(**encode(found["may_call"]))
found["not_thinking"] = render(conversation[:2], enable_thinking=False)
found["dtype"] = str(model.dtype)
found["answers"] = [answer(**encode(ask(text))) for text in questions]
if vision:
    # Four by four patches, as the image processor would cut them; it needs packages that are not here.
    found["seen"] = []
    for shade in (-1.0, 1.0):
        inputs = encode(ask([{"type": "image"}]).replace("<|image|>", "<|image|>" * 4))
        patches = torch.full((16, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2), shade)
        kinds = (inputs["input_ids"] == model.config.image_token_id).int()
        grid = torch.tensor([[1, 4, 4]])
        found["seen"].append(answer(**inputs, pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=kinds))
print(json.dumps(found))
"""

#: llama.cpp's server in a wheel: it is set up from Python.
LLAMACPP = """
import json, pathlib, sys
import xllamacpp
folder, questions = sys.argv[1], json.loads(sys.argv[2])
settings = xllamacpp.CommonParams()
settings.model.path = str(next(pathlib.Path(folder).glob("*.gguf")))
settings.n_ctx, settings.n_parallel, settings.port, settings.use_jinja = 2048, 1, 0, True
settings.verbosity = 0
server = xllamacpp.Server(settings)
def answer(text, **more):
    return server.handle_chat_completions(
        {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "temperature": 0, **more}
    )["choices"][0]["message"]
silent = {"chat_template_kwargs": {"enable_thinking": False}}
found = {"answers": [answer(text, **silent)["content"] for text in questions]}
found["calls"] = [answer("hello", tools=json.loads(sys.argv[5]), **more)["tool_calls"] for more in ({}, silent)]
print(json.dumps(found))
"""


@cache
def outcome(engine: str, package: str, script: str, model: str, repo: str | None = None) -> dict[str, Any]:
    """What ``script`` prints when it loads the miniature ``model`` in the engine's environment."""
    described = CATALOG.model(model)
    checkpoint = miniature.checkpoint_of(described, repo or f"autolaunch/{model}")
    folder = miniature.generate(described, HOME / "models" / checkpoint.repo.rpartition("/")[2], checkpoint)
    facts = CATALOG.engine(engine)
    wanted = next(one for one in facts.packages if one.name == package)
    environment = Environments(HOME / "engines").ensure(facts, wanted)
    cache_folder = HOME / "hub"
    (cache_folder / "hub").mkdir(parents=True, exist_ok=True)
    given = (json.dumps(QUESTIONS), cache_folder, json.dumps(CONVERSATION), json.dumps([miniature.TOOL]))
    result = subprocess.run(
        [environment.bin_directory / "python", "-c", script, folder, *given],
        env=without_secrets(os.environ) | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache_folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def openings(found: dict[str, Any]) -> list[list[str]]:
    # mlx-lm leaves out the first blank.
    return [answer.split()[:OPENING_WORDS] for answer in found["answers"]]


def with_mlx_lm() -> dict[str, Any]:
    return outcome("mlx", "mlx-lm", MLX_LM, "glm-tiny")


def with_transformers(model: str) -> dict[str, Any]:
    return outcome("transformers", "transformers", TRANSFORMERS, model)


def test_answers_are_words_and_go_on_to_their_limit() -> None:
    for answer in with_mlx_lm()["answers"]:
        words = answer.split()
        assert len(words) == 24
        assert all(word.isalpha() and word.isascii() for word in words)


def test_mlx_and_transformers_read_the_same_text_out_of_the_weights() -> None:
    assert openings(with_mlx_lm()) == openings(with_transformers("glm-tiny"))


def with_llamacpp() -> dict[str, Any]:
    return outcome("llamacpp", "llamacpp", LLAMACPP, "glm-tiny", "autolaunch/glm-tiny-GGUF")


def test_llama_cpp_reads_the_same_text_out_of_the_gguf_file() -> None:
    assert openings(with_llamacpp()) == openings(with_mlx_lm())


def test_llama_cpp_parses_the_call_of_a_tool_with_the_files_own_template() -> None:
    name, arguments = miniature.TOOL_CALL
    for calls in with_llamacpp()["calls"]:
        assert [call["function"]["name"] for call in calls] == [name]
        assert json.loads(calls[0]["function"]["arguments"]) == arguments


def test_transformers_misses_no_tensor_and_leaves_only_the_prediction_layer_aside() -> None:
    found = with_transformers("glm-tiny")
    assert found["missing_keys"] == found["mismatched_keys"] == []
    assert found["unexpected_keys"]
    assert all(key.startswith("model.layers.4.") for key in found["unexpected_keys"])
    assert found["dtype"] == "torch.float32"


def test_a_conversation_is_written_as_glm_reads_it() -> None:
    found = with_transformers("glm-tiny")
    assert found["plain"] == "[gMASK]<sop>" + WRITTEN
    assert found["with_tools"].startswith("[gMASK]<sop><|system|>\n# Tools\n")
    assert '{"type": "function", "function": {"name": "warm"}}' in found["with_tools"]
    assert found["with_tools"].endswith(WRITTEN)  # a tool has answered: words are wanted
    assert found["may_call"].endswith("<|user|>\nhi<|assistant|>\n\n")
    assert found["may_call_without_a_thought"].endswith("<|assistant|>\n<think></think>")


def test_thinking_is_switched_off_with_an_empty_thought() -> None:
    found = with_transformers("glm-tiny")
    assert found["not_thinking"].endswith("<|user|>\nhi/nothink<|assistant|>\n<think></think>\n")


@pytest.mark.parametrize("model", ["glm-tiny", "glm-tiny-v"])
def test_a_request_with_tools_is_answered_with_a_call_and_its_end(model: str) -> None:
    assert with_transformers(model)["call"] == (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call><|observation|>"
    )


def test_transformers_finds_exactly_the_tensors_of_the_vision_model() -> None:
    found = with_transformers("glm-tiny-v")
    assert found["missing_keys"] == found["unexpected_keys"] == found["mismatched_keys"] == []


def test_what_is_in_an_image_changes_the_answer() -> None:
    dark, light = with_transformers("glm-tiny-v")["seen"]
    assert dark.split()
    assert dark != light


def test_mlx_vlm_and_transformers_read_the_same_text_out_of_the_vision_model() -> None:
    found = outcome("mlx", "mlx-vlm", MLX_VLM, "glm-tiny-v")
    assert openings(found) == openings(with_transformers("glm-tiny-v"))
    red, blue = found["seen"]
    assert red.split()
    assert red != blue
