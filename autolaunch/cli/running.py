"""One launch in the foreground, as the command line shows it: progress, the address or the answer, the end."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from autolaunch.cli import signals
from autolaunch.cli.errors import show_error
from autolaunch.cli.terminal import Terminal, Unwritable, clean, count, duration, rate, wrapped, write
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.errors import AutolaunchError, UsageError
from selector.facts import ModelFacts
from selector.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from autolaunch.chat import AskResult
    from autolaunch.cli.asked import Asked
    from autolaunch.daemon.deployment import Deployment
    from autolaunch.daemon.happenings import Tell
    from autolaunch.foreground import Foreground
    from autolaunch.server import LaunchEvent, Server

#: The longest answer to --ask. A miniature's random weights never end a sentence by themselves.
ANSWER_TOKENS, MINIATURE_ANSWER_TOKENS = 4096, 48


#: What the supervisor says once a model has answered that is worth a line.
_SAID_WHILE_SERVING = frozenset(
    {"engine.ready", "engine.failed", "engine.degraded", "engine.recovered", "deployment.waits", "memory"}
)


class How(Value, frozen=True, kw_only=True):
    """The options that only a launch has. ``host``, ``port`` and ``api_key_file`` are the gateway's.

    ``replayed`` is ``lock`` where it was there already, and is not written.
    """

    model_path: Path | None = None
    engine_path: Path | None = None
    offline: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    ask: str | None = None
    images: tuple[Path, ...] = ()
    rehearse: Literal["miniature", "dummy"] | None = None
    dry_run: bool = False
    lock: Path | None = None
    replan: bool = False
    replayed: Path | None = None
    engine_options: tuple[str, ...] = ()


class LaunchedDocument(Value, frozen=True, kw_only=True):
    """What ``--json`` prints when the model answers; the process goes on serving."""

    schema: int = 1
    model: str
    base_url: str
    served_name: str
    pid: int
    log_path: str
    ready_seconds: float
    plan: Candidate


class AnswerDocument(Value, frozen=True, kw_only=True):
    """What ``--ask --json`` prints. Times in seconds; unknown is ``null``."""

    schema: int = 1
    model: str
    served_name: str
    text: str
    reasoning: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ready_seconds: float
    time_to_first_token_seconds: float | None
    decode_tokens_per_second: float | None
    plan: Candidate


def run_launch(decided: LaunchPlan, chosen: Candidate, known: Catalog, asked: Asked, how: How) -> None:
    """Prepare, start, prove, then serve or ask; whatever happens, nothing is left running.

    Raises:
        AutolaunchError: what failed.
        signals.Stopped: somebody asked us to stop, and everything is stopped.
    """
    from autolaunch.cli.progress import Progress

    terminal = Terminal.of(sys.stderr)
    images = _images(how.images, known.model(decided.model))
    announce(decided, chosen, terminal)
    began = time.monotonic()
    shown = {"ladder.step"}
    with Progress(sys.stderr, terminal) as progress:
        kept_up = _kept_up(decided, known, asked, how, progress.event, lambda tell: _tell(tell, shown, terminal))
        try:
            kept_up.start()
            server = kept_up.wait_ready()
            ready_seconds = time.monotonic() - began
            progress.close()
            shown |= _SAID_WHILE_SERVING
            chosen = kept_up.state.candidate or chosen
            if how.lock is not None and how.replayed is None:
                from autolaunch.cli.replay import keep_lock

                keep_lock(kept_up, decided, known, how.lock)
            if how.ask is not None:
                _ask(server, decided, chosen, known, how.ask, images, ready_seconds, as_json=asked.as_json)
            else:
                keyed = how.api_key_file is not None
                _serve(kept_up, server, decided, chosen, ready_seconds, as_json=asked.as_json, keyed=keyed)
        except signals.Stopped:
            with suppress(BrokenPipeError, Unwritable):  # after SIGHUP nobody reads it
                write(sys.stderr, f"stopping {chosen.engine.name}", terminal)
            raise
        finally:
            with signals.deferred():
                kept_up.stop()


def _kept_up(
    decided: LaunchPlan,
    known: Catalog,
    asked: Asked,
    how: How,
    on_event: Callable[[LaunchEvent], None],
    on_tell: Callable[[Tell], None],
) -> Foreground:
    """The deployment's supervisors, not started yet; the address is held from here on, unless only we ask."""
    from autolaunch import api
    from autolaunch.daemon.gateway.options import GatewayOptions
    from autolaunch.keeping import kept_up
    from autolaunch.reach import Reach

    reach = None
    if how.ask is None:
        gateway = GatewayOptions(host=how.host, port=how.port, keys_file=how.api_key_file)
        reach = Reach(gateway=gateway, home=api.home())
    return kept_up(
        decided,
        _deployment(decided, asked, how),
        known=known,
        home=api.home(),
        reach=reach,
        on_event=lambda _, event: on_event(event),
        on_tell=on_tell,
    )


