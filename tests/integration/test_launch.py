"""The real engines, in environments that uv makes, on the generated miniatures: planned, started, asked, stopped."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from autolaunch import api, proof
from autolaunch.chat import ask
from autolaunch.launching import LaunchOptions, launch
from autolaunch.proof import Endpoint
from autolaunch.server import Server
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import EngineStartError, UsageError
from selector.facts import EngineName
from selector.request import Pins

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TEXT: tuple[EngineName, ...] = ("mlx", "llamacpp", "transformers", "vllm")
VISION: tuple[EngineName, ...] = ("mlx", "vllm")
QUESTIONS = ("hello", "What is the capital of France?", "Grüße, 你好")
#: Engines that round differently may part ways once two words are nearly as good; not this early.
OPENING_WORDS = 6
#: What each engine opened with, for the test that compares them.
openings: dict[str, list[list[str]]] = {}


def planned(name: EngineName, model: str = "glm-tiny") -> LaunchPlan:
    """The plan of this machine's processor, so that the same engines run where there is a GPU."""
    report = api.probe()

    return api.plan(model, hardware=msgspec.structs.replace(report, accelerators=(), links=()), pins=Pins(engine=name))


@pytest.fixture(scope="module", params=TEXT)
def server(request: pytest.FixtureRequest, engines_home: Path) -> Iterator[Server]:
    options = LaunchOptions(home=engines_home, port=0)
    with launch(planned(request.param), catalog=Catalog(), options=options) as started:
        started.wait_ready(timeout=500)
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


def words(answer: dict[str, Any]) -> str:
    """What a whole answer says. A miniature's thinking never ends: where it is told apart, that is all there is."""
    message = answer["choices"][0]["message"]
    told = (message.get(key) for key in ("reasoning", "reasoning_content", "content"))
    return "".join(each for each in told if each).strip()


def endpoint(server: Server, *, images: bool = False) -> Endpoint:
    return Endpoint(base_url=server.base_url, model=server.served_name, images=images)


def test_it_answers_a_chat_completion_under_its_name(server: Server) -> None:
    status, answer = post(server, hello(server))
    assert status == 200
    assert answer["model"] == "glm-tiny"
    assert answer["usage"]["completion_tokens"] == 8
    assert words(answer)


def test_a_stream_gives_the_text_of_the_whole_answer(server: Server) -> None:
    result = ask(server.base_url, server.served_name, "hello", max_tokens=8, temperature=0)
    assert result.completion_tokens == 8
    _, whole = post(server, hello(server))
    assert (result.reasoning + result.text).strip() == words(whole)


def test_a_call_of_a_function_is_parsed_out_of_a_stream(server: Server) -> None:
    step = proof.called(endpoint(server), parsed=True)
    assert step.ok, step.message


def test_the_same_question_gets_the_same_answer(server: Server) -> None:
    assert post(server, hello(server))[1]["choices"] == post(server, hello(server))[1]["choices"]
    answers = [
        ask(server.base_url, server.served_name, question, max_tokens=24, temperature=0) for question in QUESTIONS
    ]
    openings[server.engine.name] = [(answer.reasoning + answer.text).split()[:OPENING_WORDS] for answer in answers]


def test_no_other_model_is_fetched_for_a_request(server: Server) -> None:
    status, answer = post(server, hello(server) | {"model": "somebody/else"})
    # llama.cpp answers with the one model that it has, whatever it is called.
    assert status >= 400 or (server.engine.name == "llamacpp" and answer["model"] == "glm-tiny")


def test_it_listens_on_the_loopback_alone(server: Server) -> None:
    listening = {
        connection.laddr.ip
        for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True))
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    }
    assert listening == {"127.0.0.1"}


def test_a_page_in_a_browser_reaches_nothing_of_it(server: Server) -> None:
    """A foreign page may not read an answer, and a name that its DNS points here is no way in."""
    own = f"{server.address.host}:{server.address.port}"
    connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=60)
    connection.request("GET", "/v1/models", headers={"Host": own, "Origin": "http://evil.example"})
    response = connection.getresponse()
    response.read()
    allowed = response.getheader("access-control-allow-origin")
    connection.close()
    assert allowed not in ("*", "http://evil.example")


def test_engines_of_one_precision_open_with_the_same_text() -> None:
    """The same weights, in float32 everywhere. (Runs after the tests above, which ask.)"""
    assert set(openings) == set(TEXT)
    first = openings["mlx"]
    assert all(len(words) == OPENING_WORDS for words in first)
    assert openings == dict.fromkeys(TEXT, first)


@pytest.mark.parametrize("name", ["mlx", "llamacpp", "transformers"])
def test_it_stops_at_any_moment_without_a_trace(name: EngineName, engines_home: Path) -> None:
    plan = planned(name)
    for seconds in (0.0, 0.3, 1.5):
        server = launch(plan, catalog=Catalog(), options=LaunchOptions(home=engines_home, port=0))
        time.sleep(seconds)
        tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 15
        assert not any(process.is_running() for process in tree)
        assert not server._run_directory.exists()


@pytest.mark.parametrize("name", ["mlx", "transformers"])
def test_a_damaged_checkpoint_ends_the_launch_with_the_engines_own_words(
    name: EngineName, tmp_path: Path, engines_home: Path
) -> None:
    plan = planned(name)
    launch(plan, catalog=Catalog(), options=LaunchOptions(home=engines_home, port=0)).stop()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (engines_home / "models" / "glm-tiny").iterdir():
        if path.is_file():
            (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    options = LaunchOptions(home=engines_home, port=0, model_path=damaged)
    with (
        launch(plan, catalog=Catalog(), options=options) as server,
        pytest.raises(EngineStartError) as caught,
    ):
        server.wait_ready(timeout=240)
    assert "no_such_model" in caught.value.message + "".join(caught.value.__notes__)


@pytest.mark.parametrize("name", TEXT[2:])
def test_an_option_that_an_engine_does_not_have_is_said_before_it_is_started(
    name: EngineName, engines_home: Path
) -> None:
    options = LaunchOptions(home=engines_home, port=0, extra=("--no-such-option", "1"))
    with pytest.raises(UsageError, match="has no option --no-such-option"):
        launch(planned(name), catalog=Catalog(), options=options)


@pytest.fixture(scope="module", params=VISION)
def vision_server(request: pytest.FixtureRequest, engines_home: Path) -> Iterator[Server]:
    options = LaunchOptions(home=engines_home, port=0)
    with launch(planned(request.param, "glm-tiny-v"), catalog=Catalog(), options=options) as started:
        started.wait_ready(timeout=500)
        yield started


def test_what_is_in_an_image_changes_the_answer(vision_server: Server) -> None:
    step = proof.seen(endpoint(vision_server, images=True))
    assert step.ok, step.message


def test_the_vision_model_streams_and_calls_functions_too(vision_server: Server) -> None:
    step, _ = proof.streamed(endpoint(vision_server))
    assert step.ok, step.message
    step = proof.called(endpoint(vision_server), parsed=True)
    assert step.ok, step.message


def test_a_page_in_a_browser_reaches_nothing_of_the_vision_server(engines_home: Path) -> None:
    with launch(
        planned("mlx", "glm-tiny-v"), catalog=Catalog(), options=LaunchOptions(home=engines_home, port=0)
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
