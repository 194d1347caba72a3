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
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import msgspec

from autolaunch import api, proof
from autolaunch.chat import AskResult
from autolaunch.launch import Catalogue, LaunchOptions, launch
from autolaunch.proof import Endpoint, Step
from autolaunch.server import LaunchEvent, Server
from engines.base import first_replica, parsers
from engines.miniature.rehearsal import cut_down, dummy_folder
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import EngineFacts
from selector.errors import AutolaunchError, ConfigurationError, EngineError, NoFeasiblePlan, UsageError
from selector.facts import EngineName, ModelFacts
from selector.plan import launch_plan
from selector.request import Pins, PlanRequest
from selector.values import Value

Mode = Literal["miniature", "dummy"]

#: Engines that make weights up by themselves.
MAKE_WEIGHTS: tuple[EngineName, ...] = ("vllm", "sglang")


_KEPT_SECONDS = 86_400.0
_NAMES = frozenset({"--model", "--model-path", "--hf-repo", "--served-model-name", "--alias"})


class Comparison(Value, frozen=True, kw_only=True):
    """A figure that was predicted beside the one that was seen. ``unit`` is ``bytes``, ``tokens`` or ``tokens/s``."""

    name: str
    unit: Literal["bytes", "tokens", "tokens/s"]
    predicted: float
    measured: float


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


class Cast(Value, frozen=True, kw_only=True):
    """What runs in a plan's place: a model, and a plan of it on the same devices with the same flags."""

    model: ModelFacts
    plan: LaunchPlan
    candidate: Candidate
    folder: Path | None = None


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


def cast(plan: LaunchPlan, chosen: Candidate, catalog: Catalog, *, mode: Mode, home: Path) -> Cast:
    """What is to run in the place of ``chosen``.

    Raises:
        UsageError: nothing can.
        NoFeasiblePlan: not even that fits on these devices.
    """
    model = catalog.model(plan.model)
    if mode == "dummy" and chosen.engine.name not in MAKE_WEIGHTS:
        raise UsageError(
            f"{chosen.engine.name} makes no weights up: only {' and '.join(MAKE_WEIGHTS)} do",
            hint="--rehearse=miniature proves this plan with a small checkpoint",
        )
    if mode == "dummy":
        one = _single(plan, chosen, model, catalog)
        place = home / "rehearsals"
        _sweep(place)
        folder = dummy_folder(model, one.candidate, place / f"{time.time_ns():x}" / plan.model)
        return msgspec.structs.replace(one, folder=folder)
    if model.generated:
        return _single(plan, chosen, model, catalog)
    return _replanned(plan, chosen, cut_down(model, chosen), catalog)


def _sweep(place: Path) -> None:
    """Takes away what rehearsals left that were killed; none of them goes on for a day."""
    for folder in place.iterdir() if place.is_dir() else ():
        with suppress(OSError):  # gone meanwhile
            if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _single(plan: LaunchPlan, chosen: Candidate, model: ModelFacts, catalog: Catalog) -> Cast:
    """The plan itself, of its first replica."""
    if chosen.parallel.data == 1:
        return Cast(model=model, plan=plan, candidate=chosen)
    return _replanned(plan, chosen, model, catalog)


def _replanned(plan: LaunchPlan, chosen: Candidate, model: ModelFacts, catalog: Catalog) -> Cast:
    """A plan for another model on the first replica's devices, with everything pinned as ``chosen`` has it."""
    kind = "cpu" if not chosen.parallel.devices else "device"
    pins = _pins(chosen, catalog.engine(chosen.engine.name).on(kind))
    request = PlanRequest(
        model=model.id,
        objective=plan.request.objective,
        context_tokens=min(chosen.limits.context_tokens, model.context_tokens),
        concurrency=chosen.limits.max_sequences,
        pins=pins,
    )
    # Planned as any model: what is generated is otherwise put on one device alone.
    planned = msgspec.structs.replace(model, generated=False)
    decided = launch_plan(planned, plan.hardware, request, catalog, advise=lambda _: ())
    if decided.chosen is None:
        reason = decided.rejected[0].message if decided.rejected else "nothing is known of its devices"
        raise NoFeasiblePlan(f"the rehearsal of {plan.model} does not fit: {reason}")
    decided = api.with_commands(decided, model)
    assert decided.chosen is not None  # noqa: S101 - seen above; tells the type checker
    ran = api.with_command(_laid_out(chosen, decided.chosen, model), model, plan.hardware)
    return Cast(model=model, plan=decided, candidate=ran)


