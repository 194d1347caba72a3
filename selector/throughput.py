"""How fast a candidate answers: decode, throughput, prefill, first token, load. Seconds and tokens a second.

``decode_tokens_per_second``      one sequence alone, at the workload's mean context (:mod:`selector.steps`).
``throughput_tokens_per_second``  of :data:`BENCHMARK_REQUESTS` requests a replica, ``concurrency`` of all at a time,
                                  from the first to the last token: what benchmarks report. As many sequences run as
                                  there is room for, the others wait, and at the end the batch drains. Answers are as
                                  long as the workload's mean, spread exponentially, and no longer than
                                  :data:`LONGEST_ANSWER_TOKENS` unless the mean is: while the last ones finish the
                                  batch is small, and the latency of a step is all that counts. That is why a
                                  thousand prompts sent at once give half of what the same server gives all day.
``sustained_tokens_per_second``   the same when every request that ends is followed by another.
``prefill_tokens_per_second``     one prompt of the workload's length.
``time_to_first_token_seconds``   that prompt on an idle server, with the cost of a request and of a first step.
``load_seconds``                  from the start of the process until it answers, weights on a local disk.

A share of the machine that nobody published makes the figures that rest on it ``None``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from selector.architecture import StoredWeights
from selector.contract import Limits, Parallel, Speed
from selector.devices import Device, Way
from selector.engine_facts import EngineFacts, Loads
from selector.facts import Architecture, Basis
from selector.request import Workload
from selector.steps import Decoding, Layout, Pass, passes, prefill_seconds_per_token, site

if TYPE_CHECKING:
    from selector.aside import Aside
    from selector.interconnect import Wire
    from selector.ready import Ready

#: Requests a replica of the run that ``throughput`` is of (``vllm bench serve`` sends as many unless told otherwise).
BENCHMARK_REQUESTS = 1000
#: No answer of a spread workload is longer (assumed: the cut of common benchmarks and of most clients' max_tokens).
LONGEST_ANSWER_TOKENS = 1024
#: Points and weights of Gauss and Legendre's quadrature on [0, 1], for the draining batch.
_POINTS = tuple(
    ((1 + side * node) / 2, weight / 2)
    for node, weight in ((0.2386191861, 0.4679139346), (0.6612093865, 0.3607615730), (0.9324695142, 0.1713244924))
    for side in (-1, 1)
)


@lru_cache(maxsize=1024)
def answer_scale(mean_tokens: int, longest_tokens: int) -> float:
    """The scale ``t`` of exponential lengths whose mean is ``mean_tokens`` when cut at ``longest_tokens``.

    Solves ``t x (1 - exp(-longest / t)) = mean``; ``inf`` where the mean reaches the cut and nothing is spread.
    """
    if mean_tokens >= longest_tokens:
        return math.inf
    low, high = float(mean_tokens), 1e3 * longest_tokens
    for _ in range(60):
        scale = math.sqrt(low * high)
        if scale * -math.expm1(-longest_tokens / scale) < mean_tokens:
            low = scale
        else:
            high = scale
    return low


@lru_cache(maxsize=1 << 14)
def drain_seconds(one: Pass, sequences: float, mean_tokens: int) -> float:
    """Seconds until ``sequences`` that started together have all ended, their lengths spread as described."""
    scale = answer_scale(mean_tokens, LONGEST_ANSWER_TOKENS)
    if sequences <= 1 or scale == math.inf:
        return mean_tokens * one.round_seconds(sequences) / one.gain
    # After so many steps hardly one is left.
    steps = min(LONGEST_ANSWER_TOKENS, scale * math.log(2 * sequences))
    mean_step = sum(
        weight * one.round_seconds(max(1.0, sequences * math.exp(-point * steps / scale))) for point, weight in _POINTS
    )
    return steps * mean_step / one.gain


def _read_bytes(arch: Architecture, weights: StoredWeights) -> tuple[float, float]:
    """Stored bytes of all routed experts, and of all else that a token of an answer reads."""
    sparse_layers = arch.num_hidden_layers - arch.first_k_dense_replace
    experts = weights.sparse_layer.get("routed_experts", 0.0)
    rest = (
        sparse_layers * (sum(weights.sparse_layer.values()) - experts)
        + arch.first_k_dense_replace * sum(weights.dense_layer.values())
        + weights.lm_head
    )
    return sparse_layers * experts, rest


def fastest_decode(one: Ready, device: Device, parallel: Parallel, *, mtp: bool) -> float | None:
    """Tokens a second of one sequence that the device's published bandwidth allows, were nothing else to be waited for.

    ``None`` where nobody published it.
    """
    arch, engine = one.model.architecture, one.engine
    here = site(engine, device, "none", one.loads.kernel)
    if here.assumed or here.bandwidth is None:
        return None
    experts, rest = _read_bytes(arch, one.weights)
    rule = engine.speed.mtp if mtp else None
    tokens = 1 if rule is None else 1 + rule.proposed_tokens
    read = (rest + experts * arch.num_experts_per_tok / arch.n_routed_experts) / parallel.tensor
    return tokens * here.bandwidth / read


def _shared_out(slots: int, concurrency: int | None, replicas: int) -> tuple[tuple[int, int], ...]:
    """Sequences at once with the number of replicas that run so many; replicas without any are left out.

    ``slots`` is what one replica has room for, ``concurrency`` the requests over all of them.
    """
    if concurrency is None or concurrency >= slots * replicas:
        return ((slots, replicas),)
    fewer, more = divmod(concurrency, replicas)
    return tuple((count, of) for count, of in ((fewer + 1, more), (fewer, replicas - more)) if count and of)


def _unknown(decode: float | None, load: float, running: int, basis: Basis) -> Speed:
    """What is left where an accelerator's figures are not known."""
    return Speed(
        decode_tokens_per_second=decode,
        throughput_tokens_per_second=None,
        prefill_tokens_per_second=None,
        time_to_first_token_seconds=None,
        load_seconds=load,
        concurrency=running,
        basis=basis,
    )


