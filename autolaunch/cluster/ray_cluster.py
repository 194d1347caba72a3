"""A Ray cluster: who is in it, and what a program says that is run on its nodes."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

import msgspec

from autolaunch.cluster.addresses import Address, address_of
from autolaunch.cluster.conversation import Conversation
from autolaunch.cluster.interpreters import interpreters
from autolaunch.cluster.members import Member, place_of
from autolaunch.cluster.refusals import error_of
from autolaunch.cluster.wire import (
    Answer,
    AskCancel,
    AskMembers,
    AskRun,
    Ended,
    Failed,
    Joined,
    Line,
    Members,
    Outcome,
)
from selector.errors import ClusterError
from selector.probe.text import printable
from selector.values import Value

JOIN_SECONDS = 60.0
#: One that runs is heard of every second; but Ray waits 60 s for a worker that does not start before it tries another.
SILENCE_SECONDS = 75.0
MEMBERS_SECONDS = 30.0
#: Of one node's output. A report of the largest machine takes a quarter of it.
MOST_BYTES = 4 << 20
#: What ends on a node after its deadline, or when it was cancelled, is waited for this long.
_GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.25
#: Where another Python with Ray may do better.
_ELSEWHERE = frozenset({"mismatch", "import", "client", "other"})


class Output(Value, frozen=True, kw_only=True):
    """A line that a program wrote on a node, without its end; control characters are as they came."""

    member: Member
    stream: Literal["stdout", "stderr"]
    text: str


class End(Value, frozen=True, kw_only=True):
    """Nothing more comes from this node, and nothing that was run there is left.

    ``exit_code`` is the program's where ``outcome`` is ``exited`` (128 and its number for a signal), ``None``
    otherwise. ``message`` says more where there is more to say; ``dropped_bytes`` of the output were too many.
    """

    member: Member
    outcome: Outcome
    exit_code: int | None = None
    message: str | None = None
    seconds: float = 0.0
    dropped_bytes: int = 0


class Ran(Value, frozen=True, kw_only=True):
    """What was run on a node, and what came back: all of its output and how it ended."""

    argv: tuple[str, ...]
    end: End
    output: str
    errors: str

    @property
    def member(self) -> Member:
        """The node."""
        return self.end.member


class Cluster:
    """A Ray cluster that this process asks through another one; Ray itself is never imported here.

        with Cluster("auto") as cluster:
            for ran in cluster.ran(("autolaunch", "--version"), timeout_seconds=30):
                print(ran.member.name, ran.output)

    Any thread may ask at any time. Left in any way, also by the end of this process, it has nothing run on any node
    any more: no actor, no task, no process.

    Args:
        address: ``auto`` (``RAY_ADDRESS``, or the cluster that this host is of), ``HOST:PORT`` of the head, or
            ``ray://HOST:PORT`` of its client server.
        join_seconds: how long joining may take.
        cancelled: set, it ends joining and everything that is run within a moment.

    Raises:
        UsageError: the address is none.
    """

    def __init__(
        self, address: str = "auto", *, join_seconds: float = JOIN_SECONDS, cancelled: threading.Event | None = None
    ) -> None:
        self._asked: Address = address_of(address, os.environ)
        self._join_seconds, self._cancelled = join_seconds, cancelled
        self._conversation: Conversation | None = None
        self._joined: Joined | None = None

    def __enter__(self) -> Self:
        """Joins it.

        Raises:
            NoRay: no Python here has Ray.
            OtherRay: the cluster's version is another.
            NoCluster: there is none at the address, or this host may not join it.
            ClusterError: joining it failed in another way, or took too long.
        """
        first: ClusterError | None = None
        for python in interpreters(os.environ):
            conversation = Conversation(python, self._asked)
            try:
                answer = conversation.first(self._join_seconds, self._cancelled)
            except BaseException:
                conversation.close(at_once=True)  # nothing runs anywhere yet
                raise
            if isinstance(answer, Joined):
                self._conversation, self._joined = conversation, answer
                return self
            conversation.close()
            first = first or error_of(answer, self._asked, python)
            if answer.kind not in _ELSEWHERE:
                break
        raise first or ClusterError("the cluster could not be joined")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is run, and leaves the cluster. Again it does nothing."""
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.close()

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the head, or the address of the client server by which it was joined."""
        return self._told().address

    @property
    def ray_version(self) -> str:
        """The cluster's: another would not have been joined."""
        return self._told().ray_version

    @property
    def python_version(self) -> str:
        """The cluster's, as ``3.12.3``: what has another minor version does not work with it."""
        return self._told().python_version

    def members(self, *, timeout_seconds: float = MEMBERS_SECONDS) -> tuple[Member, ...]:
        """Every node, the head first and then by address; the dead are among them as long as the cluster knows them.

        Raises:
            ClusterError: it was lost, or did not answer in time.
        """
        return tuple(sorted((_shown(each) for each in self._members(timeout_seconds).members), key=place_of))

    def groups(self, *, timeout_seconds: float = MEMBERS_SECONDS) -> tuple[str, ...] | None:
        """The names of Ray's placement groups that are there or asked for; ``None`` where Ray does not tell.

        Raises:
            ClusterError: it was lost, or did not answer in time.
        """
        return self._members(timeout_seconds).groups

    def _members(self, timeout_seconds: float) -> Members:
        with _Request(self._talk()) as request:
            request.ask(AskMembers(id=request.number))
            deadline = time.monotonic() + timeout_seconds
            while time.monotonic() < deadline:
                answer = request.next()
                if isinstance(answer, Members):
                    return answer
            raise ClusterError(f"the cluster at {self.address} did not say who is in it within {timeout_seconds:.0f} s")

    def run(
        self,
        argv: Sequence[str],
        *,
        on: Iterable[Member] | None = None,
        timeout_seconds: float,
        environment: Mapping[str, str] | None = None,
        input_text: str = "",
        silence_seconds: float = SILENCE_SECONDS,
        most_bytes: int = MOST_BYTES,
        cancelled: threading.Event | None = None,
    ) -> Generator[Output | End, None, None]:
        """Runs a program on nodes at once: what it writes as it comes, and one :class:`End` for each of them.

        It is run without a shell, in the environment that the node was started with: it sees the
        devices that the node has, whatever work Ray gave them to. A name without a path is looked for beside the
        node's Python, on its PATH, and in ``~/.local/bin``. Nothing of the node's CPUs and GPUs is asked for. Leave
        the iterator (``close()``, or an exception in its loop) and what still runs is ended.

        Args:
            argv: the program and its arguments; no secret belongs there.
            on: where; ``None`` is every node that lives.
            timeout_seconds: from its start on the node. Then it is ended with all that descends from it.
            environment: variables over the node's own.
            input_text: what it may read on its standard input; no secret belongs there either.
            silence_seconds: a node that says nothing for so long, or does not start it, is given up.
            most_bytes: of a node's output; what is more is counted and left out. A line keeps its first 64 KiB.
            cancelled: set, it ends what runs; the ends still come.

        Raises:
            ClusterError: the cluster was lost meanwhile.
        """
        conversation = self._talk()
        left = {each.id: each for each in (self._alive() if on is None else on)}
        stops = [each for each in (self._cancelled, cancelled) if each is not None]
        with _Request(conversation) as request:
            request.ask(
                AskRun(
                    id=request.number,
                    nodes=tuple(left),
                    argv=tuple(argv),
                    environment=dict(environment or {}),
                    timeout_seconds=timeout_seconds,
                    silence_seconds=silence_seconds,
                    most_bytes=most_bytes,
                    input_text=input_text,
                ),
                stops,
            )
            ended, spare = False, silence_seconds + 2 * _GRACE_SECONDS
            deadline = time.monotonic() + timeout_seconds + spare
            try:
                while left:
                    if not ended and any(each.is_set() for each in stops):
                        request.ask(AskCancel(id=request.number))
                        ended, deadline = True, min(deadline, time.monotonic() + spare)
                    if time.monotonic() >= deadline:  # what joined it gives up on nodes, and has itself stopped
                        raise conversation.hangs()
                    answer = request.next()
                    if isinstance(answer, Line) and answer.node in left:
                        yield Output(member=left[answer.node], stream=answer.stream, text=answer.text)
                    elif isinstance(answer, Ended) and answer.node in left:
                        yield _end(answer, left.pop(answer.node))
            finally:
                if left and not conversation.is_over:
                    request.settle(set(left), asked=ended)

    def ran(
        self,
        argv: Sequence[str],
        *,
        on: Iterable[Member] | None = None,
        timeout_seconds: float,
        environment: Mapping[str, str] | None = None,
        input_text: str = "",
        silence_seconds: float = SILENCE_SECONDS,
        cancelled: threading.Event | None = None,
    ) -> tuple[Ran, ...]:
        """As :meth:`run`, when all of it has come; in the order of ``on``.

        Raises:
            ClusterError: the cluster was lost meanwhile.
        """
        where = tuple(self._alive() if on is None else on)
        lines: dict[tuple[str, str], list[str]] = {}
        ends: dict[str, End] = {}
        for each in self.run(
            argv,
            on=where,
            timeout_seconds=timeout_seconds,
            environment=environment,
            input_text=input_text,
            silence_seconds=silence_seconds,
            cancelled=cancelled,
        ):
            if isinstance(each, End):
                ends[each.member.id] = each
            else:
                lines.setdefault((each.member.id, each.stream), []).append(each.text)

        def text(member: str, stream: str) -> str:
            return "\n".join(lines.get((member, stream), ()))

        return tuple(
            Ran(argv=tuple(argv), end=ends[one], output=text(one, "stdout"), errors=text(one, "stderr"))
            for one in dict.fromkeys(each.id for each in where)
        )

    def _alive(self) -> tuple[Member, ...]:
        return tuple(each for each in self.members() if each.alive)

    def _talk(self) -> Conversation:
        if self._conversation is None:
            raise self._not_joined()
        return self._conversation

    def _not_joined(self) -> ClusterError:
        return ClusterError("the cluster was left, or not joined yet", hint="with Cluster(address) as cluster: …")

    def _told(self) -> Joined:
        if self._joined is None:
            raise self._not_joined()
        return self._joined


