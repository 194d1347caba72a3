"""How an engine's environment and the weights come to a machine: the commands, token by token."""

from __future__ import annotations

import re

from autolaunch.exporting.work import Work, fetch
from engines.environments.requirements import holds_on

#: The Python of the environment: every engine of ``profiles/engines`` publishes wheels for it.
PYTHON = "3.12"
#: Where the hubs' clients come from. The first major version of the hub's with a command ``hf`` of this form is 1.
HUB_CLIENT, MODELSCOPE_CLIENT = "huggingface_hub>=1,<2", "modelscope>=1.30"
WHERE_LLAMACPP_IS = "https://github.com/ggml-org/llama.cpp/blob/master/docs/install.md"
WHERE_UV_IS = "https://docs.astral.sh/uv/getting-started/installation/"


def makes_environment(work: Work) -> bool:
    """Whether the engine comes as wheels: llama.cpp's own server does not."""
    return work.candidate.engine.name != "llamacpp"


def environment_name(work: Work) -> str:
    """A folder's name that changes with what would be in it."""
    return f"{work.candidate.engine.package}-{work.candidate.engine.version}"


def environment(work: Work, folder: str) -> tuple[tuple[str, ...], ...]:
    """The commands that make the engine's environment in ``folder``; each can be run again."""
    if not makes_environment(work):
        return ()
    package = work.package
    made: tuple[tuple[str, ...], ...] = (("uv", "venv", "--clear", "--python", PYTHON, folder),)
    overrides: tuple[str, ...] = ()
    if package.excludes:
        # A requirement that never holds takes a distribution out, whoever asks for it.
        file = f"{folder}/excludes.txt"
        script = 'file=$1; shift; printf "%s\\n" "$@" >"$file"'
        unwanted = (f'{each} ; python_version < "0"' for each in package.excludes)
        made += (("/bin/sh", "-c", script, "sh", file, *unwanted),)
        overrides = ("--overrides", file)
    platform = work.plan.hardware.host.os
    requirements = (each.partition(";")[0].strip() for each in package.requirements if holds_on(each, platform))
    backend: tuple[str, ...] = ()
    if package.torch_backend:
        # A job is prepared where no driver is, perhaps: what uv would take there is PyTorch for CPUs.
        chosen = "cpu" if work.kind == "cpu" else None if work.to == "slurm" else "auto"
        backend = () if chosen is None else ("--torch-backend", chosen)
    return (*made, ("uv", "pip", "install", "--python", folder, *backend, *overrides, *requirements))


def client(work: Work) -> str:
    """The requirement of the hub's client."""
    return MODELSCOPE_CLIENT if work.candidate.checkpoint.hub == "modelscope" else HUB_CLIENT


def weights(work: Work, folder: str) -> tuple[str, ...]:
    """The command that fetches the weights into ``folder``, by the hub's client in an environment of its own."""
    return ("uv", "run", "--no-project", "--python", PYTHON, "--with", client(work), "python", *fetch(work, folder))


def marker(work: Work) -> str:
    """The name of the file that says that the weights came whole."""
    return f".whole-{revision(work) or 'main'}"


def revision(work: Work) -> str | None:
    """The revision that is pinned, as a part of names."""
    pinned = work.candidate.checkpoint.revision
    return None if pinned is None else re.sub(r"[^A-Za-z0-9._-]", "-", pinned)
