"""What does not depend on a machine's memory, worked out once: which checkpoints an engine runs on a kind of device.

A plan asks for the same answers for every layout, and a thousand hosts ask for those of a few kinds of device, so
they are kept by model, engine, kind of device and pins. All of it is a function of its arguments.
"""

from __future__ import annotations

from functools import lru_cache

from selector import legality
from selector.architecture import StoredWeights, stored_weights
from selector.contract import (
    Candidate,
    Checkpoint,
    EngineChoice,
    Limits,
    Memory,
    Note,
    Parallel,
    Rejection,
    ScoreTerms,
    Speed,
)
from selector.devices import Group, Unusable
from selector.engine_facts import EngineFacts, Loads, Package
from selector.facts import CheckpointFacts, Hub, ModelFacts
from selector.legality import Refusal, Verdict
from selector.request import Pins
from selector.weights import rank_stages

#: Checkpoints below this quality are shown as refused unless the user pins them: accuracy is never lowered
#: silently. Three bits a weight are the lowest that is offered unasked.
LOWEST_QUALITY_UNASKED = 0.9
#: Of a checkpoint's files, what is loaded at least (an MTP layer may stay on the disk).
LEAST_SHARE_LOADED = 0.9
#: The fullest rank holds less than so many times the mean of all, a vision tower that is whole on each apart: stages
#: differ by a layer, KV heads are repeated, routers whole.
FULLEST_TO_MEAN = 2
#: Below this, the chosen plan says what is lost.
QUALITY_WORTH_A_NOTE = 0.985


_UNRATED = ScoreTerms(quality=0.0, speed=0.0, context=0.0, headroom=0.0, download=0.0)


class _Specimen:
    """A key for a kind of device: everything that legality may ask of a group, and no free memory."""

    __slots__ = ("group", "key")

    def __init__(self, group: Group) -> None:
        device = group.devices[0]
        facts = None if device.facts is None else (device.facts.id, device.facts.architecture)
        # One device stands for all: the cache would else keep every device of a cluster.
        self.group = group._replace(devices=group.devices[:1], per_node=1, nodes=group.nodes[:1], link="none")
        self.key = (group.kind, group.name, device.capability, device.sliced, device.total_bytes, facts)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Specimen) and self.key == other.key


class Ready:
    """A checkpoint that an engine loads on a kind of device, and what is legal of its layouts."""

    def __init__(
        self,
        model: ModelFacts,
        facts: CheckpointFacts,
        engine: EngineFacts,
        choice: EngineChoice,
        loads: Loads,
        hub: tuple[str, Hub],
        pins: Pins,
    ) -> None:
        self.model, self.facts, self.engine, self.choice, self.loads = model, facts, engine, choice, loads
        self.weights: StoredWeights = stored_weights(model.architecture, facts)
        self.has_mtp = bool(self.weights.mtp_layer)
        self.checkpoint = Checkpoint(
            repo=hub[0],
            hub=hub[1],
            revision=pins.revision,
            format=facts.format,
            quantization=facts.quantization,
            download_bytes=facts.download_bytes,
            file_prefix=facts.file_prefix,
        )
        self.notes = _quality_note(facts)
        self._eager = bool(pins.eager)
        self._shares: dict[tuple[int, int, bool], int] = {}
        self._verdicts: dict[tuple[int, int, bool, bool, int, int, str, str | None], Refusal | Verdict] = {}

    def candidate(
        self, parallel: Parallel, limits: Limits, memory: Memory, speed: Speed, notes: tuple[Note, ...]
    ) -> Candidate:
        """A layout that fits, not rated yet; what is said of the checkpoint comes before ``notes``."""
        return Candidate(
            rank=0,
            score=0.0,
            score_terms=_UNRATED,
            checkpoint=self.checkpoint,
            engine=self.choice,
            parallel=parallel,
            limits=limits,
            memory=memory,
            speed=speed,
            notes=(*self.notes, *notes),
        )

    def share_bytes(self, tensor: int, pipeline: int, *, expert: bool = False, on_host: bool = False) -> int:
        """The checkpoint's bytes on the fullest rank of a layout, without speculative decoding."""
        key = (tensor, pipeline, expert)
        found = self._shares.get(key)
        if found is None:
            arch, rule = self.model.architecture, self.engine.memory
            parallel = Parallel(tensor=tensor, pipeline=pipeline, expert=expert)
            whole_vision = legality.vision_heads_indivisible(arch, parallel)
            mtp = self.has_mtp and rule.loads_mtp
            stages = rank_stages(
                arch, self.weights, parallel, rule, mtp=mtp, whole_vision=whole_vision, on_host=on_host
            )
            found = self._shares[key] = max(stage.weight_bytes for stage in stages)
        return found

    def heavier_than(
        self, free_bytes: int, tensor: int, pipeline: int, *, expert: bool = False, on_host: bool = False
    ) -> bool:
        """Whether :meth:`share_bytes` are more than is free; worked out only where the ranks' mean leaves doubt."""
        mean = self.weights.total / (tensor * pipeline)
        if LEAST_SHARE_LOADED * mean > free_bytes:
            return True
        if FULLEST_TO_MEAN * mean + self.weights.vision < free_bytes:
            return False
        return self.share_bytes(tensor, pipeline, expert=expert, on_host=on_host) > free_bytes

    def verdict(self, group: Group, parallel: Parallel, *, speculative: bool, driver: str | None) -> Refusal | Verdict:
        """The engine's known faults for a layout. Replicas are independent: their number does not matter."""
        key = (
            parallel.tensor,
            parallel.pipeline,
            parallel.expert,
            speculative,
            group.per_node,
            len(group.nodes),
            group.link,
            driver,
        )
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = legality.rules(
                self.engine,
                version=self.choice.version,
                model_id=self.model.id,
                checkpoint=self.facts,
                arch=self.model.architecture,
                group=group,
                parallel=parallel,
                speculative=speculative,
                eager=self._eager,
                driver=driver,
            )
        return found


