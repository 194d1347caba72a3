"""Where a cluster is, as people and RAY_ADDRESS write it."""

from __future__ import annotations

import pytest

from autolaunch.cluster.addresses import Address, address_of
from selector.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "host", "port"),
    [
        ("auto", "auto", None, None),
        ("10.0.0.1:6379", "head", "10.0.0.1", 6379),
        ("head-0.ray.svc:6380", "head", "head-0.ray.svc", 6380),
        ("[fd00::0:1]:6379", "head", "fd00::1", 6379),
        ("ray://10.0.0.1:10001", "client", "10.0.0.1", 10001),
        ("ray://head", "client", "head", 10001),
        ("ray://[::1]:10002", "client", "::1", 10002),
        (" 10.0.0.1:6379 ", "head", "10.0.0.1", 6379),
    ],
)
def test_an_address_is_read_as_ray_reads_it(text: str, kind: str, host: str | None, port: int | None) -> None:
    found = address_of(text, {})
    assert (found.kind, found.host, found.port) == (kind, host, port)
    assert address_of(str(found), {}) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "local",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:6379:1",
        "[10.0.0.1",
        "[head]:6379",
        "::1:6379",
        "http://10.0.0.1:8265",
        "ray://",
        "ray://a/b:1",
        "ray://user@head:10001",
        "a b:6379",
        "head\n:6379",
        "-x:6379",
        "$(id):6379",
        "x" * 300 + ":6379",
        "head:٦٣٧٩",
    ],
)
def test_what_is_no_address_is_a_usage_error_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as told:
        address_of(text, {})
    assert told.value.hint
    assert told.value.message.startswith("--nodes")
    assert len(told.value.message) < 200


def test_auto_is_the_address_of_the_environment_where_there_is_one() -> None:
    assert address_of("auto", {"RAY_ADDRESS": "head:6379"}) == Address(kind="head", host="head", port=6379)
    assert address_of("auto", {"RAY_ADDRESS": "auto"}) == Address(kind="auto")
    assert address_of("auto", {"RAY_ADDRESS": ""}) == Address(kind="auto")
    assert address_of("other:1", {"RAY_ADDRESS": "head:6379"}).host == "other"


def test_a_wrong_address_of_the_environment_is_told_by_its_name() -> None:
    with pytest.raises(UsageError, match=r"RAY_ADDRESS: 'http://head:8265'") as told:
        address_of("auto", {"RAY_ADDRESS": "http://head:8265"})
    assert "dashboard" in (told.value.hint or "")


def test_a_host_without_a_port_is_asked_about() -> None:
    with pytest.raises(UsageError) as told:
        address_of("gpu-1", {})
    assert told.value.hint == "did you mean gpu-1:6379, or ray://gpu-1:10001?"
