"""A benchmark: one request at a time, then many at once, sent by guidellm; and what was foretold beside it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

import msgspec

from autolaunch.bench.endpoint import Endpoint, words_per_token
from autolaunch.bench.environment import Tool
from autolaunch.bench.load import Load, write_prompts
from autolaunch.bench.report import Stretch, read_report
from autolaunch.comparison import Comparison
from engines.environments.store import without_secrets
from engines.leash import on_leash
from selector.errors import EngineError
from selector.measured import Measured
from selector.values import Value

#: guidellm's own start and end: it begins a process a core, and writes every request down.
_AROUND_SECONDS = 240.0
_KEPT_LINES, _KEPT_CHARACTERS = 12, 400
#: Below this length of a prompt the first step outweighs it: what it took tells nothing of reading prompts.
_LEAST_PROMPT_TOKENS = 256


class BenchEvent(Value, frozen=True, kw_only=True):
    """How far a benchmark is."""

    stage: Literal["asking", "alone", "together", "done"]
    message: str
    fraction: float | None = None


class Bench(Value, frozen=True, kw_only=True):
    """What a benchmark came to.

    ``alone`` is of one request at a time, ``together`` of ``load.concurrency`` at once. ``figures`` are those that a
    plan foretold as well (none of an endpoint that no plan of ours is of), ``kept`` says whether they correct the next
    plans of this host, and ``why_not`` why they do not. ``tool`` is guidellm's version.
    """

    schema: Literal[1] = 1
    model: str
    url: str
    deployment: str | None = None
    engine: str | None = None
    checkpoint: str | None = None
    load: Load
    alone: Stretch
    together: Stretch
    measured: Measured
    figures: tuple[Comparison, ...] = ()
    kept: bool = False
    why_not: str | None = None
    tool: str

    def to_json(self) -> str:
        """Indented JSON, ending without a newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def bench(
    endpoint: Endpoint,
    load: Load,
    tool: Tool,
    *,
    on_event: Callable[[BenchEvent], None] = lambda _: None,
    clock: Callable[[], float] = time.time,
) -> Bench:
    """Measures an endpoint. Left by an exception (Ctrl-C), it has ended everything that it started.

    The key is handed to guidellm in its environment; its report, which repeats it, lies in a folder of this user's
    alone that is gone afterwards.

    Raises:
        EngineError: it does not answer, or no request came to its end.
        UsageError: it wants another key.
    """
    seed = int(clock() * 1000) % 1_000_000_000
    on_event(BenchEvent(stage="asking", message=f"asking {endpoint.model} how long its words are"))
    words = max(1, round(load.input_tokens * words_per_token(endpoint, seed)))
    with tempfile.TemporaryDirectory(prefix="autolaunch-bench-") as name:
        folder = Path(name)
        tokens = f"{load.input_tokens:,} + {load.output_tokens:,} tokens"
        on_event(BenchEvent(stage="alone", message=f"{load.alone_requests} requests one by one, {tokens} each"))
        alone = _stretch(endpoint, load, tool, folder / "alone", words=words, streams=None, seed=seed)
        many = f"{load.requests} requests, {load.concurrency} at once, {tokens} each"
        on_event(BenchEvent(stage="together", message=many))
        again = seed + load.alone_requests + 1
        together = _stretch(
            endpoint, load, tool, folder / "together", words=words, streams=load.concurrency, seed=again
        )
    on_event(BenchEvent(stage="done", message="measured"))
    return Bench(
        model=endpoint.model,
        url=endpoint.base_url,
        load=load,
        alone=alone,
        together=together,
        measured=measured_of(load, alone, together, at=clock()),
        tool=tool.version,
    )


def measured_of(load: Load, alone: Stretch, together: Stretch, *, at: float) -> Measured:
    """The figures as they are kept. A prompt's speed is its length over the time to the first token, of long ones."""
    first, length = alone.time_to_first_token_seconds, alone.input_tokens
    prefill = length / first if first and length and length >= _LEAST_PROMPT_TOKENS else None
    return Measured(
        source="bench",
        at=at,
        samples=max(1, alone.requests + together.requests),
        decode_tokens_per_second=alone.decode_tokens_per_second,
        throughput_tokens_per_second=together.throughput_tokens_per_second,
        prefill_tokens_per_second=prefill,
        time_to_first_token_seconds=first,
        concurrency=load.concurrency,
        input_tokens=None if together.input_tokens is None else round(together.input_tokens),
        output_tokens=None if together.output_tokens is None else round(together.output_tokens),
    )


