"""A plan proven on this machine without its weights: the chosen engine with the flags and on the devices planned.

``miniature``  a checkpoint of the same architecture and quantization with fewer layers and experts, generated here.
``dummy``      the real shapes with weights that the engine makes up (``--load-format dummy``; vLLM and SGLang): real
               memory and real speed, no download.

Both end in a report: what was tried, the figures predicted beside those measured, or why it failed and what to do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import msgspec

from autolaunch import api, proof
from autolaunch.chat import AskResult
from autolaunch.comparison import Comparison
from autolaunch.launching import Catalogue, LaunchOptions, launch
from autolaunch.measured import comparisons, of_start
from autolaunch.proof import Endpoint, Step
from autolaunch.server import LaunchEvent, Server
from autolaunch.stand_in import MAKE_WEIGHTS, Cast, Mode, cast, differing
from engines.base import first_replica, parsers
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import EngineFacts
from selector.errors import AutolaunchError, ConfigurationError, EngineError, NoFeasiblePlan, UsageError
from selector.facts import ModelFacts
from selector.values import Value


class Failure(Value, frozen=True, kw_only=True):
    """Why it did not start. ``code`` is the error's, ``lines`` the engine's last ones."""

    code: str
    message: str
    hint: str | None
    lines: tuple[str, ...] = ()


class Rehearsal(Value, frozen=True, kw_only=True):
    """What a rehearsal came to. ``plan`` was to be proven, ``rehearsed`` is what ran.

    ``stands_in`` is whether a smaller model ran in the place of the planned one, ``differs`` names the options whose
    values are not the plan's then (the model's name and place aside), ``here`` is whether the plan is of this machine.
    """

    schema: Literal[1] = 1
    model: str
    mode: Mode
    ok: bool
    plan: Candidate
    rehearsed: Candidate
    stands_in: bool = False
    differs: tuple[str, ...] = ()
    here: bool = True
    steps: tuple[Step, ...]
    figures: tuple[Comparison, ...] = ()
    failure: Failure | None = None
    log_path: str | None = None

    def to_json(self) -> str:
        """Indented JSON, ending without a newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def rehearse(
    plan: LaunchPlan,
    *,
    catalog: Catalog,
    options: LaunchOptions,
    mode: Mode = "miniature",
    candidate: Candidate | None = None,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Rehearsal:
    """Prove ``candidate`` (the plan's chosen one).

    ``uninterrupted`` holds off what would break into the stopping of the engine (signals of a program).

    Raises:
        NoFeasiblePlan: there is nothing to rehearse.
        UsageError: this engine cannot make weights up, or there is no miniature of this format.
        EngineInstallError, DownloadError, PortTaken: what failed before the engine was started.
    """
    chosen = candidate or plan.chosen
    if chosen is None:
        raise NoFeasiblePlan(
            f"no plan for {plan.model} fits this machine: there is nothing to rehearse",
            hint="autolaunch glm-tiny --rehearse proves the engines on any machine",
        )
    _refuse_absent_devices(plan, chosen)
    try:
        one = cast(plan, chosen, catalog, mode=mode, home=options.home)
    except ConfigurationError as error:  # a layout that is not known for certain is not guessed
        raise UsageError(error.message, hint="pin another checkpoint with --format or --quantization") from error
    served = msgspec.structs.replace(
        options,
        served_name=options.served_name or plan.model,
        model_path=one.folder,
        dummy_weights=mode == "dummy",
        own_key=True,
    )
    try:
        return _play(plan, chosen, one, catalog, served, mode, on_event, uninterrupted)
    finally:
        if one.folder is not None:
            shutil.rmtree(one.folder.parent, ignore_errors=True)
        if one.model.id != plan.model:  # a few hundred megabytes, made again in seconds
            shutil.rmtree(
                options.home / "models" / one.candidate.checkpoint.repo.rpartition("/")[2], ignore_errors=True
            )


def _refuse_absent_devices(plan: LaunchPlan, chosen: Candidate) -> None:
    """A plan for another machine can be rehearsed where its devices are: the same number of the same kind."""
    wanted = first_replica(plan.hardware, chosen)
    if not wanted or plan.hardware == (here := api.probe()):
        return
    kind, name = wanted[0].vendor, wanted[0].name
    found = [device.name for device in here.accelerators if device.vendor == kind]
    if found.count(name) < len(wanted):
        raise UsageError(
            f"the plan has {len(wanted)} {kind} devices ({name}), and this machine has {found.count(name)} of them",
            hint="rehearse on the machine that the plan is for",
        )


def _is_here(plan: LaunchPlan) -> bool:
    """Whether a plan is of this machine, and not of one that was named or recorded elsewhere."""
    host, here = plan.hardware.host, api.probe().host
    return (host.cpu.brand, host.memory_total_bytes) == (here.cpu.brand, here.memory_total_bytes)


class _Catalogue:
    """The catalogue with the model that stands in."""

    def __init__(self, catalog: Catalogue, model: ModelFacts) -> None:
        self._catalog, self._model = catalog, model

    def engine(self, name: str) -> EngineFacts:
        return self._catalog.engine(name)

    def model(self, model_id: str) -> ModelFacts:
        return self._model if model_id == self._model.id else self._catalog.model(model_id)


def _play(
    plan: LaunchPlan,
    chosen: Candidate,
    one: Cast,
    catalog: Catalog,
    options: LaunchOptions,
    mode: Mode,
    on_event: Callable[[LaunchEvent], None],
    uninterrupted: Callable[[], AbstractContextManager[None]],
) -> Rehearsal:
    steps: list[Step] = []
    figures: tuple[Comparison, ...] = ()
    failure: Failure | None = None
    began = time.monotonic()
    server = launch(
        one.plan,
        catalog=_Catalogue(catalog, one.model),
        options=options,
        on_event=on_event,
        candidate=one.candidate,
    )
    try:
        try:
            started = time.monotonic()
            server.wait_ready()
        except EngineError as error:
            failure = _failure(error)
            steps.append(
                Step(name="started", ok=False, message=error.message, seconds=round(time.monotonic() - began, 3))
            )
        else:
            ready_seconds = time.monotonic() - started
            steps.append(Step(name="started", ok=True, message="a token came back", seconds=ready_seconds))
            endpoint = Endpoint(
                base_url=server.base_url,
                model=server.served_name,
                api_key=server.api_key,
                images="image" in one.model.modalities,
                speaks=mode == "miniature",
            )
            step, answer = proof.streamed(endpoint)
            parsed = parsers(one.model, one.candidate.engine.name) is not None or _parses_by_itself(one.candidate)
            steps += [step, proof.called(endpoint, parsed=parsed), proof.seen(endpoint)]
            figures = _figures(server, one.candidate, answer, real=mode == "dummy")
            if server.poll() is not None:
                failure = _failure(EngineError(f"{server.engine.name} ended while it was asked"), server.tail())
    finally:
        with uninterrupted():
            server.stop()
    return Rehearsal(
        model=plan.model,
        mode=mode,
        ok=failure is None and all(step.ok is not False for step in steps),
        plan=chosen,
        rehearsed=one.candidate,
        stands_in=one.model.id != plan.model,
        differs=differing(chosen, one.candidate),
        here=_is_here(plan),
        steps=tuple(msgspec.structs.replace(step, seconds=round(step.seconds, 3)) for step in steps),
        figures=figures,
        failure=failure,
        log_path=str(server.log_path),
    )


def _parses_by_itself(candidate: Candidate) -> bool:
    """vLLM and SGLang are told which parser to use; the others find it by the template or the architecture."""
    return candidate.engine.name not in MAKE_WEIGHTS


def _failure(error: AutolaunchError, lines: tuple[str, ...] = ()) -> Failure:
    told = tuple(getattr(error, "__notes__", ())) or lines
    return Failure(code=error.code, message=error.message, hint=error.hint, lines=told[-20:])


def _figures(server: Server, candidate: Candidate, answer: AskResult | None, *, real: bool) -> tuple[Comparison, ...]:
    """What the plan said beside what the engine reports, what its processes hold, and how fast the stream came.

    Speed is told of ``real`` shapes alone: a miniature's is that of the server around it.
    """
    seen = of_start(server.figures, resident_bytes=server.memory_bytes())
    if real and answer is not None:
        seen = msgspec.structs.replace(seen, decode_tokens_per_second=answer.decode_tokens_per_second)
    return comparisons(candidate, seen)
