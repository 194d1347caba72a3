"""The plan's figures beside published measurements.

Every measured configuration is planned with everything pinned that its author says, on the machine that it ran on,
so what is compared is the estimate of that very configuration. An engine older than the oldest that is planned is
estimated in its current version; the comparison says so. A configuration that the plan refuses is a failure of it.

A *factor* is predicted over measured. A *distance* is that factor or its inverse, whichever is above 1, after what
the measurement's own rounding leaves open; its mean over rows is the geometric one, ``exp(mean |ln factor|)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from autolaunch import api
from selector.architecture import stored_weights
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.errors import AutolaunchError
from selector.facts import CheckpointFacts, ModelFacts
from selector.measurements import VERDICTS, Measurement, Metric, Result, Run
from selector.request import Objective, Pins

Kind = Literal["size", "weights", "kv_cache", "peak", "graphs", "eager", "prompt", "load", "verdict"]

#: The kinds in the order of the tables, with their titles. Engines without CUDA graphs are never told to be eager, and
#: stand with those that have them; prompts are prefill and the time to the first token.
KINDS: dict[Kind, str] = {
    "size": "Size of a checkpoint",
    "weights": "Weights on a device",
    "kv_cache": "KV cache",
    "peak": "Memory at its peak",
    "graphs": "Speed with graphs",
    "eager": "Speed, eager",
    "prompt": "Prompts",
    "load": "Time to load",
    "verdict": "What fits and what runs",
}
_KIND_OF: dict[Metric, Kind] = {
    "checkpoint_bytes": "size",
    "weights_bytes_per_device": "weights",
    "kv_cache_bytes_per_device": "kv_cache",
    "kv_cache_tokens": "kv_cache",
    "peak_bytes": "peak",
    "prefill_tokens_per_second": "prompt",
    "time_to_first_token_seconds": "prompt",
    "load_seconds": "load",
    "fits": "verdict",
    "runs": "verdict",
}


class Prediction(NamedTuple):
    """``value`` is in the measurement's unit, ``None`` where the plan gives none: ``refusal`` says why.

    ``version`` is the engine's version that was estimated, where it is not the one that was measured.
    """

    value: bool | float | None
    refusal: str | None = None
    version: str | None = None


class Comparison(NamedTuple):
    """``distance`` is 1 where they agree, infinite where the plan gives no figure or a wrong verdict."""

    measurement: Measurement
    kind: Kind
    devices: int
    prediction: Prediction
    distance: float

    @property
    def factor(self) -> float | None:
        """Predicted over measured, or ``None`` where there is no figure."""
        value = self.prediction.value
        return None if value is None or isinstance(value, bool) else value / self.measurement.result.value


class Group(NamedTuple):
    """The rows of a kind, of one source or of all (``source`` is ``None``).

    Means and ``worst`` leave out what was refused.
    """

    kind: Kind
    source: str | None
    rows: int
    refused: int
    mean: float | None
    mean_fitted: float | None
    mean_checked: float | None
    worst: Comparison


# --- predicting --------------------------------------------------------------------------------------


class Planner:
    """Plans measured configurations; each is planned once, whatever was measured on it."""

    def __init__(self, known: Catalog) -> None:
        self._known = known
        self._plans: dict[tuple[Run, int | None, int | None, int | None], tuple[LaunchPlan, str | None]] = {}

    def compare(self, measurement: Measurement) -> Comparison:
        """The estimate beside one measurement."""
        run, result = measurement.run, measurement.result
        try:
            prediction = self._size(run) if result.metric == "checkpoint_bytes" else self._planned(measurement)
        except AutolaunchError as error:
            prediction = Prediction(None, error.message)
        kind = _KIND_OF.get(result.metric, "eager" if run.eager else "graphs")
        return Comparison(measurement, kind, self._devices(run), prediction, distance(prediction.value, result))

    def plan(self, run: Run, machine: str, pins: Pins, result: Result, objective: Objective = "balanced") -> LaunchPlan:
        """A plan for the requests of a result."""
        return api.plan(
            run.model,
            hardware=machine,
            known=self._known,
            context_tokens=run.context_tokens,
            concurrency=result.concurrency,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
            pins=pins,
            keep_all=True,
            objective=objective,
        )

    def _devices(self, run: Run) -> int:
        if run.machine is None:
            return 0
        return len(api.hardware_report(run.machine, self._known).accelerators)

    def _size(self, run: Run) -> Prediction:
        model = self._known.model(run.model)
        checkpoint = _checkpoint(model, run)
        if checkpoint is None:
            return Prediction(None, f"the catalogue has no {run.repo}")
        stored = stored_weights(model.architecture, checkpoint)
        if not stored.exact:
            return Prediction(None, "no layout is described: the catalogue holds the published figure")
        return Prediction(stored.total / stored.scale)

    def _planned(self, measurement: Measurement) -> Prediction:
        _, run, result = measurement
        plan, version = self._plan_of(run, result)
        chosen = plan.chosen
        if result.metric in VERDICTS:
            refusal = None if chosen is not None else _refusal(plan, run, of_memory=result.metric == "fits")
            # Only a reason of the right kind answers: "does not fit" is no answer to "does not run".
            said = refusal is None or refusal.startswith("memory.") == (result.metric == "fits")
            return Prediction(refusal is None if said else None, refusal, version)
        if chosen is None:
            return Prediction(None, _refusal(plan, run, of_memory=True), version)
        value = _figure(chosen, result)
        return Prediction(value, None if value is not None else "the plan gives no such figure", version)

    def _plan_of(self, run: Run, result: Result) -> tuple[LaunchPlan, str | None]:
        """The plan, and the version that it is of where the one that was measured is too old to be planned."""
        key = (run, result.input_tokens, result.output_tokens, result.concurrency)
        if key not in self._plans:
            machine, pins, version = run.machine or "", pins_of(run), None
            plan = self.plan(run, machine, pins, result)
            if pins.engine is not None and any(each.code == "engine.version" for each in plan.rejected):
                plan = self.plan(run, machine, msgspec.structs.replace(pins, engine_version=None), result)
                version = self._known.engine(pins.engine).version if plan.chosen is None else plan.chosen.engine.version
            self._plans[key] = (plan, version)
        return self._plans[key]


def pins_of(run: Run) -> Pins:
    """Everything that a run's author says, fixed."""
    whole = run.tensor is not None
    return Pins(
        repo=run.repo,
        quantization=run.quantization,
        engine=run.engine,
        engine_version=run.engine_version,
        tensor_parallel=run.tensor,
        pipeline_parallel=run.pipeline or (1 if whole else None),
        data_parallel=1 if whole else None,
        expert_parallel=run.expert,
        kv_cache_dtype=run.kv_cache_dtype,
        memory_utilization=run.memory_utilization,
        max_sequences=run.max_sequences,
        speculative=None if run.engine is None else run.speculative,
        eager=None if run.engine is None else run.eager,
    )


