"""The launch command over a fake server: no engine is started here."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import autolaunch.chat
import autolaunch.keeping
from autolaunch import api
from autolaunch.chat import AskResult
from autolaunch.cli import signals
from autolaunch.cli.app import run
from autolaunch.daemon import ports
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.gateway.keys import key_of
from autolaunch.daemon.hands import Hands
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.machine import State
from autolaunch.proof import png
from autolaunch.reach import Reach
from autolaunch.server import LaunchEvent
from selector.contract import LaunchPlan
from selector.errors import EngineError, EngineStartError, PortTaken


class FakeServer:
    """Stands where a model that is kept up would, and where its engine would."""

    base_url = "http://127.0.0.1:8123/v1"
    served_name = "glm-4.6"
    pid = 4242
    log_path = Path("/nowhere/engine.log")
    api_key = "the engine's own"
    state = State(deployment=Deployment(name="glm-4.6", model="glm-4.6"))

    def __init__(self) -> None:
        self.stops = 0
        self.ready_error: BaseException | None = None
        self.interrupted_by: int | None = None
        self.deployment: Deployment | None = None
        self.hands: Hands | None = None
        self.reach: Reach | None = None
        self.on_tell: Callable[[Tell], None] = lambda _: None

    def __call__(
        self,
        engines: list[tuple[Deployment, Hands]],
        on_tell: Callable[[Tell], None],
        *,
        reach: Reach | None,
        listening: socket.socket | None,
    ) -> FakeServer:
        ((self.deployment, self.hands),) = engines
        self.on_tell, self.reach = on_tell, reach
        if listening is not None:
            listening.close()
        return self

    def hear(self, key: str, event: LaunchEvent) -> None:
        """What the control socket would tell."""

    def start(self) -> None:
        assert self.hands is not None
        self.hands.on_event(LaunchEvent(stage="weights", message="weights are here", fraction=1.0))
        self.hands.on_event(LaunchEvent(stage="loading", message="layer 3"))

    def wait_ready(self) -> FakeServer:
        self.on_tell(Tell(name="engine.failed", level="warning", message="before it was ready, this is an error"))
        if self.ready_error is not None:
            raise self.ready_error
        return self

    def wait_ended(self) -> None:
        if self.interrupted_by is not None:
            raise signals.Stopped(self.interrupted_by)
        self.on_tell(Tell(name="engine.failed", level="warning", message="it was killed; another try in 5 s"))
        raise EngineError("it was killed; 5 failures in half an hour", hint="the last lines:\nCUDA out of memory")

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr(api, "plan", lambda *_, **__: plan)
    monkeypatch.setattr(autolaunch.keeping, "Foreground", fake)
    listen = ports.listening_socket
    # Whoever has port 8000 of this machine is not asked.
    monkeypatch.setattr(autolaunch.keeping, "listening_socket", lambda host, _port: listen(host, 0))
    return fake


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked; the answer streams in two pieces."""
    seen: list[dict[str, Any]] = []

    def ask(
        base_url: str,
        model: str,
        text: str,
        *,
        api_key: str | None,
        images: tuple[str, ...],
        max_tokens: int,
        on_text: Callable[[str], None],
        on_reasoning: Callable[[str], None],
    ) -> AskResult:
        assert api_key == FakeServer.api_key
        seen.append({"base_url": base_url, "model": model, "text": text, "max_tokens": max_tokens, "images": images})
        on_text("Hello\x1b[2J")
        on_text(" you")
        return AskResult(
            text="Hello you",
            reasoning="",
            prompt_tokens=10,
            completion_tokens=2,
            time_to_first_token_seconds=0.25,
            decode_tokens_per_second=50.0,
            finish_reason="stop",
        )

    monkeypatch.setattr(autolaunch.chat, "ask", ask)
    return seen


def test_the_options_of_a_launch_reach_it(server: FakeServer, answers: list[dict[str, Any]]) -> None:
    line = [
        "glm-4.6",
        "--ask",
        "hi",
        "--model-path",
        "/m",
        "--offline",
        "--",
        "-x",
        "y z",
    ]
    assert run(line) == 0
    told = server.deployment
    assert told is not None
    assert (told.offline, told.model_path) == (True, Path("/m"))
    assert server.reach is None, "nobody else is to ask"
    assert told.engine_options == ("-x", "y z")