def _stretch(
    endpoint: Endpoint, load: Load, tool: Tool, folder: Path, *, words: int, streams: int | None, seed: int
) -> Stretch:
    """One run of guidellm, in ``folder``, which is made."""
    folder.mkdir(mode=0o700)
    count = load.alone_requests if streams is None else load.requests
    prompts, report = folder / "prompts.jsonl", folder / "report.json"
    write_prompts(prompts, words=words, output_tokens=load.output_tokens, count=count, seed=seed)
    argv = command(tool, endpoint, load, prompts, report, streams=streams)
    tail: deque[str] = deque(maxlen=_KEPT_LINES)
    with (folder / "said").open("wb") as said:
        environment = environment_of(endpoint, folder)
        with on_leash(argv, environment=environment, stdout=said.fileno(), working_directory=folder) as process:
            code = _wait(process, tail, load.seconds + _AROUND_SECONDS)
    if code != 0:
        raise EngineError(f"guidellm ended with {code}: {_told(tail, endpoint)}", hint="autolaunch status tells more")
    found = read_report(report)
    if found.requests == 0:
        why = found.error or "none came to its end in time"
        raise EngineError(
            f"of {found.errors + found.incomplete} requests none was answered: {_without_key(why, endpoint)}",
            hint="--seconds gives them longer, --output-tokens makes them shorter",
        )
    if found.error is not None:
        found = msgspec.structs.replace(found, error=_without_key(found.error, endpoint))
    return found


def command(
    tool: Tool, endpoint: Endpoint, load: Load, prompts: Path, report: Path, *, streams: int | None
) -> tuple[str, ...]:
    """guidellm's arguments; the key is in none of them."""
    count = load.alone_requests if streams is None else load.requests
    columns = '{"prompt_column": "prompt", "output_tokens_count_column": "output_tokens_count"}'
    rate = ("--rate-type", "synchronous") if streams is None else ("--rate-type", "concurrent", "--rate", str(streams))
    return (
        *(str(tool.program), "benchmark", "run"),
        *("--target", endpoint.base_url.removesuffix("/v1"), "--model", endpoint.model),
        *("--data", str(prompts), "--data-args", columns, *rate),
        *("--max-requests", str(count), "--max-seconds", f"{load.seconds:g}"),
        *("--disable-console-outputs", "--disable-progress", "--output-path", str(report)),
    )


def environment_of(endpoint: Endpoint, folder: Path) -> dict[str, str]:
    """What guidellm runs with: no settings or credentials of the user's but the key, caches of its own, no hub."""
    kept = {name: value for name, value in without_secrets(os.environ).items() if not name.startswith("GUIDELLM_")}
    key = {} if endpoint.key is None else {"GUIDELLM__OPENAI__API_KEY": endpoint.key}
    return {
        **kept,
        **key,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": ",".join(filter(None, (kept.get("NO_PROXY"), "127.0.0.1,localhost,::1"))),
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _wait(process: subprocess.Popen[bytes], tail: deque[str], most_seconds: float) -> int:
    """The exit code of guidellm, whose last lines are put into ``tail``; an exception has it ended by its leash."""
    assert process.stderr is not None  # noqa: S101 - asked for by the leash; tells the type checker
    reader = threading.Thread(target=_read, args=(process.stderr, tail), name="guidellm-output", daemon=True)
    reader.start()
    try:
        code = process.wait(timeout=most_seconds)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"guidellm did not end within {most_seconds:.0f} s", hint="is the endpoint stuck?") from error
    reader.join(timeout=1.0)  # a worker of its may hold the pipe open
    return code


def _read(pipe: IO[bytes], tail: deque[str]) -> None:
    while line := pipe.readline(65_536):
        text = line.decode(errors="replace").strip()
        if text:
            tail.append(text[:_KEPT_CHARACTERS])


def _told(tail: deque[str], endpoint: Endpoint) -> str:
    return _without_key(tail[-1] if tail else "it said nothing", endpoint)


def _without_key(text: str, endpoint: Endpoint) -> str:
    """guidellm writes its headers into what it says of a failure."""
    return text if endpoint.key is None else text.replace(endpoint.key, "<the key>")