def _checkpoint(model: ModelFacts, run: Run) -> CheckpointFacts | None:
    for each in model.checkpoints:
        if each.repo == run.repo and run.quantization in (None, each.quantization):
            return each
    return None


def _refusal(plan: LaunchPlan, run: Run, *, of_memory: bool) -> str:
    """Why a configuration was refused: the reason that was given to it and not to its pins.

    Where there are several (without an engine every one was tried), one of the kind that was asked about goes first.
    """
    mine = [each for each in plan.rejected if each.repo == run.repo and run.engine in (None, each.engine)]
    mine = [each for each in mine if not each.code.startswith("pin.")] or mine
    first = min(mine, key=lambda each: each.code.startswith("memory.") != of_memory, default=None)
    return "nothing was tried" if first is None else f"{first.code}: {first.message}"


def _figure(chosen: Candidate, result: Result) -> float | None:
    """What the plan says in place of a measured figure, in its unit."""
    device, speed = chosen.memory.per_device, chosen.speed
    tokens = (result.input_tokens or 0) + (result.output_tokens or 0)
    fixed = device.weights_bytes + device.activations_bytes + device.runtime_bytes
    figures: dict[Metric, float | None] = {
        "weights_bytes_per_device": device.weights_bytes,
        "kv_cache_bytes_per_device": device.kv_cache_bytes,
        "kv_cache_tokens": chosen.memory.kv_cache_tokens,
        # What is taken when a request ends; of the KV cache only what it filled (MLX takes no more than it uses).
        "peak_bytes": fixed + tokens * chosen.memory.kv_bytes_per_token,
        "decode_tokens_per_second": speed.decode_tokens_per_second,
        "output_tokens_per_second": speed.throughput_tokens_per_second,
        "prefill_tokens_per_second": speed.prefill_tokens_per_second,
        "time_to_first_token_seconds": speed.time_to_first_token_seconds,
        "load_seconds": speed.load_seconds,
    }
    return _token_seconds(chosen, result) if result.metric == "time_per_token_seconds" else figures.get(result.metric)


