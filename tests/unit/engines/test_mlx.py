"""The command of MLX, token by token."""

from __future__ import annotations

from engines.base import Serving
from engines.registry import engine
from selector.catalog import Catalog
from tests.fakes.plans import candidate


def argv_of(model: str, *, sequences: int = 4, context: int = 8192) -> tuple[str, ...]:
    serving = Serving(model=model, served_name=model, port=9001, executable_directory="/env/bin")
    chosen = candidate("mlx", model, sequences=sequences, context=context)
    return engine("mlx").command(chosen, Catalog().model(model), serving).argv


def test_a_page_of_another_origin_is_not_let_in() -> None:
    argv = argv_of("glm-tiny")
    assert argv[argv.index("--allowed-origins") + 1] == "http://127.0.0.1:9001"


def test_text_is_served_by_mlx_lm_and_vision_by_mlx_vlm() -> None:
    assert argv_of("glm-tiny")[0] == "/env/bin/mlx_lm.server"
    assert argv_of("glm-tiny-v")[0] == "/env/bin/mlx_vlm.server"


def test_vision_listens_on_the_host_it_is_told_and_not_everywhere() -> None:
    argv = argv_of("glm-tiny-v")
    assert argv[argv.index("--host") + 1] == "127.0.0.1"


def test_an_answer_is_never_longer_than_the_context() -> None:
    argv = argv_of("glm-tiny", context=2048)
    assert argv[argv.index("--max-tokens") + 1] == "2048"


def test_the_planned_sequences_bound_what_runs_at_once() -> None:
    argv = argv_of("glm-tiny", sequences=2)
    assert argv[argv.index("--decode-concurrency") + 1] == "2"
    assert argv[argv.index("--prompt-concurrency") + 1] == "2"
    argv = argv_of("glm-tiny", sequences=64)
    assert argv[argv.index("--prompt-concurrency") + 1] == "8"


def test_kept_prompts_have_a_bound_in_bytes() -> None:
    argv = argv_of("glm-tiny")
    assert int(argv[argv.index("--prompt-cache-bytes") + 1]) > 0


def test_no_hub_is_asked_while_it_serves() -> None:
    command = engine("mlx").command(
        candidate("mlx", "glm-tiny"),
        Catalog().model("glm-tiny"),
        Serving(model="m", served_name="m", executable_directory="/there/bin"),
    )
    assert command.env == {"HF_HUB_OFFLINE": "1"}
    assert command.argv[0] == "/there/bin/mlx_lm.server"
