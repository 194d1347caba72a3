"""The program that joins a Ray cluster, in a Python that has Ray: ``python program.py REQUESTS_FD ADDRESS``.

It reads requests from that descriptor and answers on standard output, JSON lines as :mod:`autolaunch.cluster.wire` has
them; all that is written otherwise goes to standard error. It imports nothing of ours, and runs in any Python that Ray
runs in. When the descriptor is closed it ends what runs on the nodes, leaves the cluster and ends.

On a node an actor of the least kind (no CPU, no name, no second life) runs each program (``runner.py``). An actor and
not a task: Ray's client knows no task that answers more than once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HEARD_SECONDS = 1.0
#: After that nobody waits for what does not end.
LEAVE_SECONDS = 8.0
TCP_SECONDS = 5.0
#: What Ray raises when it cannot be had: its own errors beside these are ``RayError``.
TROUBLES = (OSError, RuntimeError, ValueError, ImportError, AssertionError)
_DIED = re.compile(r"node (?:has )?died|node was terminated|node .{0,90}(?:is dead|doesn't exist|fail)", re.IGNORECASE)

#: How versions of Ray say that no raylet of that cluster runs beside the driver: 2.5x, and those before.
_NOT_A_NODE = ("No node info found matching", "node_ip_address.json", "This node has an IP address", "local Raylet")

Say = Callable[[dict[str, Any]], None]


class Cannot(Exception):
    """The cluster cannot be joined."""

    def __init__(self, kind: str, message: str, **versions: str) -> None:
        super().__init__(message)
        self.answer = {"type": "refused", "kind": kind, "message": message[:1000], **versions}


class OnNode:
    """Ray's actor, sent to a node by value: it makes a ``Runner`` of the text that is sent along, and asks it."""

    def __init__(self, runner: str, *arguments: Any) -> None:
        made: dict[str, Any] = {"__name__": "runner"}
        exec(runner, made)  # noqa: S102 - a file of ours
        self._runner = made["Runner"](*arguments)

    def heard(self, seconds: float) -> Any:
        return self._runner.heard(seconds)

    def cancel(self) -> None:
        self._runner.cancel()


# --- joining ----------------------------------------------------------------------------------------


