"""What is said between us and the program that joins the cluster (``program.py``): JSON, a line each."""

from __future__ import annotations

from typing import Literal

from autolaunch.cluster.members import Member
from selector.values import Value

#: A line longer than this is none of the program's: a list of the members of the largest cluster is shorter.
MOST_LINE_BYTES = 16 * 2**20

#: Why a cluster could not be joined.
Refusal = Literal["import", "nobody", "none", "several", "not_a_node", "mismatch", "client", "other"]
#: How what was run on a node came to its end: by itself, because there is no such program on the node or it could not
#: be run, at its deadline, because it was cancelled, because the node said nothing (any more), or with its node.
Outcome = Literal["exited", "missing", "failed", "timed_out", "cancelled", "silent", "lost"]


# --- asked ------------------------------------------------------------------------------------------


class AskMembers(Value, frozen=True, kw_only=True, tag="members"):
    id: int


class AskRun(Value, frozen=True, kw_only=True, tag="run"):
    """Run ``argv`` on ``nodes``, with ``environment`` over the node's own and ``input_text`` to read."""

    id: int
    nodes: tuple[str, ...]
    argv: tuple[str, ...]
    environment: dict[str, str]
    timeout_seconds: float
    silence_seconds: float
    most_bytes: int
    input_text: str = ""


class AskCancel(Value, frozen=True, kw_only=True, tag="cancel"):
    """End what the run ``id`` has left."""

    id: int


# --- answered ---------------------------------------------------------------------------------------


class Joined(Value, frozen=True, kw_only=True, tag="joined"):
    """The first answer. ``node`` is the member that this host is, ``None`` where it is none."""

    address: str
    ray_version: str
    python_version: str
    node: str | None = None


class Refused(Value, frozen=True, kw_only=True, tag="refused"):
    """The first answer where nothing came of it; ``ray_*`` and ``python_*`` where versions are why."""

    kind: Refusal
    message: str
    ray_version: str | None = None
    python_version: str | None = None
    cluster_ray: str | None = None
    cluster_python: str | None = None


class Members(Value, frozen=True, kw_only=True, tag="members"):
    """``groups`` are the names of the placement groups that there are (``None``: they are not told)."""

    id: int
    members: tuple[Member, ...]
    groups: tuple[str, ...] | None = None


class Line(Value, frozen=True, kw_only=True, tag="line"):
    """What a program wrote on a node, without its end."""

    id: int
    node: str
    stream: Literal["stdout", "stderr"]
    text: str


class Ended(Value, frozen=True, kw_only=True, tag="ended"):
    """Nothing more comes from this node. ``dropped_bytes`` of its output were over what was asked for."""

    id: int
    node: str
    outcome: Outcome
    exit_code: int | None = None
    message: str | None = None
    seconds: float = 0.0
    dropped_bytes: int = 0


class Failed(Value, frozen=True, kw_only=True, tag="failed"):
    """The cluster could not be asked (any more)."""

    id: int
    message: str


Answer = Joined | Refused | Members | Line | Ended | Failed
Asked = AskMembers | AskRun | AskCancel