def _laid_out(chosen: Candidate, ran: Candidate, model: ModelFacts) -> Candidate:
    """``ran`` with what of the plan's layout no pin carries: experts in main memory, and the cache's size."""
    arch, limits = model.architecture, chosen.limits
    sparse = arch.num_hidden_layers - arch.first_k_dense_replace
    offloaded = limits.cpu_expert_layers > 0 or limits.gpu_layers is not None
    if offloaded:
        ran = msgspec.structs.replace(
            ran,
            limits=msgspec.structs.replace(
                ran.limits,
                cpu_expert_layers=min(limits.cpu_expert_layers, sparse),
                gpu_layers=None if limits.gpu_layers is None else min(limits.gpu_layers, arch.num_hidden_layers),
            ),
        )
    if not offloaded and ran.memory.kv_cache_tokens <= chosen.memory.kv_cache_tokens:
        return ran
    device = ran.memory.per_device
    share = min(1.0, chosen.memory.kv_cache_tokens / max(1, ran.memory.kv_cache_tokens))
    memory = msgspec.structs.replace(
        ran.memory,
        kv_cache_tokens=min(chosen.memory.kv_cache_tokens, ran.memory.kv_cache_tokens),
        per_device=msgspec.structs.replace(device, kv_cache_bytes=int(device.kv_cache_bytes * share)),
    )
    return msgspec.structs.replace(ran, memory=memory)


def _pins(chosen: Candidate, engine: EngineFacts) -> Pins:
    parallel, limits, can = chosen.parallel, chosen.limits, engine.choices
    return Pins(
        engine=chosen.engine.name,
        engine_version=chosen.engine.version,
        gpus=parallel.devices[: parallel.ranks] or None,
        tensor_parallel=parallel.tensor,
        pipeline_parallel=parallel.pipeline,
        data_parallel=1,
        expert_parallel=parallel.expert if "expert" in engine.parallel else None,
        kv_cache_dtype=limits.kv_cache_dtype if "kv_cache_dtype" in can else None,
        memory_utilization=limits.memory_utilization if "memory_utilization" in can else None,
        max_sequences=limits.max_sequences if "max_sequences" in can else None,
        speculative=limits.speculative if engine.speculative else None,
        eager=limits.eager if "eager" in can else None,
    )


def differing(planned: Candidate, ran: Candidate) -> tuple[str, ...]:
    """Options of two commands that have other values, or that one of them lacks; names and places aside."""
    mine, theirs = _options(planned), _options(ran)
    names = sorted(set(mine) | set(theirs))
    return tuple(name for name in names if name not in _NAMES and mine.get(name) != theirs.get(name))


def _options(candidate: Candidate) -> dict[str, tuple[str, ...]]:
    argv = () if candidate.command is None else candidate.command.argv
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for token in argv:
        if token.startswith("--"):
            name, _, value = token.partition("=")
            found[name] = (value,) if value else ()
        elif name:
            found[name] = (*found[name], token)
    return found


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
    memory, seen = candidate.memory, server.figures
    found: list[Comparison] = []
    if seen.weights_bytes is not None:
        found.append(
            Comparison(
                name="weights a device",
                unit="bytes",
                predicted=memory.per_device.weights_bytes,
                measured=seen.weights_bytes,
            )
        )
    if seen.kv_cache_tokens is not None:
        found.append(
            Comparison(name="KV cache", unit="tokens", predicted=memory.kv_cache_tokens, measured=seen.kv_cache_tokens)
        )
    resident = server.memory_bytes()
    if resident is not None:
        # An engine that tells the size of its cache has taken it all; the others take it as it is needed.
        device = memory.per_device
        fixed = device.weights_bytes + device.activations_bytes + device.graphs_bytes + device.runtime_bytes
        taken = device.kv_cache_bytes if seen.kv_cache_tokens is not None else 0
        name = "in use on a device" if candidate.parallel.devices else "main memory in use"
        found.append(Comparison(name=name, unit="bytes", predicted=fixed + taken, measured=resident))
    speed = candidate.speed.decode_tokens_per_second
    if real and speed is not None and answer is not None and answer.decode_tokens_per_second is not None:
        found.append(
            Comparison(name="one request", unit="tokens/s", predicted=speed, measured=answer.decode_tokens_per_second)
        )
    return tuple(found)
