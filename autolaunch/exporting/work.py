"""What of a plan every artefact is built from: names, places, the engine's command for each replica."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Literal

from msgspec.structs import replace

from autolaunch.daemon.replicas import one_replica
from autolaunch.exporting.values import ExportOptions, Target
from autolaunch.given import PORTS, is_loopback
from autolaunch.hubs.listing import BESIDE
from engines import registry
from engines.base import Behaviour, Serving, first_replica, planned_package, visible_devices
from engines.shims import SGLANG_SERVER
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import EngineFacts, Image, Package
from selector.errors import EngineInstallError, UsageError
from selector.facts import ModelFacts
from selector.hardware import Accelerator
from selector.values import Value

Kind = Literal["nvidia", "amd", "apple", "cpu"]
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 - said to be so, and never without a key
#: Runs the hub's client, and holds that the weights are whole.
PROGRAM = Path(__file__).with_name("fetch_whole.py")
#: The kinds by the names of the devices' makers.
_KINDS: dict[str, Kind] = {"nvidia": "nvidia", "amd": "amd", "apple": "apple"}
#: Answers without a key in every engine, 200 as soon as the model is loaded (mlx-lm and mlx-vlm: as they start).
HEALTH = "/health"
#: A start is given this many times what it was predicted to take, and half an hour at least: disks differ by more.
START_FACTOR, START_SECONDS = 6, 1_800


class Work(Value, frozen=True, kw_only=True):
    """A plan on its way into an artefact.

    ``name`` is what requests ask for; ``slug`` is the same as a DNS label, for names of things. ``facts`` are the
    engine's. ``image`` is its published container image for these devices, where there is one.
    """

    to: Target
    plan: LaunchPlan
    candidate: Candidate
    model: ModelFacts
    facts: EngineFacts
    options: ExportOptions
    name: str
    slug: str
    kind: Kind
    image: Image | None

    @property
    def replicas(self) -> int:
        return self.candidate.parallel.data

    @property
    def host(self) -> str:
        """Where the engine listens on a machine of its own."""
        return self.options.host or (EVERYWHERE if self.to == "slurm" else LOOPBACK)

    @property
    def behaviour(self) -> Behaviour:
        return registry.engine(self.candidate.engine.name).behaviour

    @property
    def checks_key(self) -> bool:
        """Whether the engine can be told to ask for a key."""
        return self.behaviour.key_variable is not None

    @property
    def reachable(self) -> bool:
        """Whether others than the machine itself reach the engine."""
        return self.to in ("compose", "kubernetes") or not is_loopback(self.host)

    @property
    def keyed(self) -> bool:
        """Whether it is started with a key."""
        return self.checks_key and (self.reachable or self.options.api_key_file is not None)

    @property
    def start_seconds(self) -> int:
        """What a start may take before it counts as failed; whole minutes."""
        predicted = self.candidate.speed.load_seconds or 0.0
        return -(-int(max(START_SECONDS, START_FACTOR * predicted)) // 60) * 60

    @property
    def is_gguf(self) -> bool:
        return self.candidate.checkpoint.format == "gguf"

    @property
    def package(self) -> Package:
        """The environment that serves it.

        Raises:
            EngineInstallError: there is none that could be installed.
        """
        return planned_package(self.facts, self.candidate.engine)[1]

    def container(self) -> Image:
        """The container image, its ``reference`` complete.

        Raises:
            UsageError: there is none for this engine and these devices.
        """
        if self.image is None:
            raise UsageError(
                f"no container image of {self.facts.title} for {self.kind} devices is published by its makers",
                hint="--to shell, systemd and slurm need none; so do other engines (--engine)",
            )
        return replace(self.image, reference=self.image.reference.format(version=self.candidate.engine.version))

    def devices(self, number: int) -> tuple[Accelerator, ...]:
        """The devices of replica ``number``, counted from 1."""
        return first_replica(self.plan.hardware, one_replica(self.candidate, number))

    def visible(self, number: int) -> tuple[str, ...]:
        """What the vendor's runtime calls them: by UUID where those are known."""
        return visible_devices(self.plan.hardware, self.devices(number), launched=True)


