"""A file for Docker Compose: the weights first, then an engine a replica."""

from __future__ import annotations

from pathlib import PurePosixPath

from autolaunch.exporting.header import header
from autolaunch.exporting.steps import client, revision
from autolaunch.exporting.values import File
from autolaunch.exporting.words import start_script
from autolaunch.exporting.work import EVERYWHERE, HEALTH, LOOPBACK, Work, fetch, gguf_patterns, started
from autolaunch.exporting.yaml_text import Node, documents

MODELS = PurePosixPath("/models")
#: Runs the hub's client where the engine's image has none.
#: https://docs.astral.sh/uv/guides/integration/docker/#available-images
UV_IMAGE = "ghcr.io/astral-sh/uv:0.11-python3.12-trixie"
#: Shared memory of a rank: PyTorch's ranks hand each other tensors there. vLLM's own examples give eight ranks 15 GiB.
SHARED_GIB_A_RANK = 2
ASKS_PYTHON = "import urllib.request, sys; urllib.request.urlopen(sys.argv[1], timeout=5)"
STOP_SECONDS = 60
#: Processor cores that are asked for, a rank; assumed.
CORES = 4


def compose(work: Work) -> tuple[File, ...]:
    """``compose.yaml``."""
    fetched = work.options.model_path is None
    names = [work.slug] if work.replicas == 1 else [f"{work.slug}-{number}" for number in range(1, work.replicas + 1)]
    services: dict[str, Node] = {"weights": _weights(work)} if fetched else {}
    services |= {name: _service(work, number) for number, name in enumerate(names, 1)}
    file = work.options.api_key_file or "./secrets/api-key"
    document: dict[str, Node] = {"name": work.slug, "services": services}
    if work.keyed:
        document["secrets"] = {"api-key": {"file": file}}
    if fetched:
        document["volumes"] = {"weights": {}}
    how = []
    if work.keyed and work.options.api_key_file is None:
        how.append("  mkdir -m 700 secrets && openssl rand -hex 32 > secrets/api-key")
    if fetched:
        how.append("  docker compose run --rm weights    fetches the weights; again, it goes on where it was")
    how += ["  docker compose up --detach", "  docker compose ps    tells when it is healthy"]
    told = [f"It is reached at {_published(work, 1)}" + (" and the ports after it." if work.replicas > 1 else ".")]
    if work.keyed:
        told.append(
            "The key is what stands in the file, with Authorization: Bearer. The engine's user reads it, so the file "
            "is open and its folder is not."
        )
    if work.kind == "nvidia":
        told.append("The GPUs come with the NVIDIA Container Toolkit.")
    text = header(work, "A file for Docker Compose (2.20 and later) that serves", how, told) + documents(
        _escaped(document)
    )
    return (File(name="compose.yaml", text=text),)


def _published(work: Work, number: int) -> str:
    host = work.options.host or LOOPBACK
    return f"{f'[{host}]' if ':' in host else host}:{work.options.port + number - 1}"


def fetching(work: Work) -> tuple[str, tuple[str, ...]]:
    """The image that fetches the weights, and the command: the engine's own where the hub's client is in it."""
    argv = fetch(work, str(checkpoint_folder(work)))
    if work.container().python and work.candidate.checkpoint.hub == "huggingface":
        return work.container().reference, ("python3", *argv)
    return UV_IMAGE, ("uv", "run", "--no-project", "--with", client(work), "python3", *argv)


def _weights(work: Work) -> Node:
    image, argv = fetching(work)
    return {
        "image": image,
        "entrypoint": argv[:1],
        "command": argv[1:],
        "user": "0:0",
        # By name alone: it is the value of the one who runs it, and a token is asked for by few models.
        "environment": ["HF_TOKEN"],
        "volumes": [{"type": "volume", "source": "weights", "target": str(MODELS)}],
        "restart": "on-failure:20",
        "security_opt": ["no-new-privileges:true"],
    }


def checkpoint_folder(work: Work) -> PurePosixPath:
    """Where the checkpoint is in a container."""
    pinned = revision(work)
    repo = work.candidate.checkpoint.repo.replace("/", "--")
    return MODELS / (repo if pinned is None else f"{repo}--{pinned}") / work.name


def _service(work: Work, number: int) -> Node:
    ranks = work.candidate.parallel.ranks
    port = work.options.port
    weights = checkpoint_folder(work)
    # The port inside is the same for every replica: a container has its own.
    each = started(work, number, weights=weights, host=EVERYWHERE, port=port, choose_devices=work.kind == "amd")
    argv = (work.container().program, *each.argv[1:])
    if work.keyed or work.is_gguf:
        script = start_script(
            folder=str(weights),
            patterns=gguf_patterns(work) if work.is_gguf else (),
            key_variable=work.behaviour.key_variable if work.keyed else None,
            key_file="/run/secrets/api-key",
        )
        argv = ("/bin/sh", "-c", script, "sh", *argv)
    fetched = work.options.model_path is None
    volume: Node = {"type": "volume", "source": "weights", "target": str(MODELS), "read_only": True}
    if not fetched:
        volume = {"type": "bind", "source": work.options.model_path, "target": str(weights), "read_only": True}
    service: dict[str, Node] = {
        "image": work.container().reference,
        "entrypoint": argv[:1],
        "command": argv[1:],
        "environment": dict(sorted(each.environment.items())),
    }
    if work.container().user is not None:
        service["user"] = work.container().user
    service |= {
        "ports": [f"{_published(work, number)}:{port}"],
        "volumes": [volume],
        "shm_size": f"{SHARED_GIB_A_RANK * ranks}gb",
        "ulimits": {"memlock": -1, "stack": 67_108_864, "nofile": 1_048_576},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": f"{STOP_SECONDS}s",
        "healthcheck": {
            "test": ["CMD", *_asks(work, port)],
            "interval": "15s",
            "timeout": "10s",
            "retries": 8,
            "start_period": f"{work.start_seconds}s",
        },
    }
    if work.keyed:
        service["secrets"] = ["api-key"]
    if fetched:
        service["depends_on"] = {"weights": {"condition": "service_completed_successfully"}}
    return service | _devices(work, number)


def _asks(work: Work, port: int) -> tuple[str, ...]:
    url = f"http://127.0.0.1:{port}{HEALTH}"
    return ("python3", "-c", ASKS_PYTHON, url) if work.container().python else ("curl", "-fsS", "-o", "/dev/null", url)


def _devices(work: Work, number: int) -> dict[str, Node]:
    if work.kind == "nvidia":
        reserved: Node = {"driver": "nvidia", "device_ids": list(work.visible(number)), "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [reserved]}}}}
    if work.kind == "amd":
        # All of them are given to the container; the variable leaves the engine its own.
        return {"devices": ["/dev/kfd", "/dev/dri"]}
    return {}


def _escaped(node: Node) -> Node:
    """``$`` stands for itself: Compose would put variables in (https://docs.docker.com/reference/compose-file/)."""
    if isinstance(node, str):
        return node.replace("$", "$$")
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_escaped(each) for each in node]
    return node