def joined(address: str) -> tuple[Any, dict[str, Any]]:
    """Ray, joined to the cluster at ``address``, and what there is to say of it.

    Raises:
        Cannot: it could not be joined.
    """
    kind = "client" if address.startswith("ray://") else "auto" if address == "auto" else "head"
    if kind != "auto":
        # Ray itself takes a minute to notice that nobody is there.
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), TCP_SECONDS).close()
        except OSError as error:
            raise Cannot("nobody", error.strerror or str(error)) from error
    try:
        import ray
        from ray.exceptions import RayError
    except (ImportError, OSError) as error:
        raise Cannot("import", one_line(error)) from error
    found = {"type": "joined", "address": address, **versions(ray)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        if kind != "client":
            context = ray.get_runtime_context()
            found |= {"address": context.gcs_address, "node": context.get_node_id()}
    except (RayError, *TROUBLES) as error:
        # Of a cluster whose version is far from this one Ray raises a bare ConnectionError, and its cause says more.
        said = one_line(error) or one_line(error.__context__ or "") or type(error).__name__
        raise refused(kind, ray, said) from error
    return ray, found


def refused(kind: str, ray: Any, said: str) -> Cannot:
    """Why Ray did not join, by what it said."""
    clusters = re.search(r"cluster was started with: Ray: (\S+) Python: (\S+)", said)
    if clusters:
        return Cannot("mismatch", said, cluster_ray=clusters[1], cluster_python=clusters[2], **versions(ray))
    if kind == "auto" and "multiple active Ray instances" in said:
        return Cannot("several", said)
    if kind == "auto" and "Could not find any running Ray instance" in said:
        return Cannot("none", said)
    if any(each in said for each in _NOT_A_NODE):
        return Cannot("not_a_node", said)
    if kind == "client" and "ray[client]" in said:
        return Cannot("client", said)
    return Cannot("other", said, **versions(ray))


def versions(ray: Any) -> dict[str, str]:
    return {"ray_version": ray.__version__, "python_version": ".".join(map(str, sys.version_info[:3]))}


def one_line(error: object) -> str:
    """What it says without colours, and of a traceback what it came to."""
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return re.sub(r"Traceback \(most recent call last\):.*?(?=\b\w+(?:Error|Exception): )", "", words)[:1000]


# --- members ----------------------------------------------------------------------------------------


def members(ray: Any, here: str | None, free: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """The nodes as Ray has them in its books; ``free`` are the GPUs that no work has, by node."""
    found = []
    for each in ray.nodes():
        alive, resources = bool(each.get("Alive")), each.get("Resources") or {}
        address = each.get("NodeManagerAddress") or ""
        found.append(
            {
                "id": each["NodeID"],
                "name": each.get("NodeManagerHostname") or address or each["NodeID"],
                "address": address,
                "alive": alive,
                "is_head": "node:__internal_head__" in resources,
                "is_here": each["NodeID"] == here,
                "cpus": float(resources.get("CPU", 0)) if alive else None,
                "gpus": float(resources.get("GPU", 0)) if alive else None,
                "free_gpus": None if free is None or not alive else free.get(each["NodeID"], 0.0),
                "why_dead": one_line(each.get("DeathReasonMessage") or "") or None,
            }
        )
    return found


def free_gpus() -> dict[str, float] | None:
    """The GPUs of each node that no work has; ``None`` where Ray does not tell, as its client does not."""
    try:
        from ray._private.state import available_resources_per_node

        found = available_resources_per_node()
    except (AttributeError, *TROUBLES):
        return None
    return {node: float(each.get("GPU", 0.0)) for node, each in found.items()}


def groups() -> list[str] | None:
    """The names of the placement groups that are there or asked for; ``None`` where Ray does not tell."""
    try:
        from ray.util import placement_group_table

        found = placement_group_table().values()
    except (AttributeError, *TROUBLES):
        return None
    return [each.get("name") or "" for each in found if each.get("state") != "REMOVED"]


# --- running ----------------------------------------------------------------------------------------


class Running:
    """A program on a node, as we hear of it."""

    def __init__(self, ray: Any, request: dict[str, Any], node: str, texts: tuple[str, str]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.id, self.node, self._ray = request["id"], node, ray
        self.silence_seconds = request["silence_seconds"]
        self._began = self.heard_at = time.monotonic()
        options = {"num_cpus": 0, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        asked = ("argv", "environment", "timeout_seconds", "most_bytes", "input_text")
        actor = ray.remote(**options)(OnNode).options(scheduling_strategy=where)
        self._actor = actor.remote(*texts, *(request[name] for name in asked))
        self.pending = self._actor.heard.remote(HEARD_SECONDS)

    def news(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """The lines that came, and the end if it is there."""
        from ray.exceptions import RayError

        try:
            lines, ended = self._ray.get(self.pending)
        except RayError as error:
            said = one_line(error)
            return [], self.end("lost", "its node died" if _DIED.search(said) else said[:300])
        self.heard_at = time.monotonic()
        about = {"id": self.id, "node": self.node}
        if ended is None:
            self.pending = self._actor.heard.remote(HEARD_SECONDS)
        else:
            self.kill()
            ended = {**ended, **about, "type": "ended"}
        return [{"type": "line", "stream": name, "text": text, **about} for name, text in lines], ended

    def end(self, outcome: str, message: str | None) -> dict[str, Any]:
        self.kill()
        seconds = time.monotonic() - self._began
        about = {"type": "ended", "id": self.id, "node": self.node}
        return {**about, "outcome": outcome, "message": message, "seconds": seconds}

    def cancel(self) -> None:
        self._actor.cancel.remote()

    def kill(self) -> None:
        from ray.exceptions import RayError

        with contextlib.suppress(RayError, ValueError):
            self._ray.kill(self._actor, no_restart=True)


class Program:
    """What was asked for and has not ended."""

    def __init__(self, ray: Any, here: str | None, requests: queue.Queue[dict[str, Any] | None], say: Say) -> None:
        self._ray, self._here, self._requests, self._say = ray, here, requests, say
        self._texts = (HERE.joinpath("runner.py").read_text(), HERE.joinpath("keeper.py").read_text())
        self._running: list[Running] = []

    def run(self) -> None:
        """Until nobody asks any more, and nothing is left."""
        leave = float("inf")
        while time.monotonic() < leave:
            idle = not self._running
            if idle and leave != float("inf"):
                break
            try:
                request = self._requests.get(block=idle)
            except queue.Empty:
                self._listen()
                continue
            if request is not None:
                self._take(request)
                continue
            leave = time.monotonic() + LEAVE_SECONDS
            for each in self._running:
                each.cancel()
        for each in self._running:
            each.kill()

    def _take(self, request: dict[str, Any]) -> None:
        from ray.exceptions import RayError

        try:
            if request["type"] == "members":
                # From outside Ray tells of neither; a node's own driver is told of both.
                free, named = (free_gpus(), groups()) if self._here is not None else (None, None)
                told = members(self._ray, self._here, free)
                self._say({"type": "members", "id": request["id"], "members": told, "groups": named})
            elif request["type"] == "run":
                for node in request["nodes"]:
                    self._running.append(Running(self._ray, request, node, self._texts))
            elif request["type"] == "cancel":
                for each in self._running:
                    if each.id == request["id"]:
                        each.cancel()
        except (RayError, *TROUBLES) as error:
            self._say({"type": "failed", "id": request["id"], "message": one_line(error)})

    def _listen(self) -> None:
        waited = {each.pending: each for each in self._running}
        ready, _ = self._ray.wait(list(waited), num_returns=1, timeout=0.1)
        if ready:  # and whatever else is there by now
            ready, _ = self._ray.wait(list(waited), num_returns=len(waited), timeout=0)
        for each in [waited[reference] for reference in ready]:
            lines, ended = each.news()
            for line in lines:
                self._say(line)
            self._settle(each, ended)
        now = time.monotonic()
        for each in list(self._running):
            if now - each.heard_at > each.silence_seconds:
                self._settle(each, each.end("silent", None))

    def _settle(self, one: Running, ended: dict[str, Any] | None) -> None:
        if ended is not None:
            self._running.remove(one)
            self._say(ended)


def read(descriptor: int, requests: queue.Queue[dict[str, Any] | None]) -> None:
    with os.fdopen(descriptor, "rb") as stream:
        for line in stream:
            requests.put(json.loads(line))
    requests.put(None)


def main() -> int:
    descriptor, address = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)
    # What Ray prints is not for who reads the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    # What lies beside this file is not for Ray, which has its workers import from where a driver does.
    sys.path[:] = [each for each in sys.path if Path(each).resolve() != HERE]

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=read, args=(descriptor, requests), daemon=True).start()
    try:
        ray, found = joined(address)
    except Cannot as why:
        say(why.answer)
        return 1
    with contextlib.suppress(BrokenPipeError):  # nobody is left to tell
        say(found)
        Program(ray, found.get("node"), requests, say).run()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # At once: threads of Ray's, and the one that reads, may be waiting for ever.
    os._exit(code)
