"""What uv 0.13 said when it failed, recorded, and the sentence that a person reads instead."""

from __future__ import annotations

import platform
import sys

import msgspec
import pytest

from engines.environments.uv_failures import Unreachable, failure, missing_package, offline
from selector.engine_facts import Package
from selector.errors import NoRoomOnDisk

PACKAGE = Package(
    name="mlx-lm",
    requirements=("mlx-lm==9.9.9",),
    architectures=("glm4_moe",),
    devices=("cpu",),
    bytes_on_disk=1000,
    source="test",
)
HERE = f"Python 3.11 on {sys.platform} {platform.machine()}"
OFFLINE = "hint: Packages were unavailable because the network was disabled."


def because(clause: str, *more: str) -> tuple[str, ...]:
    """uv's way to say that it found no solution."""
    end = "we can conclude that your requirements are unsatisfiable."
    return ("error: No solution found when resolving dependencies", f"  cause: Because {clause}, {end}", *more)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            because("there is no version of mlx-lm==9.9.9 and you require mlx-lm==9.9.9"),
            "there is no mlx-lm 9.9.9 to install",
        ),
        (
            because("there is no version of torch==2.13.0+cu999 and mlx-lm==9.9.9 depends on torch==2.13.0+cu999"),
            "mlx-lm cannot be installed: there is no torch 2.13.0+cu999, which it needs",
        ),
        (
            because("nosuchpackage was not found in the package registry and you require nosuchpackage==1.0"),
            "mlx-lm cannot be installed: the package index has no nosuchpackage",
        ),
        (
            because(
                "mlx-metal==0.32.4 has no wheels with a matching platform tag (e.g., `linux`) and you require it",
                "hint: Wheels are available for `mlx-metal` (v0.32.4) on the following platforms: `macosx_14_0_arm64`",
            ),
            f"mlx-lm cannot be installed: mlx-metal 0.32.4 has no wheel for {HERE}",
        ),
        (
            because("only certifi<=2026.10.18 is available and vllm depends on it"),
            f"mlx-lm cannot be installed on {HERE}: only certifi<=2026.10.18 is available and vllm depends on it",
        ),
        (
            (
                "error: Request failed after 3 retries in 8.8s",
                "  cause: Failed to fetch: https://index/simple-/mlx-lm/",
                "  cause: tcp connect error",
                "  cause: Connection refused (os error 111)",
            ),
            "mlx-lm could not be fetched: Failed to fetch: https://index/simple-/mlx-lm/",
        ),
        (
            (
                "error: Failed to download `truststore==0.10.5`",
                "  cause: Hash mismatch for `truststore==0.10.5`",
                "         Expected:",
                "           sha256:00d3",
            ),
            "the file of truststore 0.10.5 is not the one that the lock names: its hash differs",
        ),
        (
            because("mlx-lm was not found in the cache and you require mlx-lm==0.32.2", OFFLINE),
            "mlx-lm cannot be installed without a network: mlx-lm is not in uv's cache",
        ),
        (
            (
                "Resolved 38 packages in 19ms",
                "error: Failed to download `numpy==2.4.6`",
                "  cause: Network connectivity is disabled, but the requested data wasn't found in the cache: https://x/y",
            ),
            "mlx-lm cannot be installed without a network: numpy 2.4.6 is not in uv's cache",
        ),
        (("error: something new",), "uv could not install mlx-lm: error: something new"),
        ((), "uv could not install mlx-lm: no output"),
    ],
)
def test_a_failure_is_one_sentence_that_names_the_package(lines: tuple[str, ...], message: str) -> None:
    error = failure(PACKAGE, lines, "3.11")
    assert error.message == message
    assert "\n" not in error.message
    assert getattr(error, "__notes__", []) == list(lines), "all that uv said goes along"


def test_earlier_versions_of_uv_drew_their_reasons_as_a_tree() -> None:
    lines = (
        "  × No solution found when resolving dependencies:",
        "  ╰─▶ Because there is no version of mlx-lm==9.9.9 and you require",
        "      mlx-lm==9.9.9, we can conclude that your requirements are unsatisfiable.",
    )
    assert failure(PACKAGE, lines, "3.11").message == "there is no mlx-lm 9.9.9 to install"


def test_a_full_disk_is_no_fault_of_the_engine() -> None:
    lines = ("error: failed to write to file: No space left on device (os error 28)",)
    assert isinstance(failure(PACKAGE, lines, "3.11"), NoRoomOnDisk)


def test_a_reason_of_any_length_stays_a_sentence() -> None:
    clause = " and ".join(f"a{number} depends on b{number}" for number in range(200))
    assert len(failure(PACKAGE, because(clause), "3.11").message) < 400


@pytest.mark.parametrize(
    ("missing", "more", "told"),
    [
        ((), False, "a package that it needs is not in uv's cache"),
        (("a 1",), False, "a 1 is not in uv's cache"),
        (("a 1", "b 2"), False, "a 1, b 2 are not in uv's cache"),
        (("a 1", "b 2"), True, "a 1, b 2 and others are not in uv's cache"),
    ],
)
def test_what_is_missing_is_listed(missing: tuple[str, ...], more: bool, told: str) -> None:
    error = offline(PACKAGE, missing, more=more)
    assert isinstance(error, Unreachable)
    assert error.message.endswith(told)


def test_the_missing_package_is_read_from_an_address_by_no_means() -> None:
    assert missing_package(("error: Failed to fetch: https://index/mlx/",)) is None
    other = msgspec.structs.replace(PACKAGE, name="x")
    assert failure(other, ("error: Failed to fetch: https://index/mlx/",), "3.11").message.startswith("x could not")
