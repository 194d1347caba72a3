"""llama.cpp: ``llama-server``, or the same server out of the xllamacpp wheel."""

from __future__ import annotations

from engines.base import Behaviour, Engine, Serving, common_environment
from engines.options import checked_extra
from engines.shims import LLAMACPP_SERVER
from selector.contract import Candidate, Command
from selector.facts import ModelFacts
from selector.versions import in_versions
from selector.weights import stage_layers

#: The package of ``profiles/engines`` whose environment holds the wheel.
WHEEL = "llamacpp"
#: More layers than any model has: all of them on the devices.
ALL_LAYERS = 999
#: The first build that is known to take ``--load-mode`` (https://github.com/ggml-org/llama.cpp/issues/26110, with PR
#: 20834); ``--no-mmap``, which it replaces, was taken out later.
LOAD_MODE_SINCE = "b10114"
#: Its default lets every page of a browser read answers; the option was read in the source of this build.
ORIGINS_SINCE = "b11434"


class Llamacpp(Engine):
    """One process that spreads whole layers over the devices; its KV cache is one pool for all slots."""

    name = "llamacpp"
    behaviour = Behaviour(key_variable="LLAMA_API_KEY")

    def command(self, candidate: Candidate, model: ModelFacts, serving: Serving) -> Command:
        # The chat template and its parsers come with the file (--jinja).
        checkpoint, limits = candidate.checkpoint, candidate.limits
        argv = _program(candidate, serving)
        if serving.executable_directory is None:
            argv += ["--hf-repo", f"{serving.model}:{checkpoint.quantization}"]
        else:
            argv += ["--model", serving.model]
        argv += ["--alias", serving.served_name, "--host", serving.host, "--port", str(serving.port)]
        argv += ["--ctx-size", str(candidate.memory.kv_cache_tokens), "--parallel", str(limits.max_sequences)]
        argv += ["--kv-unified", "--jinja", "--no-webui", "--no-slots"]  # nobody reads the prompts of others
        if in_versions(candidate.engine.version, ORIGINS_SINCE, None):
            argv += ["--cors-origins", f"http://{serving.host}:{serving.port}"]
        argv += _placement(candidate, model)
        if serving.executable_directory is not None:
            argv += ["--verbosity", "4"]  # below it the sizes of weights and KV cache are not told
        argv += checked_extra(serving.extra, engine="llamacpp")
        return Command(argv=tuple(argv), env=common_environment(candidate, serving))


def _program(candidate: Candidate, serving: Serving) -> list[str]:
    """The environment that we make holds the server in a wheel, which takes no command line of its own."""
    if serving.executable_directory is None or candidate.engine.package != WHEEL:
        return [serving.executable("llama-server")]
    return [serving.executable("python"), "-P", str(LLAMACPP_SERVER)]


def _placement(candidate: Candidate, model: ModelFacts) -> tuple[str, ...]:
    """What lies where. Threads are left to llama-server, whose own number is that of the physical cores."""
    parallel, limits, layers = candidate.parallel, candidate.limits, model.architecture.num_hidden_layers
    if not parallel.devices:
        return ("--n-gpu-layers", "0")
    on_devices = layers if limits.gpu_layers is None else limits.gpu_layers
    # It counts the MTP layer, which it does not load, and the output head among the layers, both after the last one.
    after = model.architecture.num_nextn_predict_layers + 1
    argv: tuple[str, ...] = (
        "--n-gpu-layers",
        str(ALL_LAYERS if limits.gpu_layers is None else limits.gpu_layers + after),
    )
    if parallel.pipeline > 1:
        # Its own split goes by free memory, and takes layers without their experts for as heavy as whole ones
        # (https://github.com/ggml-org/llama.cpp/issues/15136).
        dealt = limits.device_layers or stage_layers(on_devices, parallel.pipeline, "even")
        argv += ("--split-mode", "layer", "--tensor-split", ",".join(map(str, (*dealt[:-1], dealt[-1] + after))))
    if not limits.cpu_expert_layers:
        return argv
    # Counted from the first layer of all: the dense ones have no experts, and count.
    moved = model.architecture.first_k_dense_replace + limits.cpu_expert_layers
    argv += ("--n-cpu-moe", str(moved))
    # A prompt copies those experts to the device once a batch: 512 tokens would copy four times as often as 2048.
    argv += ("--ubatch-size", str(limits.batched_tokens))
    # Read into pinned memory and not mapped: the copies are quicker, and llama-server itself advises it there.
    mapped = in_versions(candidate.engine.version, None, LOAD_MODE_SINCE)
    return (*argv, "--no-mmap") if mapped else (*argv, "--load-mode", "none")