def ready(model: ModelFacts, engine: EngineFacts, group: Group, pins: Pins) -> tuple[Ready | Rejection, ...]:
    """For every checkpoint of the model, in order: how the engine would load it on this kind of device, or why not."""
    return _ready(model, engine.on(group.kind), _Specimen(group), pins)


def forget() -> None:
    """Drop what was worked out."""
    _ready.cache_clear()


@lru_cache(maxsize=1024)
def _ready(model: ModelFacts, engine: EngineFacts, specimen: _Specimen, pins: Pins) -> tuple[Ready | Rejection, ...]:
    found: list[Ready | Rejection] = []
    for checkpoint in model.checkpoints:
        choice = _choice(engine, model, checkpoint, specimen.group, pins)
        hub = repository(checkpoint, pins)
        if isinstance(choice, Refusal):
            found.append(rejection(hub[0], checkpoint, engine, None, choice))
        else:
            found.append(Ready(model, checkpoint, engine, *choice, hub, pins))
    return tuple(found)


def _choice(
    engine: EngineFacts, model: ModelFacts, checkpoint: CheckpointFacts, group: Group, pins: Pins
) -> tuple[EngineChoice, Loads] | Refusal:
    """The engine in the version and environment that would load this checkpoint here, or why it would not."""
    package = _package(engine, model, group)
    version = pins.engine_version or package.version or engine.version
    loads = legality.loader(engine, version, checkpoint, model.architecture, group)
    if isinstance(loads, Refusal):
        return loads
    refusal = (
        legality.too_old(engine, package, version)
        or legality.unkept_pin(engine, pins)
        or _below_floor(checkpoint, pins)
    )
    return refusal or (EngineChoice(name=engine.name, version=version, package=package.name), loads)


def _package(engine: EngineFacts, model: ModelFacts, group: Group) -> Package:
    """The environment that serves this architecture on these devices; the first where none is known for them."""
    fitting = [
        package
        for package in engine.packages
        if model.architecture.model_type in package.architectures and group.kind in package.devices
    ]
    return (fitting or engine.packages)[0]


def repository(checkpoint: CheckpointFacts, pins: Pins) -> tuple[str, Hub]:
    """The checkpoint's id, and the hub that it is taken from."""
    if pins.hub == "modelscope" and checkpoint.modelscope is not None:
        return checkpoint.modelscope, "modelscope"
    return checkpoint.repo, "huggingface"


