"""vLLM over several machines of a Ray cluster, its ranks placed where the plan has them.

    python -P vllm_ray.py --address HOST:PORT --ranks IP[,IP…] --group NAME --wait SECONDS -- [OPTIONS OF vllm serve]

Run by its path, with the interpreter of the engine's environment: it imports Ray and vLLM and nothing of autolaunch,
and nothing imports it.

vLLM's Ray executor takes whatever devices of the cluster are free, as Ray packs them, unless it is given a placement
group. It looks for one in Ray's own context alone, which a server that is no actor has not. Here one is made, a bundle
a rank on that rank's machine, and put into vLLM's configuration, which hands it on to the process that starts the
ranks (``vllm/v1/executor/ray_utils.py`` initialize_ray_cluster, 0.32 and 0.33). It is Ray's to clear away: it belongs
to this process's job, as the ranks do to that of the engine's core, and both end with their processes.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

#: A share of a machine's own resource that pins a bundle to it and leaves room for any number of others.
_PINNED = 0.001


def options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Ours, and vLLM's after ``--``."""
    place = argv.index("--")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--address", required=True)
    parser.add_argument("--ranks", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--wait", type=float, required=True)
    return parser.parse_args(argv[:place]), list(argv[place + 1 :])


def placed(ray: Any, ranks: Sequence[str], name: str, wait_seconds: float) -> Any:
    """The placement group, once its devices are ours.

    Raises:
        SystemExit: they are not to be had; the last line says where.
    """
    groups = importlib.import_module("ray.util.placement_group")
    bundles = [{"GPU": 1.0, f"node:{address}": _PINNED} for address in ranks]
    group = groups.placement_group(bundles, strategy="PACK", name=name)
    if group.wait(wait_seconds):
        return group
    groups.remove_placement_group(group)
    states = importlib.import_module("ray._private.state")
    free = states.available_resources_per_node()
    lacking = []
    for node in ray.nodes():
        wanted = sum(address == node["NodeManagerAddress"] for address in ranks)
        have = free.get(node["NodeID"], {}).get("GPU", 0.0) if node["Alive"] else 0.0
        if have < wanted:
            lacking.append(f"{node['NodeManagerAddress']} has {have:g} of {wanted}")
    sys.exit(f"autolaunch: Ray has not the devices for this engine: {'; '.join(lacking) or 'they are not told'}")


def given_to_vllm(group: Any) -> None:
    """Every configuration that vLLM makes in this process has ``group``."""
    arguments = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    made = arguments.create_engine_config

    def create(self: Any, *given: Any, **named: Any) -> Any:
        config = made(self, *given, **named)
        config.parallel_config.placement_group = group
        return config

    arguments.create_engine_config = create


def main(argv: Sequence[str]) -> None:
    ours, theirs = options(argv)
    ranks = ours.ranks.split(",")
    ray = importlib.import_module("ray")
    # The ranks run what this process runs, on their own machines: its environment lies at the same place there.
    ray.init(address=ours.address, namespace=ours.group, runtime_env={"py_executable": sys.executable})
    os.environ["RAY_ADDRESS"] = ours.address  # for the engine's core, which is a process of its own
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork of what talks to Ray talks to it in its name
    os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, range(len(ranks))))
    given_to_vllm(placed(ray, ranks, ours.group, ours.wait))
    sys.argv = ["vllm", *theirs]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
