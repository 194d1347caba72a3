"""curl, as it is installed, through the gateway: what HTTP has beside the requests that libraries make."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.behind import KEY, Behind
from tests.fakes.engine import WORDS

HELLO = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hello"}]})
STREAMED = json.dumps({**json.loads(HELLO), "stream": True})
CURL = shutil.which("curl") or "curl"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with Behind(tmp_path_factory.mktemp("ready"), "ready") as one:
        yield one


def curl(one: Behind, path: str, *arguments: str, given: str | None = None, key: str | None = KEY) -> tuple[int, str]:
    """The status, and the answer's headers (with ``-i``) and body; the key and the body come by a pipe."""
    credentials = () if key is None else ("--header", f"Authorization: Bearer {key}")
    url = f"http://127.0.0.1:{one.port}{path}"
    told = ("--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", "--noproxy", "*")
    done = subprocess.run(
        (CURL, *told, *credentials, *arguments, url),
        input=given,
        stdin=None if given is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30.0,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def post(one: Behind, body: str, *arguments: str, key: str | None = KEY) -> tuple[int, str]:
    data = ("--header", "Content-Type: application/json", "--data-binary", "@-")
    return curl(one, "/v1/chat/completions", *data, *arguments, given=body, key=key)


def words(answer: str) -> str:
    found: str = json.loads(answer)["choices"][0]["message"]["content"]
    return found


@pytest.mark.parametrize(
    "manner",
    [
        (),
        ("--http1.0",),
        ("--header", "Transfer-Encoding: chunked"),
        ("--header", "Expect: 100-continue"),
        ("--header", "Connection: close"),
        ("--compressed",),
    ],
    ids=["plain", "HTTP/1.0", "chunked", "100-continue", "close", "compressed"],
)
def test_a_request_is_answered_in_whatever_manner_it_comes(ready: Behind, manner: tuple[str, ...]) -> None:
    began = time.monotonic()
    status, answer = post(ready, HELLO, *manner)
    assert (status, words(answer)) == (200, "".join(WORDS))
    # curl sends the body after a second where no 100 Continue comes.
    assert time.monotonic() - began < 0.9 or manner[-1:] != ("Expect: 100-continue",)


@pytest.mark.parametrize("manner", [("--no-buffer",), ("--no-buffer", "--http1.0")], ids=["HTTP/1.1", "HTTP/1.0"])
def test_a_stream_ends_with_its_end(ready: Behind, manner: tuple[str, ...]) -> None:
    status, answer = post(ready, STREAMED, "--include", *manner)
    head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    assert status == 200
    assert "text/event-stream" in head.lower()
    assert ("transfer-encoding: chunked" in head.lower()) == ("--http1.0" not in manner)
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for each in events[:-1] for choice in json.loads(each)["choices"]]
    assert "".join(each.get("content") or "" for each in deltas) == "".join(WORDS)


def test_a_stream_is_not_held_back(tmp_path: Path) -> None:
    """curl writes what came as it comes; the engine goes on for a minute."""
    with Behind(tmp_path, "steady") as one:
        url = f"http://127.0.0.1:{one.port}/v1/chat/completions"
        argv = (CURL, "--silent", "--no-buffer", "--max-time", "20", "--noproxy", "*", "--data-binary", STREAMED, url)
        with subprocess.Popen((*argv, "--header", f"Authorization: Bearer {KEY}"), stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                came = []
                for line in process.stdout:
                    came += [time.monotonic()] if line.startswith(b"data: ") else []
                    if len(came) == 25:
                        break
            finally:
                process.kill()
        assert came[-1] - came[0] > 0.3, "they did not come at once"
        until = time.monotonic() + 10.0
        while one.clients_that_left() < 1:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_head_has_the_headers_of_get_and_no_body(ready: Behind) -> None:
    status, answer = curl(ready, "/v1/models", "--head")
    assert status == 200
    head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    _, whole = curl(ready, "/v1/models")
    assert f"content-length: {len(whole)}" in head.lower()
    assert body.strip() == ""


@pytest.mark.parametrize("key", [None, "sk-wrong-but-long-enough-to-be-one", ""])
def test_without_a_key_there_is_no_answer(ready: Behind, key: str | None) -> None:
    for path in ("/v1/models", "/metrics", "/ready", "/nothing"):
        assert curl(ready, path, key=key)[0] == 401
    status, answer = post(ready, HELLO, key=key)
    assert status == 401
    assert json.loads(answer)["error"]["message"]
    assert KEY not in answer


def test_a_page_of_another_place_is_refused(ready: Behind) -> None:
    for header in ("Origin: https://evil.example", "Host: evil.example"):
        status, answer = post(ready, HELLO, "--include", "--header", header)
        assert status == 403
        assert "access-control-allow-origin" not in answer.lower()
    preflight = ("--request", "OPTIONS", "--header", "Access-Control-Request-Method: POST")
    status, answer = curl(
        ready, "/v1/chat/completions", "--include", *preflight, "--header", "Origin: https://evil.example", key=None
    )
    assert status == 403
    assert "access-control-allow-origin" not in answer.lower()


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(ready: Behind) -> None:
    status, _ = post(ready, "x", "--header", f"Content-Length: {2**30}", "--header", "Expect: 100-continue")
    assert status == 413


def test_what_is_not_there_and_what_is_asked_wrongly_says_so(ready: Behind) -> None:
    assert curl(ready, "/nothing")[0] == 404
    status, answer = curl(ready, "/v1/chat/completions", "--include")
    assert status == 405
    assert "allow: post" in answer.lower()
    assert post(ready, "{")[0] == 400
    assert post(ready, '{"model": "glm-5"}')[0] == 404
