"""The real engines, in environments that uv makes, on the generated miniature: start, chat, stream, stop."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import psutil
import pytest

from autolaunch.chat import ask
from autolaunch.launch import LaunchOptions, Server, launch
from engines.environments import Environments
from selector.catalog import Catalog
from selector.errors import EngineStartError, UsageError
from selector.facts import EngineName
from tests.fakes.plans import candidate, plan

#: The environments are shared with the person's own: they are made once a machine.
HOME = Path(os.environ.get("AUTOLAUNCH_TEST_HOME") or platformdirs.user_cache_dir("autolaunch-tests", appauthor=False))

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["mlx", "transformers"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    name: EngineName = request.param
    chosen = candidate(name, "glm-tiny")
    with launch(plan(chosen), catalog=Catalog(), options=LaunchOptions(home=HOME, port=0)) as started:
        started.wait_ready(timeout=240)
        yield started


def post(server: Server, body: dict[str, object]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def hello(server: Server, **more: object) -> dict[str, object]:
    message = {"role": "user", "content": "hello"}
    return {"model": server.served_name, "messages": [message], "max_tokens": 8, "temperature": 0, **more}


def test_it_answers_a_chat_completion_under_its_name(server: Server) -> None:
    status, answer = post(server, hello(server))
    assert status == 200
    assert answer["model"].removesuffix("@main") == "glm-tiny"
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["message"]["content"].strip()


def test_a_stream_gives_the_text_of_the_whole_answer(server: Server) -> None:
    pieces: list[str] = []
    result = ask(server.base_url, server.served_name, "hello", max_tokens=8, temperature=0, on_text=pieces.append)
    assert result.text == "".join(pieces)
    assert len(pieces) > 1
    assert result.completion_tokens == 8
    _, whole = post(server, hello(server))
    assert result.text.strip() == whole["choices"][0]["message"]["content"].strip()


def test_the_same_question_gets_the_same_answer(server: Server) -> None:
    assert post(server, hello(server))[1]["choices"] == post(server, hello(server))[1]["choices"]


def test_no_other_model_is_fetched_for_a_request(server: Server) -> None:
    status, _ = post(server, hello(server) | {"model": "somebody/else"})
    assert status >= 400


def test_it_listens_on_the_loopback_alone(server: Server) -> None:
    listening = [
        connection.laddr.ip
        for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True))
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    ]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize("name", ["mlx", "transformers"])
def test_it_stops_at_any_moment_without_a_trace(name: EngineName) -> None:
    catalog = Catalog()
    facts = catalog.engine(name)
    Environments(HOME / "engines").ensure(facts, facts.packages[0])
    for seconds in (0.0, 0.3, 1.5):
        server = launch(plan(candidate(name, "glm-tiny")), catalog=catalog, options=LaunchOptions(home=HOME, port=0))
        time.sleep(seconds)
        tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 15
        assert not any(process.is_running() for process in tree)
        assert not server._run_directory.exists()


@pytest.mark.parametrize("name", ["mlx", "transformers"])
def test_a_damaged_checkpoint_ends_the_launch_with_the_engines_own_words(name: EngineName, tmp_path: Path) -> None:
    catalog = Catalog()
    sound = HOME / "models" / "glm-tiny"
    launch(plan(candidate(name, "glm-tiny")), catalog=catalog, options=LaunchOptions(home=HOME, port=0)).stop()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in sound.iterdir():
        if path.is_file():
            (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    options = LaunchOptions(home=HOME, port=0, model_path=damaged)
    with (
        launch(plan(candidate(name, "glm-tiny")), catalog=catalog, options=options) as server,
        pytest.raises(EngineStartError) as caught,
    ):
        server.wait_ready(timeout=240)
    assert "no_such_model" in caught.value.message + "".join(caught.value.__notes__)


@pytest.mark.parametrize("name", ["mlx", "transformers"])
def test_an_option_that_an_engine_does_not_have_is_said_before_it_is_started(name: EngineName) -> None:
    options = LaunchOptions(home=HOME, port=0, extra=("--no-such-option", "1"))
    with pytest.raises(UsageError, match="has no option --no-such-option"):
        launch(plan(candidate(name, "glm-tiny")), catalog=Catalog(), options=options)


def test_a_page_in_a_browser_reaches_nothing_of_the_vision_server() -> None:
    package = next(each for each in Catalog().engine("mlx").packages if each.name == "mlx-vlm")
    chosen = candidate("mlx", "glm-tiny-v")
    version = package.version or chosen.engine.version
    chosen = msgspec.structs.replace(chosen, engine=msgspec.structs.replace(chosen.engine, version=version))
    with launch(
        plan(chosen, model="glm-tiny-v"), catalog=Catalog(), options=LaunchOptions(home=HOME, port=0)
    ) as server:
        server.wait_ready(timeout=240)
        own = f"{server.address.host}:{server.address.port}"

        def status(method: str, path: str, **headers: str) -> tuple[int, str | None]:
            connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=60)
            connection.request(method, path, headers={"Host": own, **headers})
            response = connection.getresponse()
            response.read()
            connection.close()
            return response.status, response.getheader("access-control-allow-origin")

        assert status("GET", "/health") == (200, None)
        assert status("GET", "/health", Origin=f"http://{own}") == (200, None)
        assert status("GET", "/health", Origin="http://evil.example") == (403, None)
        assert status("POST", "/unload", Origin="http://evil.example") == (403, None)
        assert status("OPTIONS", "/unload", Origin="http://evil.example")[0] == 403
        assert status("GET", "/health", Host=f"evil.example:{server.address.port}") == (403, None)
        assert post(server, hello(server))[0] == 200