def _deployment(decided: LaunchPlan, asked: Asked, how: How) -> Deployment:
    """What was asked for, as the daemon would be told it in its configuration."""
    from autolaunch.daemon.deployment import Deployment

    return Deployment(
        name=decided.model,
        model=asked.model,
        objective=asked.objective,
        context_tokens=asked.context_tokens,
        concurrency=asked.concurrency,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        workload=asked.workload,
        pinned=asked.pins(decided.hardware),
        model_path=how.model_path,
        engine_path=how.engine_path,
        engine_options=how.engine_options,
        offline=how.offline,
        wait_for_devices=False,
        lock=how.replayed,
        nodes=asked.nodes,
    )


def _tell(tell: Tell, shown: set[str], terminal: Terminal) -> None:
    """What the supervisor says; the first start, and why it gives up, the command line tells by itself."""
    if tell.name not in shown:
        return
    message = "it answers again" if tell.name == "engine.ready" else tell.message
    with suppress(BrokenPipeError, Unwritable):  # nobody reads it; it goes on being kept up
        write(sys.stderr, click.style(wrapped(message, terminal, first="  "), fg="yellow"), terminal)


def _images(paths: tuple[Path, ...], model: ModelFacts) -> tuple[str, ...]:
    """The images as a request carries them: read before anything is started.

    Raises:
        UsageError: the model takes none, or a file is no image.
    """
    if not paths:
        return ()
    from autolaunch.chat import IMAGE_BYTES, image_url

    if "image" not in model.modalities:
        raise UsageError(f"{model.title} takes no images", hint="glm-4.5v does")
    found = []
    for path in paths:
        with path.open("rb") as file:
            data = file.read(IMAGE_BYTES + 1)
        try:
            found.append(image_url(data))
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
    return tuple(found)


def announce(decided: LaunchPlan, chosen: Candidate, terminal: Terminal) -> None:
    from autolaunch.cli.machine_line import troubles
    from autolaunch.cli.render_plan import layout, render_machine

    write(sys.stderr, render_machine(decided, terminal), terminal)
    for each in troubles(decided.hardware):
        write(sys.stderr, click.style(wrapped(each, terminal, first="  "), fg="yellow"), terminal)
    checkpoint, engine = chosen.checkpoint, chosen.engine
    told = (
        f"  {checkpoint.repo} ({checkpoint.quantization}) with {engine.name} {engine.version}, "
        f"{layout(chosen.parallel, engine.name, chosen.limits)}, context {count(chosen.limits.context_tokens)}"
    )
    write(sys.stderr, clean(told), terminal)
    for note in chosen.notes:
        if note.severity != "info" or note.code.startswith("learned."):
            write(sys.stderr, click.style(clean(f"  {note.severity}: {note.message}"), fg="yellow"), terminal)


