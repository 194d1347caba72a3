"""The client of --ask: it takes what engines really send, and says what went wrong."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from autolaunch.chat import ask
from autolaunch.daemon.health import wait_until_ready
from autolaunch.daemon.ports import Address, free_port
from autolaunch.daemon.process import EngineProcess
from selector.errors import EngineError

FAKE = Path(__file__).parents[2] / "fakes" / "engine.py"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    with ExitStack() as stack:

        def started(mode: str) -> str:
            address = Address(host="127.0.0.1", port=free_port("127.0.0.1", 0))
            argv = (sys.executable, str(FAKE), "--port", str(address.port), "--mode", mode)
            process = stack.enter_context(
                EngineProcess(argv, environment=dict(os.environ), working_directory=tmp_path, grace_seconds=0.2)
            )
            wait_until_ready(process, address=address, model="fake", engine="fake")
            return address.base_url

        yield started


@contextmanager
def served(answer: bytes) -> Iterator[str]:
    """Somebody who sends ``answer`` to one request and hangs up."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # who does not like the answer hangs up
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):  # what is unread when a socket closes resets it
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize("mode", ["ready", "unfinished"])
def test_an_answer_comes_piece_by_piece_with_its_figures(engine: Callable[[str], str], mode: str) -> None:
    pieces: list[str] = []
    result = ask(engine(mode), "fake", "hello", on_text=pieces.append)
    assert pieces == ["Hello", " from", " a", " fake", "."]
    assert result.text == "Hello from a fake."
    assert (result.prompt_tokens, result.completion_tokens, result.finish_reason) == (3, 5, "stop")
    assert result.time_to_first_token_seconds is not None


def test_an_error_within_the_stream_is_an_error(engine: Callable[[str], str]) -> None:
    with pytest.raises(EngineError, match="broke off: the worker died"):
        ask(engine("broken"), "fake", "hello")


def test_a_refusal_is_told_with_its_status(engine: Callable[[str], str]) -> None:
    with pytest.raises(EngineError, match=r"answered 404: .*no model other"):
        ask(engine("ready"), "other", "hello")


def test_nobody_there_is_an_engine_error() -> None:
    port = free_port("127.0.0.1", 0)
    with pytest.raises(EngineError, match=f"127.0.0.1:{port}/v1 broke"):
        ask(f"http://127.0.0.1:{port}/v1", "fake", "hello")


def test_reasoning_is_kept_apart_under_both_of_its_names() -> None:
    names = (b"reasoning", b"reasoning_content", b"content")
    events = (b'data: {"choices":[{"delta":{"%s":"%d"}}]}\n\n' % (name, place) for place, name in enumerate(names))
    with served(STREAM + b"".join(events)) as url:
        result = ask(url, "m", "hello")
    assert (result.reasoning, result.text, result.completion_tokens) == ("01", "2", None)


@pytest.mark.parametrize("body", [b"data: {broken\n\n", b"data: " + b"x" * 2_000_000 + b"\n\n"])
def test_junk_in_a_stream_is_an_engine_error(body: bytes) -> None:
    with served(STREAM + body) as url, pytest.raises(EngineError):
        ask(url, "m", "hello")


def test_events_of_unknown_shape_are_passed_over() -> None:
    body = (
        b'data: []\n\ndata: {"choices": 3}\n\ndata: {"choices": [null]}\n\ndata: {"usage": {"prompt_tokens": "x"}}\n\n'
    )
    with served(STREAM + body) as url:
        assert ask(url, "m", "hello").text == ""


def test_our_own_closed_output_is_not_blamed_on_the_engine() -> None:
    def nobody_reads(_: str) -> None:
        raise BrokenPipeError

    with served(STREAM + b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n') as url, pytest.raises(BrokenPipeError):
        ask(url, "m", "hello", on_text=nobody_reads)


def calls(*deltas: str) -> bytes:
    return b"".join(b'data: {"choices":[{"delta":{"tool_calls":[%s]}}]}\n\n' % delta.encode() for delta in deltas)


def test_a_call_is_put_together_from_its_pieces_and_two_are_kept_apart() -> None:
    pieces = (
        '{"index":0,"id":"x","function":{"name":"warm","arguments":""}}',
        '{"index":0,"function":{"arguments":"{\\"city\\": "}}',
        '{"index":1,"function":{"name":"cold","arguments":"{}"}}',
        '{"index":0,"function":{"arguments":"\\"Oslo\\"}"}}',
    )
    with served(STREAM + calls(*pieces)) as url:
        result = ask(url, "m", "hello")
    assert [(call.name, call.arguments) for call in result.tool_calls] == [("warm", '{"city": "Oslo"}'), ("cold", "{}")]
    assert result.time_to_first_token_seconds is not None


def test_calls_of_unknown_shape_are_passed_over_and_without_number_they_count_in_order() -> None:
    with served(STREAM + calls("3", '{"function":[]}', '{"function":{"name":"a"}},{"function":{"name":"b"}}')) as url:
        assert [call.name for call in ask(url, "m", "hello").tool_calls] == ["a", "b"]


def test_calls_without_end_are_an_engine_error() -> None:
    many = ",".join(f'{{"index":{place},"function":{{"name":"a"}}}}' for place in range(200))
    with served(STREAM + calls(many)) as url, pytest.raises(EngineError, match="does not end"):
        ask(url, "m", "hello")


def test_images_and_functions_go_along_with_the_question() -> None:
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            while b'"tools"' not in b"".join(heard):
                heard.append(connection.recv(65_536))
            connection.sendall(STREAM)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        tool = {"type": "function", "function": {"name": "warm"}}
        ask(url, "m", "what", images=("data:image/png;base64,AAAA",), tools=(tool,))
        thread.join()
    body = json.loads(b"".join(heard).partition(b"\r\n\r\n")[2])
    assert body["tools"] == [tool]
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert body["messages"][0]["content"][0]["image_url"] == {"url": "data:image/png;base64,AAAA"}