def estimate(
    *,
    arch: Architecture,
    weights: StoredWeights,
    engine: EngineFacts,
    loads: Loads,
    link: Way,
    device: Device,
    parallel: Parallel,
    limits: Limits,
    kv_bytes_per_token: int,
    kv_cache_tokens: int,
    workload: Workload,
    concurrency: int | None,
    download_bytes: int,
    speed_factor: float = 1.0,
    aside: Aside | None = None,
    wire: Wire | None = None,
) -> Speed:
    """The speed of a candidate at a workload. ``concurrency`` ``None`` is as many as fit at the mean request.

    ``wire`` is the way between the nodes of a replica (``None``: not known, or there is one node).
    ``speed_factor`` is what the engine's known faults leave (:func:`selector.legality.rules`), ``aside`` what of the
    model lies in main memory.
    """
    rule = engine.speed
    prompt, answer = workload.input_tokens, workload.output_tokens
    slots = max(1, min(limits.max_sequences, kv_cache_tokens // max(1, prompt + answer)))
    loads_at = _shared_out(slots, concurrency, parallel.data)
    running = sum(count * replicas for count, replicas in loads_at)
    here = site(engine, device, link, loads.kernel, wire)
    assumed = here.assumed or here.bandwidth is None or here.flops is None
    assumed = assumed or (parallel.tensor > 1 and here.link_assumed)
    assumed = assumed or (parallel.nodes > 1 and here.network_assumed)
    basis: Basis = "assumed" if assumed else "derived"
    load = round(rule.start_seconds + download_bytes / (rule.read_gb_per_second * 1e9), 1)
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.nodes, parallel.expert)
    decoding = Decoding(limits.speculative == "mtp", limits.eager, kv_bytes_per_token, prompt + answer / 2)
    one = passes(arch, engine, here, layout, decoding, *_read_bytes(arch, weights), speed_factor)
    if one is None:
        return _unknown(None, load, running, basis)
    if aside is not None:
        one, basis = aside.slowed(one), "assumed"
    decode = one.gain / one.seconds(1.0)
    prefill = prefill_seconds_per_token(arch, engine, here, layout, prompt, speed_factor, limits.batched_tokens)
    if prefill is None:
        return _unknown(round(decode, 2), load, running, basis)
    if aside is not None:
        prefill += aside.prompt_seconds_per_token(prompt, limits.batched_tokens)
    first_step = rule.eager_first_step_seconds if limits.eager else rule.first_step_seconds
    request = prompt * prefill + rule.request_seconds
    throughput = sustained = 0.0
    for count, replicas in loads_at:
        full = answer * one.round_seconds(count) / one.gain
        offered = max(count, BENCHMARK_REQUESTS)
        run = first_step + offered * request + (offered - count) / count * full + drain_seconds(one, count, answer)
        throughput += replicas * offered * answer / run
        sustained += replicas * count * answer / (count * request + full)
    return Speed(
        decode_tokens_per_second=round(decode, 2),
        throughput_tokens_per_second=round(throughput, 1),
        sustained_tokens_per_second=round(sustained, 1),
        prefill_tokens_per_second=round(1 / prefill, 1),
        time_to_first_token_seconds=round(first_step + request, 3),
        load_seconds=load,
        concurrency=running,
        basis=basis,
    )