class _Request:
    """One number in a conversation, for as long as somebody listens."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.number, self._answers = conversation.begin()
        self.ask = conversation.ask

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._conversation.forget(self.number)

    def next(self) -> Answer | None:
        """An answer, or ``None`` when a moment has gone by without one.

        Raises:
            ClusterError: none will come any more.
        """
        try:
            answer = self._answers.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None
        if answer is None:
            raise self._conversation.lost()
        if isinstance(answer, Failed):
            raise ClusterError(f"the cluster did not do it: {printable(answer.message, 300)}")
        return answer

    def settle(self, left: set[str], *, asked: bool) -> None:
        """Has what runs ended, and waits for that."""
        with suppress(ClusterError):
            if not asked:
                self.ask(AskCancel(id=self.number))
            deadline = time.monotonic() + _GRACE_SECONDS
            while left and time.monotonic() < deadline:
                answer = self.next()
                if isinstance(answer, Ended):
                    left.discard(answer.node)


def _shown(member: Member) -> Member:
    """Fit to be seen: nodes are named by whoever started them."""
    return msgspec.structs.replace(
        member,
        name=printable(member.name) or member.id[:12],
        address=printable(member.address) or "",
        why_dead=printable(member.why_dead, 300),
    )


def _end(told: Ended, member: Member) -> End:
    return End(
        member=member,
        outcome=told.outcome,
        exit_code=told.exit_code,
        message=printable(told.message, 300),
        seconds=told.seconds,
        dropped_bytes=told.dropped_bytes,
    )
