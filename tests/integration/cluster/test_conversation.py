"""What is asked of a program that joined a cluster and hangs: nobody who asks, cancels or leaves waits for it for ever.

The programs are FAKES, scripts in the place of ``autolaunch/cluster/program.py``: one that is stopped, as a machine
that swaps stops it, could not be had in a real cluster at the moment that matters. Pipes, processes and threads are
real.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from autolaunch.cluster import conversation, ray_cluster
from autolaunch.cluster.addresses import address_of
from autolaunch.cluster.conversation import Conversation
from autolaunch.cluster.members import Member
from autolaunch.cluster.ray_cluster import Cluster
from autolaunch.cluster.wire import AskMembers, AskRun, Failed, Joined
from selector.errors import ClusterError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

JOINS = """
import json, os, sys, time
def say(**answer):
    print(json.dumps(answer), flush=True)
say(type="joined", address=sys.argv[2], ray_version="2.60.0", python_version="3.12.3", node="aa")
"""
READS_NOTHING = JOINS + "time.sleep(600)\n"
ANSWERS_NOTHING = JOINS + "for line in open(int(sys.argv[1])): pass\n"
SAYS_HOW_LONG = JOINS + (
    "for line in open(int(sys.argv[1])):\n"
    "    time.sleep(0.02)\n"
    "    asked = json.loads(line)\n"
    '    say(type="failed", id=asked["id"], message=str(len(asked["input_text"])))\n'
)
#: A pipe holds 64 KiB.
LARGE = "x" * 300_000
NODE = Member(id="aa", name="a", address="127.0.0.2", alive=True)


def large(number: int, text: str = LARGE) -> AskRun:
    return AskRun(
        id=number,
        nodes=("aa",),
        argv=("true",),
        environment={},
        timeout_seconds=1.0,
        silence_seconds=1.0,
        most_bytes=100,
        input_text=text,
    )


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Conversation]]:
    """Makes a conversation with a program of that text, which has joined."""
    made: list[Conversation] = []

    def make(text: str) -> Conversation:
        program = tmp_path / "program.py"
        program.write_text(text)
        monkeypatch.setattr(conversation, "PROGRAM", program)
        made.append(Conversation(Path(sys.executable), address_of("127.0.0.2:6379", {})))
        assert isinstance(made[-1].first(20, None), Joined)
        return made[-1]

    yield make
    for each in made:
        each.close(at_once=True)


class Asking(threading.Thread):
    """A request in a thread of its own, and what came of it."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.error: ClusterError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._ask()
        except ClusterError as error:
            self.error = error

    def ended(self) -> str:
        self.join(5)
        assert not self.is_alive(), "who asks waits for ever"
        assert self.error is not None
        return self.error.message


def test_who_leaves_is_not_held_up_by_a_request_that_nobody_reads(joined: Callable[[str], Conversation]) -> None:
    one = joined(READS_NOTHING)
    asking = Asking(lambda: one.ask(large(1)))
    time.sleep(0.5)  # until the pipe is full, which nothing tells
    assert asking.is_alive()
    began = time.monotonic()
    assert not one.is_over, "and it can be asked meanwhile whether it goes on"
    one.begin()
    one.close(at_once=True)
    assert time.monotonic() - began < 5
    assert "was lost" in asking.ended()


def test_a_request_that_nobody_reads_ends_within_its_time_and_the_conversation_with_it(
    joined: Callable[[str], Conversation],
) -> None:
    one = joined(READS_NOTHING)
    _, waiting = one.begin()
    with pytest.raises(
        ClusterError, match=r"what joined the Ray cluster at 127\.0\.0\.2:6379 does not answer any more"
    ):
        one.ask(large(1), seconds=0.5)
    assert waiting.get(timeout=1) is None, "who waits for another answer is told"
    with pytest.raises(ClusterError, match="was lost"):  # after half of the first it would be read as its end
        one.ask(AskMembers(id=2))


def test_a_request_that_nobody_reads_is_cancelled(joined: Callable[[str], Conversation]) -> None:
    one, cancelled = joined(READS_NOTHING), threading.Event()
    asking = Asking(lambda: one.ask(large(1), (cancelled,)))
    time.sleep(0.5)  # until the pipe is full, which nothing tells
    assert asking.is_alive()
    cancelled.set()
    assert asking.ended() == "asking the Ray cluster at 127.0.0.2:6379 was cancelled"


def test_requests_of_many_threads_come_whole_to_who_reads_slowly(joined: Callable[[str], Conversation]) -> None:
    one = joined(SAYS_HOW_LONG)
    begun = [one.begin() for _ in range(8)]
    for place, (number, _) in enumerate(begun):
        threading.Thread(target=one.ask, args=(large(number, LARGE + "y" * place),), daemon=True).start()
    for place, (_, answers) in enumerate(begun):
        answer = answers.get(timeout=20)
        assert isinstance(answer, Failed)
        assert answer.message == str(len(LARGE) + place)


@pytest.mark.parametrize("cancel", [False, True])
def test_a_program_on_nodes_of_which_nothing_is_heard_any_more_is_given_up(
    joined: Callable[[str], Conversation], monkeypatch: pytest.MonkeyPatch, *, cancel: bool
) -> None:
    one, cancelled = joined(ANSWERS_NOTHING), threading.Event()
    monkeypatch.setattr(ray_cluster, "_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(conversation, "LEAVE_SECONDS", 0.2)
    cluster = Cluster("127.0.0.2:6379")
    monkeypatch.setattr(cluster, "_conversation", one)
    if cancel:
        cancelled.set()
    began = time.monotonic()
    with pytest.raises(ClusterError, match="does not answer any more"):
        cluster.ran(
            ("true",),
            on=(NODE,),
            timeout_seconds=60 if cancel else 0.5,
            silence_seconds=0.5,
            cancelled=cancelled,
        )
    cluster.close()
    assert time.monotonic() - began < 10
    with suppress(ClusterError):  # and nothing of it is there to be asked
        one.ask(AskMembers(id=9))
        raise AssertionError("it was left, and takes requests")
