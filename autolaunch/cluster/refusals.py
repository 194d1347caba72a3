"""Why a cluster could not be joined, as an error with the command that mends it."""

from __future__ import annotations

import re
from pathlib import Path

from autolaunch.cluster.addresses import CLIENT_PORT, Address
from autolaunch.cluster.interpreters import INSTALL
from autolaunch.cluster.wire import Refused
from selector.errors import ClusterError, NoCluster, NoRay, OtherRay
from selector.probe.text import printable


def error_of(refused: Refused, asked: Address, python: Path) -> ClusterError:
    """``python`` is the one that tried."""
    said = printable(refused.message, 400) or "no reason was given"
    if refused.kind == "mismatch":
        return _other_ray(refused, python)
    if refused.kind == "import":
        return NoRay(f"the Ray of {python} cannot be imported: {said}", hint=f"{INSTALL} installs it anew")
    if refused.kind == "client":
        version = f"=={refused.ray_version}" if refused.ray_version else ""
        return NoRay(
            f"the Ray of {python} has no client, which ray:// takes",
            hint=f"{python} -m pip install 'ray[client]{version}'",
        )
    if refused.kind == "none":
        return NoCluster(
            "no Ray cluster runs on this host",
            hint=f"ray start --address=HOST:6379 joins one; --nodes ray://HOST:{CLIENT_PORT} asks one from outside; "
            "ray start --head begins one",
        )
    if refused.kind == "several":
        found = re.findall(r"'([^'\s]{1,100}:[0-9]{1,5})'", said)
        which = f" ({', '.join(sorted(found))})" if found else ""
        return NoCluster(
            f"several Ray clusters run on this host{which}", hint=f"name one: --nodes {min(found, default='HOST:PORT')}"
        )
    if refused.kind == "nobody":
        starts = (
            f"ray start --head there begins one, with its client server at --ray-client-server-port {CLIENT_PORT}"
            if asked.kind == "client"
            else f"`ray status` there shows whether one runs; `ray start --head --port={asked.port}` there begins one, "
            f"which the other nodes join with `ray start --address={asked}`"
        )
        return NoCluster(f"no Ray cluster answers at {asked}: {said}", hint=starts)
    if refused.kind == "not_a_node":
        return NoCluster(
            f"this host is no node of the Ray cluster at {asked}",
            hint=f"ray start --address={asked} makes it one; from outside: --nodes ray://{asked.host}:{CLIENT_PORT}",
        )
    hint = (
        f"{python} has Ray {refused.ray_version} on Python {refused.python_version}, and a cluster of another version "
        "may not answer it: `ray --version` on its head tells"
        if refused.ray_version
        else None
    )
    return ClusterError(f"the Ray cluster at {asked} could not be joined: {said}", hint=hint)


def _other_ray(refused: Refused, python: Path) -> OtherRay:
    wanted = f"'ray[client]=={refused.cluster_ray}'"
    same = _minor(refused.cluster_python) == _minor(refused.python_version)
    hint = (
        f"{python} -m pip install {wanted}"
        if same
        else f"autolaunch in Python {_minor(refused.cluster_python)} beside {wanted}, or the folder of the "
        "cluster's own `ray` first on PATH"
    )
    return OtherRay(
        f"the cluster has Ray {refused.cluster_ray} on Python {refused.cluster_python}, and {python} has "
        f"Ray {refused.ray_version} on Python {refused.python_version}",
        hint=hint,
    )


def _minor(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])
