"""What was measured on a machine, as it corrects a plan of it: by how much at most, and what is refused.

A :class:`selector.measured.Calibration` is what one configuration showed. Beside what the planner says of the same
configuration it makes a :class:`Lesson` (:mod:`selector.lessons`): bytes and factors, each within these bounds of the
prediction or refused::

    weights             15 %, or 1 GiB where that is more; never more than the device holds
    activations, graphs 15 %, or 4 GiB where that is more
    runtime             4 GiB more; less by no more than the whole of it, and never by weights
    KV cache            15 %, or 4 GiB where that is more
    speeds              a third to three times; where the prediction rests on rates that nobody published (processors,
                        which others use as well), a thousandth to ten times; one sequence never faster than the
                        published bandwidth of the device can be read
    load                a fiftieth to fifty times

Live speed counts from :data:`LEAST_SAMPLES` requests on. A lesson holds for its own layout; for another one of the same
weights only its factors do (weights, speeds, load). What was measured here comes before what was imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from selector.contract import Memory, Note, Speed
from selector.facts import Basis
from selector.measured import Calibration, Configuration
from selector.needs import Needs

GIB = 1 << 30
ITEM_SHARE = 0.15
WEIGHTS_BYTES, ITEM_BYTES = GIB, 4 * GIB
DERIVED_SPEED, ASSUMED_SPEED = (1 / 3, 3.0), (0.001, 10.0)
LOAD = (0.02, 50.0)
LEAST_SAMPLES = 5
#: What asks for more or less of the same layout.
_AMOUNTS = frozenset({"context_tokens", "max_sequences", "memory_utilization"})
_LAYOUT = tuple(name for name in Configuration.__struct_fields__ if name not in _AMOUNTS)


class Correction(NamedTuple):
    """What a device's weights are multiplied by, and what is added to its other items, in bytes.

    ``room`` are bytes that the KV cache turned out to have less than was foretold (more, where below 0).
    """

    weights: float = 1.0
    activations: int = 0
    graphs: int = 0
    runtime: int = 0
    room: int = 0

    def needs(self, each: Needs) -> Needs:
        """A stage's needs, corrected; no item is below nothing."""
        activations = max(0, each.activations + self.activations)
        graphs = max(0, each.graphs + self.graphs) if each.graphs else 0
        runtime = max(0, each.runtime + self.runtime)
        return each._replace(
            weights=round(each.weights * self.weights),
            activations=activations,
            graphs=graphs,
            runtime=runtime,
            beside_weights=activations + graphs + runtime,
        )


class Factors(NamedTuple):
    """What each speed is multiplied by; ``None`` where it is not known."""

    decode: float | None = None
    throughput: float | None = None
    prefill: float | None = None
    first_token: float | None = None
    load: float | None = None


class Lesson(NamedTuple):
    """What a calibration came to. ``memory`` is whether it tells of memory, ``refused`` what is not believed of it.

    ``assumed`` is whether the prediction rested on rates that nobody published; ``on_demand`` whether the engine takes
    memory as it needs it, so that its share of it is no part of what was measured.
    """

    of: Calibration
    correction: Correction = Correction()
    factors: Factors = Factors()
    memory: bool = False
    assumed: bool = False
    refused: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    on_demand: bool = False


class Learned(NamedTuple):
    """What corrects a layout, the lesson that its memory is from, and those of its speeds by name.

    ``shared`` is a factor of speeds that is from others on the same kind of device alone.
    """

    correction: Correction
    factors: Factors
    memory: Lesson | None
    speeds: tuple[tuple[str, Lesson], ...]
    refused: tuple[Lesson, ...]
    shared: float | None = None


# --- bounds ---------------------------------------------------------------------------------------------


def within(measured: float, predicted: float, bounds: tuple[float, float]) -> float | None:
    """``measured / predicted``, if it is within ``bounds``."""
    if not (predicted > 0 and measured > 0):
        return None
    found = measured / predicted
    return found if bounds[0] <= found <= bounds[1] else None


def near(measured: int, predicted: int, least_bytes: int) -> int | None:
    """``measured - predicted``, if it is no more than :data:`ITEM_SHARE` of it or ``least_bytes``."""
    found = measured - predicted
    return found if abs(found) <= max(ITEM_SHARE * predicted, least_bytes) else None


# --- which lessons hold for a layout ----------------------------------------------------------------------


def same_layout(one: Configuration, other: Configuration) -> bool:
    """Whether they differ in nothing but the context, the sequences and the share of memory."""
    return all(getattr(one, name) == getattr(other, name) for name in _LAYOUT)


