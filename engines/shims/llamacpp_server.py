"""llama.cpp's server out of the xllamacpp wheel, started like ``llama-server``.

    python -P llamacpp_server.py --model FILE.gguf [OPTIONS OF llama-server]

Run by its path, with the interpreter of the engine's environment: it imports the engine and nothing of autolaunch,
and nothing imports it. The wheel takes llama.cpp's parameters from Python and has no command line. The options are
llama-server's own, by their long names; those that are not below are refused, as an unknown one would be there.

``LLAMA_API_KEY`` is the server's key, as llama-server takes it from its environment.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any


def on_off(text: str) -> bool:
    """As llama.cpp reads a switch.

    Raises:
        ValueError: it is none.
    """
    if text.lower() not in ("on", "1", "true", "enabled", "off", "0", "false", "disabled"):
        raise ValueError(text)
    return text.lower() in ("on", "1", "true", "enabled")


def _plain(field: str) -> Callable[[Any, Any], None]:
    return lambda parameters, value: setattr(parameters, field, value)


def _enumerated(field: str, enumeration: str, prefix: str) -> Callable[[Any, Any], None]:
    """Sets a field to the member of an enumeration of the engine that is called so."""

    def put(parameters: Any, value: str) -> None:
        members = getattr(importlib.import_module("xllamacpp"), enumeration)
        found = {str(each.name).removeprefix(prefix).lower().replace("_", "+"): each for each in members}
        if value.lower() not in found:
            raise ValueError(f"{value}: choose from {', '.join(sorted(found))}")
        setattr(parameters, field, found[value.lower()])

    return put


def _flash_attention(parameters: Any, value: str) -> None:
    word = {"on": "enabled", "off": "disabled"}.get(value.lower(), value)
    _enumerated("flash_attn_type", "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_")(parameters, word)


def _shares(parameters: Any, value: str) -> None:
    """``3,1`` of the tensors, device after device."""
    given = [float(share) for share in value.split(",")]
    parameters.tensor_split = [*given, *parameters.tensor_split[len(given) :]]


def _path(parameters: Any, value: str) -> None:
    parameters.model.path = value


def _threads(parameters: Any, value: int) -> None:
    parameters.cpuparams.n_threads = value


#: Each option with the type of its value (none: a switch) and what it does to the engine's parameters.
OPTIONS: dict[str, tuple[Callable[[str], Any] | None, Callable[[Any, Any], None]]] = {
    "--model": (str, _path),
    "--alias": (str, lambda parameters, value: setattr(parameters, "model_alias", {value})),
    "--host": (str, lambda parameters, value: setattr(parameters, "hostnames", [value])),
    "--port": (int, _plain("port")),
    "--ctx-size": (int, _plain("n_ctx")),
    "--parallel": (int, _plain("n_parallel")),
    "--predict": (int, _plain("n_predict")),
    "--batch-size": (int, _plain("n_batch")),
    "--ubatch-size": (int, _plain("n_ubatch")),
    "--threads": (int, _threads),
    "--threads-http": (int, _plain("n_threads_http")),
    "--timeout": (int, _plain("timeout_read")),
    "--gpu-layers": (int, _plain("n_gpu_layers")),
    "--n-gpu-layers": (int, _plain("n_gpu_layers")),
    "--cache-ram": (int, _plain("cache_ram_mib")),
    "--cache-type-k": (str, _enumerated("cache_type_k", "ggml_type", "GGML_TYPE_")),
    "--cache-type-v": (str, _enumerated("cache_type_v", "ggml_type", "GGML_TYPE_")),
    "--flash-attn": (str, _flash_attention),
    "--load-mode": (str, _enumerated("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE_")),
    "--split-mode": (str, _enumerated("split_mode", "llama_split_mode", "LLAMA_SPLIT_MODE_")),
    "--tensor-split": (str, _shares),
    "--override-tensor": (str, _plain("tensor_buft_overrides")),
    "--fit": (on_off, _plain("fit_params")),
    "--seed": (int, lambda parameters, value: setattr(parameters.sampling, "seed", value)),
    "--cors-origins": (str, _plain("cors_origins")),
    "--chat-template": (str, _plain("chat_template")),
    "--verbosity": (int, _plain("verbosity")),
    "--kv-unified": (None, _plain("kv_unified")),
    "--jinja": (None, _plain("use_jinja")),
    "--metrics": (None, _plain("endpoint_metrics")),
    "--check-tensors": (None, _plain("check_tensors")),
    "--context-shift": (None, _plain("ctx_shift")),
    "--offline": (None, _plain("offline")),
    "--no-webui": (None, lambda parameters, _: setattr(parameters, "ui", False)),
    "--no-slots": (None, lambda parameters, _: setattr(parameters, "endpoint_slots", False)),
    "--no-warmup": (None, lambda parameters, _: setattr(parameters, "warmup", False)),
    "--no-cont-batching": (None, lambda parameters, _: setattr(parameters, "cont_batching", False)),
}


def parser() -> argparse.ArgumentParser:
    """The options that this start has, without abbreviations."""
    made = argparse.ArgumentParser(prog="llamacpp_server", allow_abbrev=False)
    for name, (kind, _) in OPTIONS.items():
        if kind is None:
            made.add_argument(name, action="store_true", default=None)
        else:
            made.add_argument(name, type=kind, required=name == "--model")
    return made


def apply(parameters: Any, argv: Sequence[str], key: str | None) -> None:
    """Sets the engine's parameters as the options say. Wrong ones end the program with exit code 2."""
    made = parser()
    given = vars(made.parse_args(argv))
    for name, (_, put) in OPTIONS.items():
        value = given[name.lstrip("-").replace("-", "_")]
        if value is None:
            continue
        try:
            put(parameters, value)
        except (TypeError, ValueError) as error:
            made.error(f"argument {name}: {error}")
    if key:
        parameters.api_keys = [key]


def main() -> None:
    engine: Any = importlib.import_module("xllamacpp")
    parameters = engine.CommonParams()
    apply(parameters, sys.argv[1:], os.environ.pop("LLAMA_API_KEY", None))
    asked_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_end.set())
    try:
        server = engine.Server(parameters)  # it serves from threads of its own once the model is loaded
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"server is listening on {server.listening_address}\n")
    sys.stdout.flush()
    asked_to_end.wait()
    # Its own destructor waits for open connections without a bound.
    os._exit(0)


if __name__ == "__main__":
    main()
