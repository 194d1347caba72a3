"""The command of MLX, token by token."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engines.base import Serving
from engines.registry import engine
from engines.shims.python_server import LocalOnly, option
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
    for model, package in (("glm-tiny", "mlx-lm"), ("glm-tiny-v", "mlx-vlm")):
        argv = argv_of(model)
        assert argv[:2] == ("/env/bin/python", "-P")
        assert Path(argv[2]).is_file()
        assert argv[3] == package


def test_a_plan_shows_the_programs_that_a_person_would_type() -> None:
    for model, program in (("glm-tiny", "mlx_lm.server"), ("glm-tiny-v", "mlx_vlm.server")):
        serving = Serving(model=f"autolaunch/{model}", served_name=model)
        assert engine("mlx").command(candidate("mlx", model), Catalog().model(model), serving).argv[0] == program


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
    assert command.argv[0] == "/there/bin/python"


def answered(kind: str = "http", **headers: str) -> Any:
    """What a client of the vision server gets: the status, the code of a closed socket, or "in"."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": "in"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    guarded = LocalOnly(app, host="127.0.0.1", port="9001")
    asyncio.run(guarded({"type": kind, "headers": named}, receive, send))
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("host", ["127.0.0.1:9001", "localhost:9001", "[::1]:9001", "LOCALHOST:7"])
def test_programs_of_this_machine_are_let_in(host: str) -> None:
    assert answered(host=host) == "in"
    assert answered("websocket", host=host) == "in"


@pytest.mark.parametrize("host", ["evil.example:9001", "127.0.0.1.evil.example", "", "localhost.:9001"])
def test_a_foreign_name_of_this_address_is_not_let_in(host: str) -> None:
    assert answered(host=host) == 403
    assert answered() == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1:9001"])
def test_a_foreign_page_is_not_let_in(origin: str) -> None:
    assert answered(host="127.0.0.1:9001", origin=origin) == 403
    assert answered("websocket", host="127.0.0.1:9001", origin=origin) == 1008


def test_a_request_that_the_browser_calls_foreign_is_not_let_in() -> None:
    assert answered(host="127.0.0.1:9001", sec_fetch_site="cross-site") == 403
    assert answered(host="127.0.0.1:9001", sec_fetch_site="same-origin", origin="http://127.0.0.1:9001") == "in"


def test_the_server_is_guarded_on_the_port_it_was_given() -> None:
    assert option(["x", "--port", "1", "--port=2"], "--port", "8080") == "2"
    assert option(["x"], "--port", "8080") == "8080"
