"""A script for bash: makes the environment, fetches the weights, becomes the engine."""

from __future__ import annotations

from pathlib import PurePosixPath

from autolaunch.exporting import steps
from autolaunch.exporting.header import header
from autolaunch.exporting.values import File
from autolaunch.exporting.words import Raw, exported, lines, word
from autolaunch.exporting.work import Started, Work, gguf_patterns, started

#: Stands where the script says ``"$weights"``; replaced as a whole word before anything is written.
_WEIGHTS = PurePosixPath("/weights-of-the-script")
_NEEDS_UV = f"""\
needs_uv() {{
  if ! command -v uv >/dev/null; then
    echo "uv makes environments and fetches weights, and is not here: {steps.WHERE_UV_IS}" >&2
    exit 69
  fi
}}

"""
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def shell(work: Work) -> tuple[File, ...]:
    """``NAME.sh``."""
    name = f"{work.slug}.sh"
    replicas = work.replicas
    text = f"""\
#!/usr/bin/env bash
{header(work, "A script that serves", how(work, name), told(work))}
{settings(work)}
{prepare(work)}
{serve(work)}
case "${{1:-all}}" in
  prepare) prepare ;;
  serve) serve "${{2:-1}}" ;;
  all)
    prepare
    serve {'"${2:-1}"' if replicas > 1 else "1"}
    ;;
  *)
    echo "usage: bash $0 [prepare | serve{" [REPLICA]" if replicas > 1 else ""}]" >&2
    exit 64
    ;;
esac
"""
    return (File(name=name, text=text, mode=0o755),)


def how(work: Work, name: str) -> tuple[str, ...]:
    told = [f"  bash {name}            prepares what is not there yet, and serves"]
    told.append(f"  bash {name} prepare    environment and weights alone")
    told += [f"  bash {name} serve {number}    replica {number} of {work.replicas}" for number in replicas(work)]
    return tuple(told)


def replicas(work: Work) -> tuple[int, ...]:
    return tuple(range(1, work.replicas + 1)) if work.replicas > 1 else ()


def told(work: Work) -> tuple[str, ...]:
    found = []
    if steps.makes_environment(work):
        found.append(
            "ROOT is the folder of all it makes; ENGINE_BIN the folder of an engine's programs that are here already."
        )
    else:
        version = work.candidate.engine.version
        found.append(
            f"ROOT is the folder of all it makes. llama-server {version} has to be on the PATH, or in the folder "
            f"ENGINE_BIN: {steps.WHERE_LLAMACPP_IS}"
        )
    if work.keyed:
        found.append("API_KEY_FILE is the file with the key that clients send; it is made where there is none.")
    return tuple(found)


def settings(work: Work, root: str | None = None) -> str:
    """The variables. A value in the environment wins."""
    folder = word(work.candidate.checkpoint.repo.replace("/", "--"))
    root = root or f"${{XDG_DATA_HOME:-$HOME/.local/share}}/{work.slug}"
    text = f"""\
set -euo pipefail

root=${{ROOT:-"{root}"}}
models=$root/weights/{folder}
weights=$models/{word(work.name)}
"""
    if steps.makes_environment(work):
        text += f"engine=$root/{word(steps.environment_name(work))}\nbin=${{ENGINE_BIN:-$engine/bin}}\n"
    else:
        text += "bin=${ENGINE_BIN:-}\n"
    if work.keyed:
        default = '"$root/api-key"' if work.options.api_key_file is None else word(work.options.api_key_file)
        text += f"key_file=${{API_KEY_FILE:-}}\n[[ -n $key_file ]] || key_file={default}\n"
    return text


