"""What a download says: how fast it is, when it will be here, what went wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import pytest

from autolaunch.hubs.refusals import error_of
from autolaunch.hubs.refused import Broken, Denied, of_status, retry_after, text
from autolaunch.hubs.speed import Speed, Transfer, amount, left, told
from autolaunch.hubs.wire import Kind, Question, Refused
from selector.errors import DownloadError, HubUnreachable, NotHere

QUESTION = Question(
    repo="org/m", hub="huggingface", revision="v1", file_prefix=None, home="/h", cache="/c", offline=False
)


def test_the_rate_is_that_of_late_and_the_time_left_follows_from_it() -> None:
    speed = Speed()
    assert speed.at(0.0, 0, 1000).bytes_per_second is None
    assert speed.at(0.5, 50, 1000).bytes_per_second is None  # too soon to say
    assert speed.at(2.0, 200, 1000) == Transfer(
        done_bytes=200, total_bytes=1000, bytes_per_second=100.0, left_seconds=8.0
    )
    for second in range(3, 60):
        last = speed.at(float(second), 200, 1000)
    assert (last.bytes_per_second, last.left_seconds) == (0.0, None)  # nothing has come for long


def test_what_was_here_before_is_no_speed() -> None:
    speed = Speed()
    speed.at(0.0, 900, 1000, 0)
    assert speed.at(2.0, 920, 1000, 20).bytes_per_second == 10.0


def test_figures_are_said_for_people() -> None:
    moving = Transfer(
        done_bytes=120_100_000_000, total_bytes=361_200_000_000, bytes_per_second=8.12e8, left_seconds=297
    )
    assert told(moving) == "120.1 of 361.2 GB, 812.0 MB/s, 5 min left"
    still = Transfer(done_bytes=5_000_000, total_bytes=361_200_000_000, bytes_per_second=0.0)
    assert told(still) == "5.0 MB of 361.2 GB, nothing comes"
    assert told(Transfer(done_bytes=7, total_bytes=7, bytes_per_second=7e6, left_seconds=0)).endswith("7.0 MB/s")
    assert [left(seconds) for seconds in (4.6, 59.4, 61, 3599, 4800)] == [
        "5 s",
        "59 s",
        "1 min",
        "1 h 00 min",
        "1 h 20 min",
    ]
    assert [amount(size) for size in (700, 5e6, 2e9, 3e12)] == ["1 kB", "5.0 MB", "2.0 GB", "3.0 TB"]


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("offline", [False, True])
def test_every_way_to_fail_is_an_error_that_says_what(kind: Kind, offline: bool) -> None:
    import msgspec

    question = msgspec.structs.replace(QUESTION, offline=offline)
    error = error_of(Refused(kind=kind, message="{told} by org/m"), question)
    assert isinstance(error, DownloadError)
    assert error.exit_code == 6
    assert "org/m" in error.message
    if offline and kind in ("offline", "listing", "damaged", "cache"):
        assert isinstance(error, NotHere)


def test_only_what_may_come_by_itself_is_unreachable() -> None:
    passing = {
        kind
        for kind in get_args(Kind)
        if isinstance(error_of(Refused(kind=kind, message=""), QUESTION), HubUnreachable)
    }
    assert passing == {"busy", "tls", "redirects", "endpoint", "offline", "unreachable"}


@pytest.mark.parametrize(
    ("status", "kind", "again"),
    [
        (401, "token", False),
        (403, "gated", False),
        (404, "missing", False),
        (418, "refused", False),
        (408, "unreachable", True),
        (429, "busy", True),
        (500, "unreachable", True),
        (503, "busy", True),
    ],
)
def test_a_status_is_tried_again_or_is_not(status: int, kind: Kind, again: bool) -> None:
    found = of_status(status, "said", 3.0)
    assert found.kind == kind
    assert isinstance(found, Broken if again else Denied)


def test_a_server_says_how_long_to_wait_in_seconds_or_with_a_date() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after({"Retry-After": "7"}) == 7.0
    assert retry_after({"retry-after": "Thu, 01 Jan 2026 12:01:00 GMT"}, now) == 60.0
    assert retry_after({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, now) == 0.0
    assert retry_after({}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "9" * 400}) == 999_999_999.0


def test_nothing_secret_and_nothing_endless_is_passed_on() -> None:
    token = "hf_" + "x" * 30
    said = text(f"GET https://store/a?X-Amz-Signature=abc&b=c failed\nfor Bearer {token} and {token} and ms-{'1' * 20}")
    assert token not in said
    assert "Signature" not in said
    assert "1111" not in said
    assert "\n" not in said
    assert len(text("x" * 10_000)) == 300