def _serve(
    kept_up: Foreground,
    server: Server,
    decided: LaunchPlan,
    chosen: Candidate,
    ready_seconds: float,
    *,
    as_json: bool,
    keyed: bool,
) -> None:
    """Say where it is, then wait while it is kept up.

    Raises:
        AutolaunchError: it was given up on.
        click.exceptions.Exit: with ``as_json``, whatever ended it: one JSON document is all that stdout gets.
    """
    if as_json:
        document = LaunchedDocument(
            model=decided.model,
            base_url=kept_up.base_url,
            served_name=server.served_name,
            pid=server.pid,
            log_path=str(server.log_path),
            ready_seconds=round(ready_seconds, 3),
            plan=chosen,
        )
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, _address(kept_up.base_url, server.served_name, ready_seconds, keyed=keyed), terminal)
        write(sys.stderr, "Ctrl-C stops it.", Terminal.of(sys.stderr))
    try:
        kept_up.wait_ended()
        write(sys.stderr, "stopped, as it was asked to", Terminal.of(sys.stderr))
    except signals.Stopped as stopped:
        if not as_json:
            raise
        raise click.exceptions.Exit(stopped.exit_code) from stopped
    except AutolaunchError as error:
        if not as_json:
            raise
        show_error(error.code, error.message, error.hint, error.exit_code, as_json=False)
        raise click.exceptions.Exit(error.exit_code) from error


def _address(base_url: str, name: str, ready_seconds: float, *, keyed: bool) -> str:
    key = "    -H 'Authorization: Bearer YOUR-KEY' \\\n" if keyed else ""
    return (
        f"{click.style(name, bold=True)} answers at {click.style(base_url, fg='green', bold=True)}"
        f" after {duration(ready_seconds)}\n\n"
        f"  curl {base_url}/chat/completions \\\n"
        f"    -H 'Content-Type: application/json' \\\n"
        f"{key}"
        f'    -d \'{{"model": "{name}",\n'
        f'         "messages": [{{"role": "user", "content": "hello"}}]}}\'\n'
    )


def _ask(
    server: Server,
    decided: LaunchPlan,
    chosen: Candidate,
    known: Catalog,
    text: str,
    images: tuple[str, ...],
    ready_seconds: float,
    *,
    as_json: bool,
) -> None:
    from autolaunch.chat import ask

    terminal = Terminal.of(sys.stdout)

    thought = False

    def think(piece: str) -> None:
        nonlocal thought
        thought = True
        write(sys.stdout, click.style(clean(piece), dim=True), terminal, newline=False)

    def stream(piece: str) -> None:
        nonlocal thought
        if thought:  # the answer begins below what was thought
            write(sys.stdout, "\n", terminal)
            thought = False
        write(sys.stdout, clean(piece), terminal, newline=False)

    generated = known.model(decided.model).generated
    longest = MINIATURE_ANSWER_TOKENS if generated else ANSWER_TOKENS
    result = ask(
        server.base_url,
        server.served_name,
        text,
        api_key=server.api_key,
        images=images,
        max_tokens=min(longest, max(1, chosen.limits.context_tokens // 2)),
        on_text=(lambda _: None) if as_json else stream,
        on_reasoning=(lambda _: None) if as_json else think,
    )
    if as_json:
        document = AnswerDocument(
            model=decided.model,
            served_name=server.served_name,
            text=result.text,
            reasoning=result.reasoning,
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens,
            ready_seconds=round(ready_seconds, 3),
            time_to_first_token_seconds=result.time_to_first_token_seconds,
            decode_tokens_per_second=result.decode_tokens_per_second,
            plan=chosen,
        )
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    write(sys.stdout, "", terminal)
    write(sys.stderr, timings(result, ready_seconds), Terminal.of(sys.stderr))
    if generated:
        write(sys.stderr, "A miniature's weights are random: its words mean nothing; that they come proves the stack.")


def timings(result: AskResult, ready_seconds: float) -> str:
    """``ready after 4.1 s; first token after 60 ms; 112 tokens/s; 12 prompt and 48 answer tokens``."""
    parts = [f"ready after {duration(ready_seconds)}"]
    if result.time_to_first_token_seconds is not None:
        parts.append(f"first token after {duration(result.time_to_first_token_seconds)}")
    if result.decode_tokens_per_second is not None:
        parts.append(f"{rate(result.decode_tokens_per_second)} tokens/s")
    if result.prompt_tokens is not None and result.completion_tokens is not None:
        parts.append(f"{count(result.prompt_tokens)} prompt and {count(result.completion_tokens)} answer tokens")
    if result.finish_reason == "length":
        parts.append("the answer was cut there")
    return "; ".join(parts)