def prepare(work: Work) -> str:
    """The function of that name: all that needs the network."""
    inside = []
    needs_uv = steps.makes_environment(work) or work.options.model_path is None
    if steps.makes_environment(work):
        made = "".join(
            f"    {lines((Raw(_of_engine(each)) if '@engine@' in each else each for each in argv), '    ')}\n"
            for argv in steps.environment(work, "@engine@")
        )
        inside.append(f"""\
  if [[ -z ${{ENGINE_BIN:-}} && ! -e $engine/.whole ]]; then
    needs_uv
{made}    touch "$engine/.whole"
  fi
""")
    if work.options.model_path is not None:
        path = word(work.options.model_path)
        inside.append(f"""\
  if [[ ! -d {path} ]]; then
    printf '%s is no folder\\n' {path} >&2
    exit 66
  fi
  mkdir -p "${{weights%/*}}"
  ln -sfn {path} "$weights"
""")
    else:
        places = {"--local-dir=@": Raw('--local-dir="$weights"'), "@": Raw('"$weights"')}
        fetched = lines((places.get(each, each) for each in steps.weights(work, "@")), "    ")
        whole = word(steps.marker(work))
        inside.append(f"""\
  if [[ ! -e $weights/{whole} ]]; then
    needs_uv
    mkdir -p "$weights"
    {fetched}
    touch "$weights/"{whole}
  fi
""")
    if work.keyed:
        inside.append("""\
  if [[ ! -s $key_file ]]; then
    mkdir -p "${key_file%/*}"
    (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' >"$key_file")
    printf 'a key for clients is in %s\\n' "$key_file" >&2
  fi
""")
    return f"{_NEEDS_UV if needs_uv else ''}prepare() {{\n{''.join(inside)}}}\n"


def _of_engine(text: str) -> str:
    return f'"{text}"'.replace("@engine@", "$engine")


def serve(work: Work, launched: str = 'exec "$@"', *, choose_devices: bool = True) -> str:
    """The function of that name: becomes the engine of the replica that it is given."""
    branches = []
    numbers = range(1, work.replicas + 1)
    every = [_started(work, number, choose_devices=choose_devices) for number in numbers]
    shared = {name: value for name, value in every[0].environment.items() if name not in _VISIBLE}
    for number, each in zip(numbers, every, strict=True):
        own = {name: value for name, value in each.environment.items() if name not in shared}
        indent = "    " if work.replicas > 1 else "  "
        branch = f"{exported(own, indent)}{indent}set -- {lines(_in_script(each), indent)}\n"
        branches.append(f"  {number})\n{branch}    ;;\n" if work.replicas > 1 else branch)
    text = exported(shared, "  ")
    if work.replicas > 1:
        refused = f"""\
  *)
    echo "there are replicas 1 to {work.replicas}" >&2
    exit 64
    ;;
"""
        text += f'  case "$1" in\n{"".join(branches)}{refused}  esac\n'
    else:
        text += branches[0]
    if work.is_gguf:
        found = " ".join(f'"$weights"/{word(pattern)}*.gguf' for pattern in gguf_patterns(work))
        text += f"""\
  for first in {found}; do
    if [[ -f $first ]]; then break; fi
  done
  set -- "$@" --model "$first"
"""
    variable = work.behaviour.key_variable
    if work.keyed:
        text += f'  {variable}=$(<"$key_file")\n  [[ -n ${variable} ]] || exit 78\n  export {variable}\n'
    program = word(every[0].argv[0])
    return f"""\
serve() {{
  PATH=${{bin:+$bin:}}$PATH
  if ! command -v {program} >/dev/null; then
    printf '%s is not here: prepare comes first, or ENGINE_BIN names the folder of it\\n' {program} >&2
    exit 69
  fi
{text}  ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
  cd "$models"
  {launched}
}}
"""


def _started(work: Work, number: int, *, choose_devices: bool) -> Started:
    return started(
        work,
        number,
        weights=_WEIGHTS,
        host=work.host,
        port=work.options.port + number - 1,
        choose_devices=choose_devices,
    )


def _in_script(each: Started) -> tuple[str, ...]:
    return tuple(Raw('"$weights"') if token == str(_WEIGHTS) else token for token in each.argv)
