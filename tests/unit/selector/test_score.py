"""The score: documented weights over five terms, explained a row a term, and what the second plan lacks."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from autolaunch import api
from selector import runner_up, score
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.explain import score_rows
from selector.facts import checkpoint_id
from selector.machines import report_from_spec
from selector.request import OBJECTIVES, Objective, Workload
from selector.search import Decision, decide

MACHINES = ("8xh200", "m3-ultra-512gb", "8xa100-80gb", "gb10")
CASES = [
    (model, machine, objective) for model in ("glm-4.6", "glm-4.5v") for machine in MACHINES for objective in OBJECTIVES
]


def decided(catalog: Catalog, machine: str, request: PlanRequest) -> Decision:
    return decide(catalog.model(request.model), report_from_spec(machine, catalog), request, catalog)


def with_quality(catalog: Catalog, model: str, ranked: tuple[Candidate, ...]) -> runner_up.Scored:
    quality = {(each.repo, each.quantization): each.quality for each in catalog.model(model).checkpoints}
    return tuple((each, quality[each.checkpoint.repo, each.checkpoint.quantization]) for each in ranked)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_weights_of_an_objective_add_up_to_one_and_none_is_zero(objective: Objective) -> None:
    weights = score.WEIGHTS[objective]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > 0


@pytest.mark.parametrize("objective", ["latency", "throughput", "context", "quality"])
def test_an_objective_counts_its_own_term_most(objective: Objective) -> None:
    weights = score.WEIGHTS[objective]
    term = objective if objective in weights._fields else "speed"
    assert getattr(weights, term) == max(weights)


def test_the_rows_of_a_score_add_up_to_it(catalog: Catalog) -> None:
    for candidate in decided(catalog, "8xh200", PlanRequest(model="glm-4.6")).ranked:
        rows = score.rows(candidate.score_terms, score.WEIGHTS["balanced"])
        assert sum(part for _, _, _, part in rows) == pytest.approx(candidate.score, abs=1e-4)
        assert all(part == pytest.approx(weight * value) for _, weight, value, part in rows)


def test_an_explanation_has_a_row_for_every_term(catalog: Catalog) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog)
    assert plan.chosen is not None
    told = plan.explain().splitlines()
    rows = score_rows(plan.chosen, "balanced")
    assert [row.split()[0] for row in rows] == list(score.Weights._fields)
    assert [line for line in told if line in rows][: len(rows)] == rows
    assert any(line.startswith("The second would come first ") for line in told)


def test_a_long_prompt_is_part_of_the_wait_for_an_answer(catalog: Catalog) -> None:
    candidate = decided(catalog, "8xh200", PlanRequest(model="glm-4.6")).ranked[0]
    speed = msgspec.structs.replace(candidate.speed, decode_tokens_per_second=50.0, time_to_first_token_seconds=10.0)
    slow = msgspec.structs.replace(candidate, speed=speed)
    request = PlanRequest(model="glm-4.6", workload=Workload(input_tokens=60_000, output_tokens=500))
    assert score.answer_rate(slow, request) == pytest.approx(500 / (10 + 10))


def test_weights_that_are_here_win_between_equals_and_do_not_outweigh_quality(catalog: Catalog) -> None:
    there = decided(catalog, "4xh100", PlanRequest(model="glm-4.6")).ranked
    equal = with_quality(catalog, "glm-4.6", (there[0], there[0]))
    twin = msgspec.structs.replace(there[0].checkpoint, repo="another/copy")
    pair = (equal[0], (msgspec.structs.replace(there[0], checkpoint=twin), equal[1][1]))
    for repo in ("another/copy", there[0].checkpoint.repo):
        request = PlanRequest(model="glm-4.6", local=frozenset({repo}))
        first = score.ranked(pair, request, 202_752)[0]
        assert (first.checkpoint.repo, first.checkpoint.local) == (repo, True)
    low = frozenset({"QuantTrio/GLM-4.6-AWQ"})
    best = decided(catalog, "8xh200", PlanRequest(model="glm-4.6", objective="quality", local=low)).ranked[0]
    assert best.checkpoint.quantization != "Int4"


def test_of_one_repository_with_several_files_only_those_that_are_here_are_here(catalog: Catalog) -> None:
    here = checkpoint_id("unsloth/GLM-4.6-GGUF", "Q6_K/GLM-4.6-Q6_K")
    found = decided(catalog, "m3-ultra-512gb", PlanRequest(model="glm-4.6", local=frozenset({here}))).ranked
    local = {each.checkpoint.quantization: each.checkpoint.local for each in found}
    assert [name for name, is_here in local.items() if is_here] == ["Q6_K"]
    assert {each.score_terms.download for each in found if each.checkpoint.local} == {1.0}


def test_a_larger_download_scores_lower_and_one_of_another_machine_is_unknown(catalog: Catalog) -> None:
    found = decided(catalog, "m3-ultra-512gb", PlanRequest(model="glm-4.6")).ranked
    by_size = sorted(found, key=lambda each: each.checkpoint.download_bytes)
    terms = [each.score_terms.download for each in by_size]
    assert terms == sorted(terms, reverse=True)
    assert {each.checkpoint.local for each in found} == {None}


def test_the_order_of_speeds_holds_however_slow_they_are(catalog: Catalog) -> None:
    """Nothing ties at the bottom: half a token a second is still twice a quarter."""
    best = decided(catalog, "8xh200", PlanRequest(model="glm-4.6")).ranked[0]
    request = PlanRequest(model="glm-4.6", objective="throughput")
    values = []
    for halvings in range(10):
        speed = msgspec.structs.replace(best.speed, throughput_tokens_per_second=1000.0 / 2**halvings)
        slower = msgspec.structs.replace(best, speed=speed)
        values.append(score.terms(slower, 1.0, 1000.0, request, 202_752).speed)
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert all(0 < value <= 1 for value in values)


def test_requests_that_wait_are_counted_by_the_speed_alone(catalog: Catalog) -> None:
    best = decided(catalog, "8xh200", PlanRequest(model="glm-4.6")).ranked[0]
    room = best.memory.kv_cache_tokens * best.parallel.data
    asked = PlanRequest(model="glm-4.6", concurrency=room // 1500 * 2)
    assert score.terms(best, 1.0, 1.0, asked, 202_752).headroom == 1.0


@pytest.mark.parametrize("concurrency", [256, 500, 800, 1000, 1500, 2000])
def test_for_throughput_the_layout_that_gives_most_is_taken_at_every_load(catalog: Catalog, concurrency: int) -> None:
    ranked = decided(catalog, "8xh200", PlanRequest(model="glm-4.6", objective="throughput", concurrency=concurrency))
    alike = [each for each in ranked.ranked if each.checkpoint == ranked.ranked[0].checkpoint]
    assert alike[0].speed.throughput_tokens_per_second == max(
        each.speed.throughput_tokens_per_second or 0 for each in alike
    )


def test_speculative_decoding_is_part_of_the_order_of_equals(catalog: Catalog) -> None:
    best = decided(catalog, "8xh200", PlanRequest(model="glm-4.6")).ranked[0]
    limits = msgspec.structs.replace(best.limits, speculative="mtp")
    other = msgspec.structs.replace(best, limits=limits)
    orders = [sorted(pair, key=score.order) for pair in itertools.permutations((best, other))]
    assert orders[0] == orders[1]


# --- what would have to change ----------------------------------------------------------------------


def seconds_of(
    catalog: Catalog, model: str, machine: str, objective: Objective
) -> tuple[runner_up.Scored, PlanRequest]:
    request = PlanRequest(model=model, objective=objective)
    return with_quality(catalog, model, decided(catalog, machine, request).ranked), request


@pytest.mark.parametrize(("model", "machine", "objective"), CASES)
def test_a_change_that_is_told_puts_the_second_first_and_a_smaller_one_does_not(
    catalog: Catalog, model: str, machine: str, objective: Objective
) -> None:
    ranked, request = seconds_of(catalog, model, machine, objective)
    limit = catalog.model(model).context_tokens
    for second, quality in ranked[1:3]:
        for change in runner_up.changes(ranked, second, request, limit):
            question = runner_up.Question(ranked, second, request, limit)
            assert runner_up.applied(question, change) is not None
            assert question.answered_by(change), change
            if change.kind == "speed":
                less = change._replace(value=float(change.value) - 0.02)
                assert not question.answered_by(less), change
            if change.kind == "quality":
                assert quality < float(change.value) <= 1
                assert not question.answered_by(change._replace(value=float(change.value) - 0.002)), change


@pytest.mark.parametrize(("model", "machine"), [(model, machine) for model, machine, _ in CASES[:: len(OBJECTIVES)]])
def test_the_objective_that_is_told_chooses_the_second_when_it_is_asked_for(
    catalog: Catalog, model: str, machine: str
) -> None:
    ranked, request = seconds_of(catalog, model, machine, "balanced")
    told = []
    for second, _ in ranked[1:]:
        for change in runner_up.changes(ranked, second, request, catalog.model(model).context_tokens):
            # Latency alone tries speculative decoding: then there are candidates that the first list lacks.
            tries_more = change.value == "latency" and bool(catalog.engine(second.engine.name).speculative)
            if change.kind == "objective" and not tries_more:
                objective = next(each for each in OBJECTIVES if each == change.value)
                first = decided(catalog, machine, msgspec.structs.replace(request, objective=objective)).ranked[0]
                told.append((first.checkpoint, first.engine, first.parallel))
                assert told[-1] == (second.checkpoint, second.engine, second.parallel)
    if (model, machine) == ("glm-4.6", "m3-ultra-512gb"):
        assert told


def test_weights_that_come_to_be_here_put_the_second_first_as_it_was_told(catalog: Catalog) -> None:
    ranked, request = seconds_of(catalog, "glm-4.6", "m3-ultra-512gb", "balanced")
    second = ranked[1][0]
    assert "download" in {change.kind for change in runner_up.changes(ranked, second, request, 202_752)}
    here = checkpoint_id(second.checkpoint.repo, second.checkpoint.file_prefix)
    again = decided(catalog, "m3-ultra-512gb", msgspec.structs.replace(request, local=frozenset({here}))).ranked[0]
    assert again.checkpoint.repo == second.checkpoint.repo


def test_weights_that_both_plans_load_are_no_difference_between_them(catalog: Catalog) -> None:
    ranked, request = seconds_of(catalog, "glm-4.6", "8xh200", "balanced")
    same = [each for each, _ in ranked[1:] if each.checkpoint.repo == ranked[0][0].checkpoint.repo]
    assert same
    for second in same:
        kinds = {change.kind for change in runner_up.changes(ranked, second, request, 202_752)}
        assert not kinds & {"download", "quality"}


def test_a_context_that_both_hold_is_told_where_only_the_longer_one_decides(catalog: Catalog) -> None:
    """Two plans, the quicker of which holds half of the context."""
    ranked, request = seconds_of(catalog, "glm-4.6", "8xh200", "context")
    first, quality = ranked[0]
    speed = msgspec.structs.replace(first.speed, decode_tokens_per_second=90.0, throughput_tokens_per_second=9000.0)
    limits = msgspec.structs.replace(first.limits, context_tokens=65_536)
    other = next(each.engine for each, _ in ranked if each.engine.name != first.engine.name)
    short = msgspec.structs.replace(first, speed=speed, limits=limits, engine=other)
    scored = score.ranked(((first, quality), (short, quality)), request, 202_752)
    assert scored[0].limits.context_tokens > scored[1].limits.context_tokens
    pair = tuple((each, quality) for each in scored)
    found = {each.kind: each for each in runner_up.changes(pair, scored[1], request, 202_752)}
    assert found["context"].value == 65_536
    asked = msgspec.structs.replace(request, context_tokens=65_536)
    equal = msgspec.structs.replace(first, limits=limits)
    again = score.ranked(((equal, quality), (short, quality)), asked, 202_752)
    assert again[0].engine == short.engine


def test_the_second_of_a_plan_carries_the_note_and_no_other_does(catalog: Catalog) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog)
    assert plan.chosen is not None
    noted = [each.rank for each in plan.alternatives if any(note.code == "second" for note in each.notes)]
    assert noted == [plan.alternatives[0].rank]
    assert not any(note.code == "second" for note in plan.chosen.notes)
