"""Why a cluster was not joined is told with the command that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autolaunch.cluster.addresses import address_of
from autolaunch.cluster.refusals import error_of
from autolaunch.cluster.wire import Refusal, Refused
from selector.errors import ClusterError, NoCluster, NoRay, OtherRay

PYTHON = Path("/venv/bin/python")
VERSIONS = {"ray_version": "2.60.0", "python_version": "3.11.7", "cluster_ray": "2.50.1", "cluster_python": "3.11.9"}


def told(kind: Refusal, message: str = "it said so", *, address: str = "10.0.0.1:6379", **more: Any) -> ClusterError:
    return error_of(Refused(kind=kind, message=message, **more), address_of(address, {}), PYTHON)


def test_another_ray_is_told_with_both_versions_and_the_command() -> None:
    error = told("mismatch", **VERSIONS)
    assert isinstance(error, OtherRay)
    assert "Ray 2.50.1 on Python 3.11.9" in error.message
    assert "/venv/bin/python has Ray 2.60.0 on Python 3.11.7" in error.message
    assert error.hint == "/venv/bin/python -m pip install 'ray[client]==2.50.1'"


def test_another_python_is_not_mended_by_installing_ray_in_this_one() -> None:
    error = told("mismatch", **(VERSIONS | {"cluster_python": "3.12.1"}))
    assert "pip install" not in (error.hint or "")
    assert "Python 3.12" in (error.hint or "")
    assert "`ray` first on PATH" in (error.hint or "")


@pytest.mark.parametrize(
    ("kind", "address", "error", "words", "hint"),
    [
        (
            "nobody",
            "10.0.0.1:6379",
            NoCluster,
            "no Ray cluster answers at 10.0.0.1:6379: it said so",
            "ray start --head",
        ),
        ("nobody", "ray://head", NoCluster, "at ray://head:10001", "--ray-client-server-port 10001"),
        ("none", "auto", NoCluster, "no Ray cluster runs on this host", "ray start --address=HOST:6379"),
        (
            "not_a_node",
            "head:6379",
            NoCluster,
            "no node of the Ray cluster at head:6379",
            "ray start --address=head:6379",
        ),
        ("client", "ray://head", NoRay, "has no client", "/venv/bin/python -m pip install 'ray[client]'"),
        ("import", "auto", NoRay, "cannot be imported: it said so", "pip install 'glm-autolaunch[ray]'"),
        ("other", "auto", ClusterError, "could not be joined: it said so", ""),
    ],
)
def test_each_refusal_has_its_error_and_its_command(
    kind: Refusal, address: str, error: type[ClusterError], words: str, hint: str
) -> None:
    found = told(kind, address=address)
    assert type(found) is error
    assert words in found.message
    assert hint in (found.hint or "")
    assert found.exit_code == 4


def test_where_ray_does_not_say_why_its_own_version_is_told() -> None:
    error = told("other", "Could not read 'temp_dir' from GCS.", ray_version="2.48.0", python_version="3.11.7")
    assert "/venv/bin/python has Ray 2.48.0 on Python 3.11.7" in (error.hint or "")
    assert "`ray --version`" in (error.hint or "")


def test_of_several_clusters_the_addresses_are_told_and_one_is_proposed() -> None:
    said = "Found multiple active Ray instances: {'10.0.0.1:6379', '10.0.0.1:6380'}. Please specify"
    error = told("several", said, address="auto")
    assert "(10.0.0.1:6379, 10.0.0.1:6380)" in error.message
    assert error.hint == "name one: --nodes 10.0.0.1:6379"


def test_what_ray_says_is_bounded_and_shows_no_escapes() -> None:
    error = told("other", "\x1b[31m" + "x" * 5000)
    assert error.message.isprintable()
    assert len(error.message) < 600
