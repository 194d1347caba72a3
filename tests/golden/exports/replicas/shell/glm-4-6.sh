#!/usr/bin/env bash
# A script that serves glm-4.6. Made by autolaunch VERSION; it runs without it.
#
# Model       GLM-4.6, zai-org/GLM-4.6-FP8 (FP8), revision 0123456789abcdef0123456789abcdef01234567
# Engine      vLLM 0.33.0, tensor parallel 4, 2 replicas
# Machine     8 x NVIDIA H200
# Memory      83.1 GiB weights and 37.4 GiB KV cache in 140.4 GiB a device (derived)
# Context     202,752 tokens a request, 425,872 in the KV cache
# Speed       59 tokens/s for one request, 4,666 with 566 requests at a time (derived)
# Load        279 s predicted; 30 min are allowed
#
# How it is run:
#   bash glm-4-6.sh            prepares what is not there yet, and serves
#   bash glm-4-6.sh prepare    environment and weights alone
#   bash glm-4-6.sh serve 1    replica 1 of 2
#   bash glm-4-6.sh serve 2    replica 2 of 2
#
# ROOT is the folder of all it makes; ENGINE_BIN the folder of an engine's programs that are here
# already.
# Its 2 replicas have a port each; nothing here divides requests among them. Put a load balancer
# before them (least connections), or let autolaunch serve, which does.
# It does not try again with less memory when the engine runs out of it, end an engine that answers
# /health and generates nothing, keep keys of clients apart, or compare what was predicted with what
# is measured: autolaunch does, where it serves itself.

set -euo pipefail

root=${ROOT:-"${XDG_DATA_HOME:-$HOME/.local/share}/glm-4-6"}
models=$root/weights/zai-org--GLM-4.6-FP8
weights=$models/glm-4.6
engine=$root/vllm-0.33.0
bin=${ENGINE_BIN:-$engine/bin}

needs_uv() {
  if ! command -v uv >/dev/null; then
    echo "uv makes environments and fetches weights, and is not here: https://docs.astral.sh/uv/getting-started/installation/" >&2
    exit 69
  fi
}

prepare() {
  if [[ -z ${ENGINE_BIN:-} && ! -e $engine/.whole ]]; then
    needs_uv
    uv venv \
      --clear \
      --python 3.12 "$engine"
    uv pip install \
      --python "$engine" \
      --torch-backend auto vllm==0.33.0
    touch "$engine/.whole"
  fi
  if [[ ! -e $weights/.whole-0123456789abcdef0123456789abcdef01234567 ]]; then
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
' "$weights" '' hf download zai-org/GLM-4.6-FP8 \
      --revision=0123456789abcdef0123456789abcdef01234567 \
      --local-dir="$weights" \
      '--include=*.safetensors' \
      '--include=*.jinja' \
      '--include=*.json' \
      '--include=*.model' \
      '--include=*.txt'
    touch "$weights/".whole-0123456789abcdef0123456789abcdef01234567
  fi
}

serve() {
  PATH=${bin:+$bin:}$PATH
  if ! command -v vllm >/dev/null; then
    printf '%s is not here: prepare comes first, or ENGINE_BIN names the folder of it\n' vllm >&2
    exit 69
  fi
  export CUDA_DEVICE_ORDER=PCI_BUS_ID
  export GLOO_SOCKET_IFNAME=lo
  export HF_HUB_DISABLE_TELEMETRY=1
  export HF_HUB_OFFLINE=1
  export VLLM_NO_USAGE_STATS=1
  case "$1" in
  1)
    export CUDA_VISIBLE_DEVICES=0,1,2,3
    set -- vllm serve "$weights" \
      --served-model-name glm-4.6 \
      --host 127.0.0.1 \
      --port 8000 \
      --tensor-parallel-size 4 \
      --max-model-len 202752 \
      --max-num-seqs 1024 \
      --max-num-batched-tokens 8192 \
      --gpu-memory-utilization 0.92 \
      --enable-auto-tool-choice \
      --tool-call-parser glm45 \
      --reasoning-parser glm45
    ;;
  2)
    export CUDA_VISIBLE_DEVICES=4,5,6,7
    set -- vllm serve "$weights" \
      --served-model-name glm-4.6 \
      --host 127.0.0.1 \
      --port 8001 \
      --tensor-parallel-size 4 \
      --max-model-len 202752 \
      --max-num-seqs 1024 \
      --max-num-batched-tokens 8192 \
      --gpu-memory-utilization 0.92 \
      --enable-auto-tool-choice \
      --tool-call-parser glm45 \
      --reasoning-parser glm45
    ;;
  *)
    echo "there are replicas 1 to 2" >&2
    exit 64
    ;;
  esac
  ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
  cd "$models"
  exec "$@"
}

case "${1:-all}" in
  prepare) prepare ;;
  serve) serve "${2:-1}" ;;
  all)
    prepare
    serve "${2:-1}"
    ;;
  *)
    echo "usage: bash $0 [prepare | serve [REPLICA]]" >&2
    exit 64
    ;;
esac