def names(checkpoint: CheckpointFacts) -> tuple[str, ...]:
    """The checkpoint's ids on the hubs, in lower case."""
    return tuple(name.lower() for name in (checkpoint.repo, checkpoint.modelscope) if name is not None)


def unwanted(checkpoint: CheckpointFacts, pins: Pins) -> Refusal | None:
    """Whether a pin leaves this checkpoint out."""
    if pins.hub == "modelscope" and checkpoint.modelscope is None:
        return Refusal("pin.hub", "this checkpoint is not known to be on ModelScope", {})
    if pins.repo is not None and pins.repo.lower() not in names(checkpoint):
        return Refusal("pin.repo", f"{pins.repo} was asked for", {})
    if pins.format is not None and pins.format != checkpoint.format:
        return Refusal("pin.format", f"format {pins.format} was asked for", {})
    if pins.quantization is not None and pins.quantization.lower() != checkpoint.quantization.lower():
        return Refusal("pin.quantization", f"quantization {pins.quantization} was asked for", {})
    return None


def beyond_model(model: ModelFacts, wanted_tokens: int) -> Refusal | None:
    """That a context is longer than the model takes."""
    if wanted_tokens <= model.context_tokens:
        return None
    return Refusal(
        "context.beyond_model",
        f"{model.title} takes {model.context_tokens:,} tokens at most; {wanted_tokens:,} were asked for",
        {"needed_tokens": wanted_tokens, "room_tokens": model.context_tokens},
    )


def spare(model: ModelFacts, place: int, pins: Pins) -> Refusal | None:
    """A miniature's files after the first are for engines that read no other: they are taken when asked for."""
    if not model.generated or not place or any((pins.engine, pins.repo, pins.format, pins.quantization)):
        return None
    checkpoint = model.checkpoints[place]
    message = f"a miniature is served from its first file; --engine or --format {checkpoint.format} asks for this one"
    return Refusal("checkpoint.spare", message, {})


def _below_floor(checkpoint: CheckpointFacts, pins: Pins) -> Refusal | None:
    """Accuracy is never lowered unasked."""
    asked = pins.quantization is not None or (pins.repo is not None and checkpoint.file_prefix is None)
    if checkpoint.quality < LOWEST_QUALITY_UNASKED and not asked:
        return Refusal(
            "quality.floor",
            f"{checkpoint.quantization} loses too much accuracy to be chosen unasked; "
            f"--quantization {checkpoint.quantization} asks for it",
            {"quality": checkpoint.quality, "least_quality": LOWEST_QUALITY_UNASKED},
        )
    return None


def _quality_note(checkpoint: CheckpointFacts) -> tuple[Note, ...]:
    if checkpoint.quality >= QUALITY_WORTH_A_NOTE:
        return ()
    return (
        Note(
            severity="info",
            code="accuracy",
            message=f"{checkpoint.quantization} keeps about {checkpoint.quality:.1%} of the original weights' quality",
            source=checkpoint.quality_source,
        ),
    )


def rejection(
    repo: str, checkpoint: CheckpointFacts, engine: EngineFacts, parallel: Parallel | None, refusal: Refusal
) -> Rejection:
    """A refusal as the plan shows it."""
    return Rejection(
        repo=repo,
        quantization=checkpoint.quantization,
        engine=engine.name,
        parallel=parallel,
        code=refusal.code,
        message=refusal.message,
        numbers=refusal.numbers,
    )


#: Where there is nothing to plan on.
NO_DEVICE = Refusal("device.none", "there is no device here whose memory is known", {})


def unknown_device(device: Unusable) -> Refusal:
    """Why a device is left out."""
    where = device.name if device.index is None else f"{device.name} (device {device.index})"
    return Refusal("device.unknown_memory", f"{where} cannot be planned with: {device.reason}", {})


def unique(rejected: list[Rejection]) -> tuple[Rejection, ...]:
    """Rejections in the order they were met, the same sentence about the same thing once."""
    seen: dict[tuple[str, str, str, Parallel | None, str], Rejection] = {}
    for each in rejected:
        seen.setdefault((each.repo, each.quantization, each.engine, each.parallel, each.message), each)
    return tuple(seen.values())
