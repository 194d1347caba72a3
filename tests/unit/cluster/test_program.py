"""What Ray says when it does not join, as the program that joins reads it; and what that program is handed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autolaunch.cluster import program
from autolaunch.cluster.conversation import environment

RAY = SimpleNamespace(__version__="2.60.0")
#: Ray's own words, of the versions named.
MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.12.3
This process on 10.0.0.1:6379 was started with:
    Ray: 2.54.0
    Python: 3.11.7
"""


@pytest.mark.parametrize(
    ("kind", "said", "refusal"),
    [
        ("head", MISMATCH, "mismatch"),
        ("client", MISMATCH, "mismatch"),
        ("auto", "Could not find any running Ray instance. Please specify the one to connect to by setting …", "none"),
        ("auto", "Found multiple active Ray instances: {'10.0.0.1:6379', '10.0.0.1:6380'}. Please …", "several"),
        ("head", "No node info found matching attributes: '' when trying to resolve node to connect to.", "not_a_node"),
        ("head", "Can't find a `node_ip_address.json` file from /tmp/ray/session_x. for 60 seconds.", "not_a_node"),
        ("client", "Ray Client requires pip package `ray[client]`.", "client"),
        ("head", "Authentication required: the request carries no token", "other"),
        ("head", "", "other"),
    ],
)
def test_what_ray_says_is_understood(kind: str, said: str, refusal: str) -> None:
    answer = program.refused(kind, RAY, program.one_line(said)).answer
    assert answer["kind"] == refusal
    assert answer["type"] == "refused"


def test_of_a_mismatch_both_versions_are_told() -> None:
    answer = program.refused("head", RAY, program.one_line(MISMATCH)).answer
    assert (answer["cluster_ray"], answer["cluster_python"]) == ("2.60.0", "3.12.3")
    assert answer["ray_version"] == "2.60.0"


def test_of_a_traceback_it_is_told_what_it_came_to() -> None:
    said = 'Failure: Traceback (most recent call last):\n  File "a.py", line 1\n    raise X(\nRuntimeError: it failed.'
    assert program.one_line(said) == "Failure: RuntimeError: it failed."
    assert program.one_line("\x1b[31mplain\x1b[0m\n words") == "plain words"


def test_a_node_is_told_as_ray_has_it_in_its_books() -> None:
    books: list[dict[str, Any]] = [
        {
            "NodeID": "aa",
            "Alive": True,
            "NodeManagerAddress": "10.0.0.1",
            "NodeManagerHostname": "gpu-1",
            "Resources": {"CPU": 8.0, "GPU": 2.0, "node:__internal_head__": 1.0},
        },
        {"NodeID": "bb", "Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {}},
        {"NodeID": "cc", "Alive": False, "Resources": {}, "DeathReasonMessage": "health check\nfailed"},
    ]
    head, other, dead = program.members(SimpleNamespace(nodes=lambda: books), "bb", {"aa": 1.0})
    assert head == {
        "id": "aa",
        "name": "gpu-1",
        "address": "10.0.0.1",
        "alive": True,
        "is_head": True,
        "is_here": False,
        "cpus": 8.0,
        "gpus": 2.0,
        "free_gpus": 1.0,
        "why_dead": None,
    }
    assert (other["name"], other["gpus"], other["is_here"]) == ("10.0.0.2", 0.0, True)
    assert (other["free_gpus"], dead["free_gpus"]) == (0.0, None)
    assert (dead["name"], dead["gpus"], dead["why_dead"]) == ("cc", None, "health check failed")
    assert all(each["free_gpus"] is None for each in program.members(SimpleNamespace(nodes=lambda: books), None))


def test_the_program_gets_rays_variables_and_nobodys_tokens() -> None:
    ours = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_secret",
        "OPENAI_API_KEY": "sk-secret",
        "RAY_AUTH_TOKEN": "of the cluster",
        "RAY_ADDRESS": "elsewhere:6379",
        "PYTHONPATH": "/somewhere",
        "RAY_USAGE_STATS_ENABLED": "1",
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "patch",
    }
    found = environment(ours)
    assert found["RAY_AUTH_TOKEN"] == "of the cluster"  # noqa: S105 - no password
    assert not {"HF_TOKEN", "OPENAI_API_KEY", "RAY_ADDRESS", "PYTHONPATH"} & set(found)
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert found["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] == "patch"  # what its user says about Ray holds