def _shared(engine: str, elsewhere: Sequence[Lesson]) -> float | None:
    """The factor for what was not measured, from what was on the same kind of device; of this engine, if there is some.

    Estimates of one machine err the same way. Were only what was measured made slower, the first place would go to
    whatever was not, at each start anew. Nothing is made faster by it.
    """
    known = [each for each in elsewhere if each.factors.decode is not None]
    known = [each for each in known if each.of.engine == engine] or known
    factors = sorted(each.factors.decode for each in known if each.factors.decode is not None)
    middle = factors[(len(factors) - 1) // 2] if factors else 1.0
    return middle if middle < 1 else None


def learned(
    lessons: Sequence[Lesson], layout: Configuration, elsewhere: Sequence[Lesson], engine: str
) -> Learned | None:
    """What holds for a layout of the checkpoint and ``engine`` that ``lessons`` are of.

    ``elsewhere`` are lessons of anything on the same kind of device. The limits of ``layout`` do not matter.
    """
    several = layout.tensor * layout.pipeline > 1

    def order(each: Lesson) -> tuple[bool, bool, float]:
        return each.of.own, same_layout(each.of.configuration, layout), each.of.measured.at

    memory: Lesson | None = None
    weights: Lesson | None = None
    speeds: dict[str, Lesson] = {}
    for each in sorted(lessons, key=order, reverse=True):
        of = each.of.configuration
        same = same_layout(of, layout)
        if same and each.memory:
            memory = memory or each
        elif each.memory and abs(each.correction.weights - 1) <= ITEM_SHARE:
            weights = weights or each
        if same or (of.tensor * of.pipeline > 1) == several:
            for name, factor in zip(Factors._fields, each.factors, strict=True):
                if factor is not None:
                    speeds.setdefault(name, each)
    refused = tuple(each for each in lessons if each.refused)
    correction = Correction()
    if memory is not None:
        correction = memory.correction
    elif weights is not None:
        correction = Correction(weights=weights.correction.weights)
    found = Factors(*(getattr(speeds[name].factors, name) if name in speeds else None for name in Factors._fields))
    # Where only one of them is known it stands for the other: most of both is the time of a step.
    found = found._replace(decode=found.decode or found.throughput, throughput=found.throughput or found.decode)
    shared = _shared(engine, elsewhere) if found.decode is None else None
    if (correction, found, shared) == (Correction(), Factors(), None) and not refused:
        return None
    return Learned(correction, found, memory or weights, tuple(sorted(speeds.items())), refused, shared)


# --- what is corrected --------------------------------------------------------------------------------------


def corrected(speed: Speed, by: Learned, configuration: Configuration) -> Speed:
    """The speeds, each times its factor; measured where this very configuration gave the decoding or the throughput."""
    one = by.factors
    own = dict(by.speeds)
    measured = any(name in own and _very(own[name], configuration) for name in ("decode", "throughput"))
    if by.shared is not None:
        one = one._replace(decode=by.shared, throughput=by.shared)
    basis: Basis = "measured" if measured else speed.basis
    return msgspec.structs.replace(
        speed,
        decode_tokens_per_second=_times(speed.decode_tokens_per_second, one.decode, 2),
        throughput_tokens_per_second=_times(speed.throughput_tokens_per_second, one.throughput, 1),
        sustained_tokens_per_second=_times(speed.sustained_tokens_per_second, one.throughput, 1),
        prefill_tokens_per_second=_times(speed.prefill_tokens_per_second, one.prefill, 1),
        time_to_first_token_seconds=_times(speed.time_to_first_token_seconds, one.first_token, 3),
        load_seconds=_times(speed.load_seconds, one.load, 1),
        basis=basis,
    )


def remembered(memory: Memory, by: Learned, configuration: Configuration) -> Memory:
    """The memory, whose items were corrected, saying so where this very configuration gave them."""
    if by.memory is None or not _very(by.memory, configuration):
        return memory
    return msgspec.structs.replace(memory, basis="measured")


def _very(lesson: Lesson, configuration: Configuration) -> bool:
    of = lesson.of.configuration
    if lesson.on_demand:
        of = msgspec.structs.replace(of, memory_utilization=configuration.memory_utilization)
    return lesson.of.own and of == configuration


def _times(figure: float | None, factor: float | None, digits: int) -> float | None:
    return figure if figure is None or factor is None else round(figure * factor, digits)


# --- what is said -------------------------------------------------------------------------------------------


def notes(by: Learned, configuration: Configuration) -> tuple[Note, ...]:
    """What was measured and when, and how much it corrects; what was refused, and why."""
    used = {id(each): each for each in (by.memory, *(lesson for _, lesson in by.speeds)) if each is not None}
    found: list[Note] = []
    for each in sorted(used.values(), key=lambda lesson: -lesson.of.measured.at):
        told = _told(each, by, configuration)
        if told:
            found.append(Note(severity="info", code="learned.measured", message=told))
    if by.shared is not None:
        message = (
            f"its speed was not measured here; what was gave {by.shared:.2f} times what was foretold, so this does"
        )
        found.append(Note(severity="info", code="learned.device", message=message))
    for each in by.refused:
        message = f"what was measured {_when(each)} is not believed: {'; '.join(each.refused)}"
        found.append(Note(severity="info", code="learned.refused", message=message))
    return tuple(dict.fromkeys(found))


def _told(each: Lesson, by: Learned, configuration: Configuration) -> str:
    if _very(each, configuration):
        return f"measured {_when(each)}: {', '.join(each.said)}" if each.said else ""
    parts: list[str] = []
    if each is by.memory:
        if same_layout(each.of.configuration, configuration):
            parts += [said for said in each.said if said.startswith(("weights", "in use", "KV"))]
        elif each.correction.weights != 1:
            parts.append(f"weights x {each.correction.weights:.2f}")
    parts += [
        f"{name.replace('_', ' ')} x {getattr(each.factors, name):.2f}" for name, lesson in by.speeds if lesson is each
    ]
    if not parts:
        return ""
    where = "this layout" if same_layout(each.of.configuration, configuration) else _layout(each.of.configuration)
    return f"corrected by what {where} showed {_when(each)}: {', '.join(parts)}"


def _layout(one: Configuration) -> str:
    parts = [f"TP {one.tensor}"] if one.tensor > 1 else []
    parts += [f"PP {one.pipeline}"] if one.pipeline > 1 else []
    parts += [f"{one.data} replicas"] if one.data > 1 else []
    return ", ".join(parts) or "another layout"


def _when(each: Lesson) -> str:
    day = datetime.fromtimestamp(each.of.measured.at, UTC).strftime("%Y-%m-%d")
    return f"here on {day}" if each.of.own else f"on another host on {day}"