def _token_seconds(chosen: Candidate, result: Result) -> float | None:
    """Seconds between two tokens of one request, at the concurrency.

    At a throughput of T tokens/s with c requests under way, a request of n tokens takes n c / T seconds; without the
    time to its first token that is n - 1 intervals. (Little's law; what waits is not counted as under way.)
    """
    speed, count = chosen.speed, result.output_tokens or 0
    if result.concurrency == 1:
        return None if speed.decode_tokens_per_second is None else 1 / speed.decode_tokens_per_second
    if speed.throughput_tokens_per_second is None or speed.time_to_first_token_seconds is None or count < 2:
        return None
    under_way = min(result.concurrency or 1, speed.concurrency)
    whole_seconds = count * under_way / speed.throughput_tokens_per_second
    return max(0.0, whole_seconds - speed.time_to_first_token_seconds) / (count - 1) or None


def distance(predicted: bool | float | None, result: Result) -> float:
    """How far a prediction is from a measurement: 1 is equal, 2 is twice or half, infinite is none or a wrong verdict.

    The measurement's own rounding is taken for it: within ``plus_minus`` the distance is 1.
    """
    if predicted is None:
        return math.inf
    if isinstance(result.value, bool):
        return 1.0 if predicted is result.value else math.inf
    if abs(predicted - result.value) <= result.plus_minus:
        return 1.0
    if predicted <= 0:
        return math.inf
    nearest = result.value + math.copysign(result.plus_minus, predicted - result.value)
    return max(predicted / nearest, nearest / predicted)


# --- reckoning ---------------------------------------------------------------------------------------


def groups(comparisons: Iterable[Comparison]) -> tuple[Group, ...]:
    """The rows of every kind, all together and then by source."""
    rows = list(comparisons)
    found = []
    for kind in KINDS:
        of_kind = [each for each in rows if each.kind == kind]
        names = sorted({each.measurement.source.id for each in of_kind})
        for name in (None, *names) if of_kind else ():
            mine = [each for each in of_kind if name in (None, each.measurement.source.id)]
            known = [each for each in mine if math.isfinite(each.distance)]
            found.append(
                Group(
                    kind=kind,
                    source=name,
                    rows=len(mine),
                    refused=len(mine) - len(known),
                    mean=mean(known),
                    mean_fitted=mean(each for each in known if each.measurement.result.used == "fit"),
                    mean_checked=mean(each for each in known if each.measurement.result.used == "check"),
                    worst=max(known or mine, key=lambda each: each.distance),
                )
            )
    return tuple(found)


def mean(rows: Iterable[Comparison]) -> float | None:
    """``exp(mean |ln factor|)`` of rows with a figure, or ``None`` of none."""
    logarithms = [math.log(each.distance) for each in rows]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None