def test_an_engine_never_listens_beyond_loopback(server: FakeServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(key_of("web", "k" * 20).line)
    keys.chmod(0o600)
    everywhere = "0.0.0.0"  # noqa: S104 - nothing listens
    assert run(["glm-4.6", "--port", "0", "--host", everywhere, "--api-key-file", str(keys)]) == 5, "the fake ends so"
    assert server.deployment is not None
    assert (server.deployment.host, server.deployment.port) == ("127.0.0.1", None)
    assert server.reach is not None
    assert (server.reach.gateway.host, server.reach.gateway.keys_file) == (everywhere, keys)


def test_ask_streams_the_answer_alone_to_stdout_and_stops(
    server: FakeServer, answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["glm-4.6", "--ask", "hi"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello\N{REPLACEMENT CHARACTER}[2J you\n", "an answer cannot drive the terminal"
    assert "first token after 0.2 s; 50 tokens/s; 10 prompt and 2 answer tokens" in err
    assert answers[0]["text"] == "hi"
    assert server.stops == 1


def test_ask_with_json_is_one_document(
    server: FakeServer, answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["glm-4.6", "--ask", "hi", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["text"], document["completion_tokens"]) == (1, "Hello you", 2)


def test_a_failed_answer_stops_the_engine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> AskResult:
        raise EngineError("the connection to the engine broke")

    monkeypatch.setattr(autolaunch.chat, "ask", ask)
    assert run(["glm-4.6", "--ask", "hi"]) == 5
    assert server.stops == 1


def test_serving_says_where_and_how(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    run(["glm-4.6"])
    out, err = capsys.readouterr()
    assert "glm-4.6 answers at http://127.0.0.1:8123/v1" in out
    assert "curl http://127.0.0.1:8123/v1/chat/completions" in out
    assert "Ctrl-C stops it." in err


def test_a_model_that_is_given_up_on_exits_5_with_the_last_lines(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["glm-4.6"]) == 5
    err = capsys.readouterr().err
    assert "it was killed; another try in 5 s" in err
    assert "it was killed; 5 failures in half an hour" in err
    assert "CUDA out of memory" in err
    assert "this is an error" not in err
    assert server.stops == 1


def test_with_json_a_served_model_is_one_document_whatever_ends_it(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["glm-4.6", "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["base_url"], document["pid"]) == (1, server.base_url, 4242)
    server.interrupted_by = 15
    assert run(["glm-4.6", "--json"]) == 143
    json.loads(capsys.readouterr().out)


def test_a_signal_while_serving_stops_the_engine_first(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.interrupted_by = 2
    with pytest.raises(signals.Stopped) as stopped:
        run(["glm-4.6"])
    assert stopped.value.exit_code == 130
    assert server.stops == 1


@pytest.mark.parametrize("error", [EngineStartError("it exited while loading"), PortTaken("port 8000 is in use")])
def test_an_engine_that_does_not_get_ready_exits_5(
    server: FakeServer, capsys: pytest.CaptureFixture[str], error: EngineError
) -> None:
    server.ready_error = error
    assert run(["glm-4.6"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert error.message in err
    assert server.stops == 1


def test_without_a_terminal_progress_is_one_line_a_stage(
    server: FakeServer, answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(["glm-4.6", "--ask", "hi"])
    lines = capsys.readouterr().err.splitlines()
    assert sum("weights are here" in line for line in lines) == 1
    assert sum("a token came back" in line for line in lines) == 1
    assert "\x1b" not in "".join(lines)


def test_a_model_without_images_is_asked_about_none_and_nothing_is_started(
    server: FakeServer, answers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    assert run(["glm-4.6", "--ask", "what", "--image", str(tmp_path / "a.png")]) == 2
    assert "takes no images" in capsys.readouterr().err
    assert server.deployment is None


def test_a_file_that_is_no_image_is_named(
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    plan: LaunchPlan,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(api, "plan", lambda *_, **__: msgspec.structs.replace(plan, model="glm-4.5v"))
    (tmp_path / "a.txt").write_text("no image")
    assert run(["glm-4.5v", "--ask", "what", "--image", str(tmp_path / "a.txt")]) == 2
    assert "a.txt: this is no image" in capsys.readouterr().err
    assert server.deployment is None


def test_images_go_along_with_the_question(
    server: FakeServer,
    answers: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    plan: LaunchPlan,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(api, "plan", lambda *_, **__: msgspec.structs.replace(plan, model="glm-4.5v"))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png((1, 2, 3)))
    images = [word for name in ("a.png", "b.png") for word in ("--image", str(tmp_path / name))]
    assert run(["glm-4.5v", "--ask", "what", *images]) == 0
    assert len(answers[0]["images"]) == 2
    assert all(url.startswith("data:image/png;base64,") for url in answers[0]["images"])


def test_what_is_thought_is_shown_as_it_comes_and_the_answer_below_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine with a reasoning parser is silent in its content for as long as the model thinks."""

    def ask(*_: Any, on_text: Callable[[str], None], on_reasoning: Callable[[str], None], **__: Any) -> AskResult:
        on_reasoning("hm, ")
        on_reasoning("well")
        on_text("yes")
        return AskResult(
            text="yes",
            reasoning="hm, well",
            prompt_tokens=1,
            completion_tokens=3,
            time_to_first_token_seconds=0.1,
            decode_tokens_per_second=1.0,
            finish_reason="stop",
        )

    monkeypatch.setattr(autolaunch.chat, "ask", ask)
    assert run(["glm-4.6", "--ask", "hi"]) == 0
    assert capsys.readouterr().out == "hm, well\n\nyes\n"
