#!/usr/bin/env bash
# A script that serves glm-4.6. Made by autolaunch VERSION; it runs without it.
#
# Model       GLM-4.6, unsloth/GLM-4.6-GGUF (UD-Q3_K_XL), its newest revision (--revision pins one)
# Engine      llama.cpp (llama-server) b11549, one device, experts of 88 layers in main memory
# Machine     1 x NVIDIA GeForce RTX 4090
# Memory      8.3 GiB weights and 11.5 GiB KV cache in 24.0 GiB a device (assumed)
# Context     32,768 tokens a request, 32,768 in the KV cache
# Speed       6 tokens/s for one request, 6 with 4 requests at a time (assumed)
# Load        89 s predicted; 30 min are allowed
#
# How it is run:
#   bash glm-4-6.sh            prepares what is not there yet, and serves
#   bash glm-4-6.sh prepare    environment and weights alone
#
# ROOT is the folder of all it makes. llama-server b11549 has to be on the PATH, or in the folder
# ENGINE_BIN: https://github.com/ggml-org/llama.cpp/blob/master/docs/install.md
# API_KEY_FILE is the file with the key that clients send; it is made where there is none.
# It does not try again with less memory when the engine runs out of it, end an engine that answers
# /health and generates nothing, keep keys of clients apart, or compare what was predicted with what
# is measured: autolaunch does, where it serves itself.

set -euo pipefail

root=${ROOT:-"${XDG_DATA_HOME:-$HOME/.local/share}/glm-4-6"}
models=$root/weights/unsloth--GLM-4.6-GGUF
weights=$models/glm-4.6
bin=${ENGINE_BIN:-}
key_file=${API_KEY_FILE:-}
[[ -n $key_file ]] || key_file=/etc/glm/key

needs_uv() {
  if ! command -v uv >/dev/null; then
    echo "uv makes environments and fetches weights, and is not here: https://docs.astral.sh/uv/getting-started/installation/" >&2
    exit 69
  fi
}

prepare() {
  if [[ ! -e $weights/.whole-main ]]; then
    needs_uv
    mkdir -p "$weights"
    uv run \
      --no-project \
      --python 3.12 \
      --with 'huggingface_hub>=1,<2' python -c '# Runs the client of the hub, then looks whether every shard is there.
import json
import pathlib
import re
import subprocess
import sys

PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.(safetensors|gguf)")


def expected_bytes(path: pathlib.Path) -> int:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(header_bytes, 100_000_000)))
    ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
    return 8 + header_bytes + max(ends, default=0)


def wrong(folder: pathlib.Path, prefix: str) -> "str | None":
    pattern = f"{prefix}*.gguf" if prefix else "*.safetensors"
    found = {str(path.relative_to(folder)) for path in folder.glob(pattern)}
    wanted = set(found)
    for name in found:
        part = PART.fullmatch(name)
        if part:
            count = int(part[2])
            wanted |= {f"{part[1]}-{number:05d}-of-{count:05d}.{part[3]}" for number in range(1, count + 1)}
    index = folder / "model.safetensors.index.json"
    if not prefix and index.is_file():
        wanted |= set(json.loads(index.read_text())["weight_map"].values())
    missing = sorted(wanted - found)
    if missing or not found:
        return f"{missing[0] if missing else pattern} is missing"
    if not prefix and not (folder / "config.json").is_file():
        return "config.json is missing"
    for each in () if prefix else sorted(found):
        if expected_bytes(folder / each) != (folder / each).stat().st_size:
            return f"{each} is not as long as it says"
    return None


def main() -> int:
    folder, prefix, *client = sys.argv[1:]
    status = subprocess.run(client, check=False).returncode
    if status:
        return status
    try:
        found = wrong(pathlib.Path(folder), prefix)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"it cannot be read: {error}"
    if found is not None:
        sys.stderr.write(f"the weights in {folder} are not whole: {found}\n")
    return 0 if found is None else 75


if __name__ == "__main__":
    sys.exit(main())
' "$weights" UD-Q3_K_XL/GLM-4.6-UD-Q3_K_XL hf download unsloth/GLM-4.6-GGUF \
      --local-dir="$weights" \
      '--include=UD-Q3_K_XL/GLM-4.6-UD-Q3_K_XL*.gguf'
    touch "$weights/".whole-main
  fi
  if [[ ! -s $key_file ]]; then
    mkdir -p "${key_file%/*}"
    (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$key_file")
    printf 'a key for clients is in %s\n' "$key_file" >&2
  fi
}

serve() {
  PATH=${bin:+$bin:}$PATH
  if ! command -v llama-server >/dev/null; then
    printf '%s is not here: prepare comes first, or ENGINE_BIN names the folder of it\n' llama-server >&2
    exit 69
  fi
  export CUDA_DEVICE_ORDER=PCI_BUS_ID
  export HF_HUB_DISABLE_TELEMETRY=1
  export HF_HUB_OFFLINE=1
  export CUDA_VISIBLE_DEVICES=0
  set -- llama-server \
    --alias glm-4.6 \
    --host 192.0.2.7 \
    --port 8000 \
    --ctx-size 32768 \
    --parallel 4 \
    --kv-unified \
    --jinja \
    --no-webui \
    --no-slots \
    --cors-origins http://192.0.2.7:8000 \
    --n-gpu-layers 999 \
    --n-cpu-moe 91 \
    --ubatch-size 2048 \
    --load-mode none
  for first in "$weights"/UD-Q3_K_XL/GLM-4.6-UD-Q3_K_XL*.gguf "$weights"/GLM-4.6-UD-Q3_K_XL*.gguf; do
    if [[ -f $first ]]; then break; fi
  done
  set -- "$@" --model "$first"
  LLAMA_API_KEY=$(<"$key_file")
  [[ -n $LLAMA_API_KEY ]] || exit 78
  export LLAMA_API_KEY
  ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
  cd "$models"
  exec "$@"
}

case "${1:-all}" in
  prepare) prepare ;;
  serve) serve "${2:-1}" ;;
  all)
    prepare
    serve 1
    ;;
  *)
    echo "usage: bash $0 [prepare | serve]" >&2
    exit 64
    ;;
esac
