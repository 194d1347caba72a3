"""FAKE cluster: nodes that answer what a test has written down. Nothing is run anywhere, and there is no Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autolaunch.cluster import Cluster, End, Member, Output
from autolaunch.cluster.wire import Outcome


class Reply(NamedTuple):
    """What a node writes to what is run there, and how that ends."""

    lines: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    exit_code: int = 0
    outcome: Outcome = "exited"
    message: str | None = None
    then: Callable[[], None] = lambda: None


class Asked(NamedTuple):
    """What was run on a node."""

    node: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    input_text: str

    @property
    def word(self) -> str:
        """The command: ``node-check``, ``install`` or ``pull``."""
        return "install" if self.argv[1] == "engines" else self.argv[1]


class ScriptedCluster(Cluster):
    """``replies`` has a node's answers by its name and the command's word, each used once."""

    def __init__(self, members: Sequence[Member], replies: Mapping[tuple[str, str], Sequence[Reply]]) -> None:
        super().__init__("10.0.0.1:6379")
        self._nodes = tuple(members)
        self._replies = {key: list(each) for key, each in replies.items()}
        self.asked: list[Asked] = []

    @property
    def address(self) -> str:
        return "10.0.0.1:6379"

    def members(self, *, timeout_seconds: float = 0.0) -> tuple[Member, ...]:
        del timeout_seconds
        return self._nodes

    def run(
        self,
        argv: Sequence[str],
        *,
        on: Iterable[Member] | None = None,
        environment: Mapping[str, str] | None = None,
        input_text: str = "",
        cancelled: threading.Event | None = None,
        **_: Any,
    ) -> Generator[Output | End, None, None]:
        where = tuple(self._nodes if on is None else on)
        asked = [Asked(each.name, tuple(argv), dict(environment or {}), input_text) for each in where]
        self.asked += asked
        for member, word in zip(where, (each.word for each in asked), strict=True):
            waiting = self._replies.get((member.name, word))
            assert waiting, f"nobody thought that {member.name} would be asked to {word}"
            reply = waiting.pop(0)
            reply.then()
            for stream, lines in (("stdout", reply.lines), ("stderr", reply.errors)):
                for text in lines:
                    yield Output(member=member, stream="stderr" if stream == "stderr" else "stdout", text=text)
            over = cancelled is not None and cancelled.is_set()
            outcome: Outcome = "cancelled" if over else reply.outcome
            code = reply.exit_code if outcome == "exited" else None
            yield End(member=member, outcome=outcome, exit_code=code, message=reply.message, seconds=1.0)
