"""What a node answered is read as a stranger's: bounded, checked, and never a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autolaunch.cluster.answers import answered, dead, unanswered, version_in
from autolaunch.cluster.members import Member
from autolaunch.cluster.ray_cluster import End, Ran
from autolaunch.cluster.wire import Outcome
from tests.fakes.members import recorded

MEMBER = Member(id="ab" * 28, name="gpu-1", address="10.0.0.1", alive=True, gpus=8.0)


def ran(output: str = "", *, errors: str = "", outcome: Outcome = "exited", code: int | None = 0, **end: Any) -> Ran:
    return Ran(
        argv=("autolaunch", "probe", "--json"),
        end=End(member=MEMBER, outcome=outcome, exit_code=code, **end),
        output=output,
        errors=errors,
    )


def document(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(recorded("8xh100").to_json())
    return found | changes


def test_a_report_comes_back_as_it_was_written() -> None:
    answer = answered(MEMBER, "0.1.0", ran(json.dumps(document())))
    assert answer.report == recorded("8xh100")
    assert answer.trouble is None
    assert answer.unknown == ()


def test_the_report_of_a_driver_in_doubt_is_a_report() -> None:
    assert answered(MEMBER, "0.1.0", ran(json.dumps(document()), code=4)).report is not None


def test_keys_of_another_release_are_left_out_and_named() -> None:
    newer = document(fabric={"kind": "x"})
    newer["host"]["chassis"] = "y"
    newer["accelerators"][0]["power_watts"] = 700
    newer["accelerators"][1]["power_watts"] = 700
    answer = answered(MEMBER, "9.9.9", ran(json.dumps(newer)))
    assert answer.report == recorded("8xh100")
    assert set(answer.unknown) == {"fabric", "host.chassis", "accelerators.power_watts"}


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("", "it wrote nothing"),
        ("\x1b[2Jnot json", "not json"),
        ("[]", "could not be probed"),
        ("null", "could not be probed"),
        ("[" * 100_000, "could not be probed"),
        ('{"schema": 1}', "host: missing"),
        ('{"schema": 2, "host": {"os": "linux"}}', "schema"),
        ('{"schema": 1, "host": {"os": "plan9"}}', "plan9"),
        ('{"schema": 1, "host": {"os": "linux"}, "nodes": 2}', "several machines"),
        ('{"schema": 1, "host": {"os": "linux", "memory_total_bytes": -1}}', "memory_total_bytes"),
        ('{"schema": 1, "host": {"os": "linux", "os_version": "\\u001b[2J"}}', "cannot be shown"),
        ('{"schema": 1, "host": {"os": "linux"}, "links": [{"from": 0, "to": 1, "kind": "pcie"}]}', "links"),
    ],
)
def test_a_report_that_cannot_be_read_is_a_trouble_of_that_node(output: str, why: str) -> None:
    answer = answered(MEMBER, "0.1.0", ran(output))
    assert answer.report is None
    assert answer.trouble is not None
    assert why in answer.trouble
    assert answer.trouble.isprintable()
    assert len(answer.trouble) < 500


def test_an_error_of_the_probe_there_is_told_in_its_words() -> None:
    told = '{"schema": 1, "error": {"code": "usage", "message": "no home folder", "hint": null, "exit_code": 2}}'
    assert "no home folder (exit code 2)" in (answered(MEMBER, None, ran(told, code=2)).trouble or "")
    crashed = answered(MEMBER, None, ran(code=1, errors="Traceback …\nImportError: no module named msgspec"))
    assert "ImportError: no module named msgspec (exit code 1)" in (crashed.trouble or "")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("missing", "has no autolaunch"),
        ("silent", "did not answer within 45 s"),
        ("timed_out", "was not done with `autolaunch probe --json` after 45 s"),
        ("lost", "was lost while it was asked: its node died"),
        ("failed", "could not run autolaunch: its node died"),
        ("cancelled", "was cancelled"),
    ],
)
def test_a_node_that_did_not_answer_says_why(outcome: Outcome, words: str) -> None:
    why = unanswered(ran(outcome=outcome, code=None, seconds=45.2, message="its node died"))
    assert words in (why or "")


def test_output_that_was_cut_is_no_report() -> None:
    answer = answered(MEMBER, None, ran(json.dumps(document()), dropped_bytes=1))
    assert answer.trouble == "wrote more than any report has"


@pytest.mark.parametrize(
    ("output", "version"),
    [("autolaunch 0.1.0\n", "0.1.0"), ("autolaunch 1.2.3.dev4+g12\n", "1.2.3.dev4+g12"), ("0.1.0", None), ("", None)],
)
def test_a_version_is_what_autolaunch_says_and_nothing_else(output: str, version: str | None) -> None:
    assert version_in(ran(output)) == version


def test_a_dead_node_says_what_ray_says_of_it() -> None:
    assert dead(MEMBER).trouble == "is dead"
    told = Member(id="cd", name="gpu-2", address="10.0.0.2", alive=False, why_dead="health check failed")
    assert dead(told).trouble == "is dead: health check failed"
