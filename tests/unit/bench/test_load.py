"""What a benchmark sends, to whom, and what guidellm is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autolaunch.bench.endpoint import Endpoint, checked_url, read_key
from autolaunch.bench.environment import PINS, Tool
from autolaunch.bench.load import load_of, prompt, write_prompts
from autolaunch.bench.run import command, environment_of
from engines.environments.requirements import entries
from selector.errors import UsageError

KEY = "sk-sentinel-0123456789"
ENDPOINT = Endpoint(base_url="http://127.0.0.1:8000/v1", model="glm-4.6", key=KEY)
TOOL = Tool(program=Path("/tools/bin/guidellm"), version="0.3.1")


def test_what_is_not_asked_for_is_filled_in() -> None:
    load = load_of(input_tokens=1000, output_tokens=500, concurrency=64)
    assert (load.requests, load.alone_requests, load.seconds) == (256, 4, 120.0)
    assert load_of(input_tokens=1000, output_tokens=500, concurrency=1).requests == 16
    assert load_of(input_tokens=1000, output_tokens=500, concurrency=8, requests=2).alone_requests == 2


@pytest.mark.parametrize(("prompt_tokens", "answer_tokens"), [(10, 1), (0, 10)])
def test_a_load_that_measures_nothing_is_refused(prompt_tokens: int, answer_tokens: int) -> None:
    with pytest.raises(UsageError):
        load_of(input_tokens=prompt_tokens, output_tokens=answer_tokens, concurrency=1)


def test_no_two_prompts_begin_alike_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", words=50, output_tokens=7, count=20, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "prompts").read_text().splitlines()]
    assert len({row["prompt"][:8] for row in rows}) == 20
    assert {row["output_tokens_count"] for row in rows} == {7}
    assert rows[0]["prompt"] == prompt(50, 3)
    assert len(rows[0]["prompt"].split()) == 51


def test_more_prompts_than_a_disk_should_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too much to send"):
        write_prompts(tmp_path / "prompts", words=60_000, output_tokens=2, count=10_000, seed=3)
    assert not (tmp_path / "prompts").exists()


def test_the_key_is_handed_over_in_the_environment_and_in_no_argument(tmp_path: Path) -> None:
    load = load_of(input_tokens=1000, output_tokens=500, concurrency=64)
    argv = command(TOOL, ENDPOINT, load, tmp_path / "in", tmp_path / "out", streams=64)
    assert KEY not in " ".join(argv)
    assert KEY not in repr(ENDPOINT)
    assert environment_of(ENDPOINT, tmp_path)["GUIDELLM__OPENAI__API_KEY"] == KEY


def test_guidellm_is_told_how_many_at_once_or_one_by_one(tmp_path: Path) -> None:
    load = load_of(input_tokens=1000, output_tokens=500, concurrency=64, seconds=30)
    together = command(TOOL, ENDPOINT, load, tmp_path / "in", tmp_path / "out", streams=64)
    alone = command(TOOL, ENDPOINT, load, tmp_path / "in", tmp_path / "out", streams=None)
    assert together[together.index("--rate-type") + 1 :][:3] == ("concurrent", "--rate", "64")
    assert together[together.index("--max-requests") + 1] == "256"
    assert alone[alone.index("--rate-type") + 1] == "synchronous"
    assert alone[alone.index("--max-requests") + 1] == "4"
    assert alone[alone.index("--max-seconds") + 1] == "30"
    assert alone[alone.index("--target") + 1] == "http://127.0.0.1:8000"


def test_guidellm_gets_no_credentials_and_no_settings_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("GUIDELLM__OPENAI__HEADERS", "{}")
    monkeypatch.setenv("NO_PROXY", "example.com")
    found = environment_of(Endpoint(base_url="http://127.0.0.1:8000/v1", model="x"), tmp_path)
    assert not {"HF_TOKEN", "OPENAI_API_KEY", "GUIDELLM__OPENAI__HEADERS", "GUIDELLM__OPENAI__API_KEY"} & set(found)
    assert found["NO_PROXY"] == "example.com,127.0.0.1,localhost,::1"
    assert (found["HF_HOME"], found["HF_HUB_OFFLINE"]) == (str(tmp_path / "hub"), "1")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://host/llm/v1/", "https://host/llm/v1"),
    ],
)
def test_an_address_is_taken_with_and_without_its_version(given: str, asked: str) -> None:
    assert checked_url(given) == asked


@pytest.mark.parametrize(
    "given", ["", "host:8000", "file:///etc/passwd", "http://", "http://a:b@host/v1", "http://host:x", "http://h/?a=1"]
)
def test_what_is_no_address_of_an_endpoint_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        checked_url(given)


def test_a_key_is_the_one_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key(tmp_path / "key") == KEY


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "né", "x" * 5000, f"me:sha256:{'0' * 64}"])
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError) as refused:
        read_key(tmp_path / "key")
    assert not content or content not in refused.value.message


def test_a_key_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_key(tmp_path / "key")


def test_guidellm_is_pinned_with_everything_it_needs() -> None:
    pinned = {each.name: each.version for each in entries(PINS.read_text())}
    assert pinned["guidellm"].startswith("0.3.")
    assert "torch" not in pinned  # gigabytes that its later versions want