class Started(Value, frozen=True, kw_only=True):
    """One engine's process. ``argv`` begins with the program; without ``--model`` for GGUF, whose file is looked up."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def slug(name: str) -> str:
    """``name`` as a DNS label that may begin a name of Kubernetes, at most 40 long."""
    return re.sub(r"[^a-z0-9]+", "-", f"m-{name}".lower() if not name[:1].isalpha() else name.lower())[:40].strip("-")


def kind_of(candidate: Candidate, plan: LaunchPlan) -> Kind:
    devices = first_replica(plan.hardware, candidate)
    return _KINDS[devices[0].vendor] if devices else "cpu"


def started(
    work: Work,
    number: int,
    *,
    weights: PurePosixPath,
    host: str,
    port: int,
    choose_devices: bool = True,
) -> Started:
    """The engine of replica ``number``, serving the checkpoint in ``weights``.

    ``weights`` ends with the served name: engines that answer to nothing but the string they were started with are
    started in its parent. ``choose_devices`` names the devices to the engine: not where a container or a batch system
    leaves it none but its own.
    """
    # The files were fetched before, from whatever hub, at whatever revision.
    candidate = one_replica(work.candidate, number)
    candidate = replace(candidate, checkpoint=replace(candidate.checkpoint, hub="huggingface", revision=None))
    devices = work.devices(number)
    serving = Serving(
        model=work.name if work.behaviour.names_itself_by_path else str(weights),
        served_name=work.name,
        host=host,
        port=port,
        devices=devices,
        visible=work.visible(number) if choose_devices else (),
        extra=work.options.extra,
    )
    command = registry.engine(candidate.engine.name).command(candidate, work.model, serving)
    argv = _less(command.argv, "--hf-repo") if work.is_gguf else command.argv
    if candidate.parallel.nodes > 1:
        argv = _without_ray(argv, candidate.parallel.nodes)
    if work.keyed and candidate.engine.name == "sglang":
        argv = _key_from_environment(argv)
    environment = command.env | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return Started(argv=argv, environment=environment)


def _less(argv: tuple[str, ...], option: str) -> tuple[str, ...]:
    place = argv.index(option)
    return argv[:place] + argv[place + 2 :]


def _without_ray(argv: tuple[str, ...], nodes: int) -> tuple[str, ...]:
    """vLLM's own processes across nodes: neither its wheel nor its image brings Ray (0.33).

    The rank of a node and the first node's address are the target's to add. ``vllm/config/parallel.py`` (0.33.0):
    ``nnodes`` above 1 goes with the ``mp`` executor.
    """
    place = argv.index("--distributed-executor-backend")
    return (*argv[: place + 1], "mp", "--nnodes", str(nodes), *argv[place + 2 :])


def _key_from_environment(argv: tuple[str, ...]) -> tuple[str, ...]:
    """SGLang with a key that stands in no command line: the program of ours that does it, whole."""
    _, _, code = SGLANG_SERVER.read_text(encoding="utf-8").split('"""', 2)
    first = "# SGLang's server, which takes a key on its command line only: here it comes from the environment."
    kept = (each for each in code.strip().splitlines() if not each.lstrip().startswith("#"))
    source = "".join(f"{each}\n" for each in (first, *kept))
    place = argv.index("sglang.launch_server")
    return (argv[0], "-P", "-c", source, *argv[place + 1 :])


def fetch(work: Work, folder: str) -> tuple[str, ...]:
    """What a Python is started with to fetch exactly the checkpoint's files into ``folder``, and to see to it."""
    _, _, code = PROGRAM.read_text(encoding="utf-8").split('"""', 2)
    source = "# Runs the client of the hub, then looks whether every shard is there.\n" + code.lstrip()
    return ("-c", source, folder, work.candidate.checkpoint.file_prefix or "", *_client(work, folder))


def _client(work: Work, folder: str) -> tuple[str, ...]:
    """The hub's own client."""
    checkpoint = work.candidate.checkpoint
    patterns: tuple[str, ...] = (f"{checkpoint.file_prefix}*.gguf",)
    if checkpoint.file_prefix is None:
        patterns = ("*.safetensors", *(f"*{ending}" for ending in sorted(BESIDE)))
    if checkpoint.hub == "modelscope":
        revision = () if checkpoint.revision is None else (f"--revision={checkpoint.revision}",)
        return (
            *("modelscope", "download", f"--model={checkpoint.repo}", *revision),
            *("--local_dir", folder, "--include", *patterns),
        )
    revision = () if checkpoint.revision is None else (f"--revision={checkpoint.revision}",)
    included = (f"--include={pattern}" for pattern in patterns)
    return ("hf", "download", checkpoint.repo, *revision, f"--local-dir={folder}", *included)


def gguf_patterns(work: Work) -> tuple[str, ...]:
    """Where below the checkpoint's folder its first file is, for a shell to look: what stands before ``*.gguf``."""
    prefix = work.candidate.checkpoint.file_prefix or ""
    plain = PurePosixPath(prefix).name
    # A folder that somebody named holds what it holds, perhaps without the hub's sub-folder.
    return (prefix,) if plain == prefix else (prefix, plain)


def refuse_unfit(work: Work) -> None:
    """What this target cannot be for this plan.

    Raises:
        UsageError: in a sentence, with what can.
    """
    engine, to = work.facts.title, work.to
    if work.plan.hardware.host.os == "darwin" and to != "shell":
        raise UsageError(
            f"the plan is for a Mac, where nothing runs {to}", hint="--to shell writes a script that runs there"
        )
    if work.model.generated and work.options.model_path is None:
        raise UsageError(
            f"{work.model.id} is generated by autolaunch: no hub has it to fetch from",
            hint="give the folder of its files, where the artefact runs, with --model-path",
        )
    if work.options.port + work.replicas - 1 not in PORTS:
        raise UsageError(f"{work.replicas} replicas take the ports from {work.options.port} on: there are not so many")
    machines = work.plan.hardware.nodes
    if machines > 1 and work.replicas > 1 and to not in ("kubernetes", "slurm"):
        raise UsageError(
            f"the plan's {work.replicas} replicas are of {machines} machines, and {to} is of one",
            hint="plan for one (--hardware) and run that on each; kubernetes and slurm place them by themselves",
        )
    if work.candidate.parallel.nodes > 1 and to not in ("kubernetes", "slurm"):
        raise UsageError(
            f"the plan lays one replica over {work.candidate.parallel.nodes} machines, and {to} is of one",
            hint="--to kubernetes writes a LeaderWorkerSet, --to slurm a job of several nodes",
        )
    if work.candidate.parallel.nodes > 1 and work.candidate.engine.name != "vllm":
        raise UsageError(f"{engine} over several machines is not exported", hint="--engine vllm is")
    _refuse_unequal(work)
    if to in ("compose", "kubernetes"):
        work.container()
        return
    if not work.checks_key and (work.reachable or work.options.api_key_file is not None):
        raise UsageError(
            f"{engine} checks no key, and would be open to whoever reaches {work.host}",
            hint="leave --host and --api-key-file out, and put a proxy that asks for a key before it",
        )
    if work.reachable and to == "systemd" and work.options.api_key_file is None:
        raise UsageError(
            f"--host {work.host} is open to the network, and nobody would be asked for a key",
            hint="--api-key-file FILE names the file, on that machine, with the key",
        )
    _refuse_without_package(work)


def _refuse_unequal(work: Work) -> None:
    """A job gives each of its machines as many devices."""
    parallel = work.candidate.parallel
    if parallel.nodes == 1:
        return
    home = {device.index: device.node for device in work.plan.hardware.accelerators}
    held = Counter(home[index] for index in parallel.devices[: parallel.ranks])
    if len(set(held.values())) > 1:
        from selector.nodes import node_name

        told = ", ".join(f"{count} on {node_name(work.plan.hardware, node)}" for node, count in sorted(held.items()))
        raise UsageError(
            f"the plan lays devices of one replica unequally ({told}), and a {work.to} job has as many on each machine",
            hint="--hardware 2x4xh100, for instance, plans for equal machines",
        )


def _refuse_without_package(work: Work) -> None:
    if work.candidate.engine.name == "llamacpp":
        return  # its program is looked for on the machine
    try:
        package = work.package
    except EngineInstallError:
        package = None
    if package is None or work.kind not in package.devices:
        raise UsageError(
            f"there is no published package of {work.facts.title} {work.candidate.engine.version} "
            f"for {work.kind} devices",
            hint="--to compose and kubernetes use its container image" if work.image else None,
        )
