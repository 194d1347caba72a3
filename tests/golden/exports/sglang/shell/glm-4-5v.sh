#!/usr/bin/env bash
# A script that serves glm-4.5v. Made by autolaunch VERSION; it runs without it.
#
# Model       GLM-4.5V, zai-org/GLM-4.5V (BF16), its newest revision (--revision pins one)
# Engine      SGLang 0.5.23, tensor parallel 4
# Machine     4 x NVIDIA A100-SXM4-80GB
# Memory      50.3 GiB weights and 14.1 GiB KV cache in 80.0 GiB a device (derived)
# Context     65,536 tokens a request, 322,023 in the KV cache
# Speed       85 tokens/s for one request, 1,753 with 214 requests at a time (derived)
# Load        227 s predicted; 30 min are allowed
#
# How it is run:
#   bash glm-4-5v.sh            prepares what is not there yet, and serves
#   bash glm-4-5v.sh prepare    environment and weights alone
#
# ROOT is the folder of all it makes; ENGINE_BIN the folder of an engine's programs that are here
# already.
# It does not try again with less memory when the engine runs out of it, end an engine that answers
# /health and generates nothing, keep keys of clients apart, or compare what was predicted with what
# is measured: autolaunch does, where it serves itself.

set -euo pipefail

root=${ROOT:-"${XDG_DATA_HOME:-$HOME/.local/share}/glm-4-5v"}
models=$root/weights/zai-org--GLM-4.5V
weights=$models/glm-4.5v
engine=$root/sglang-0.5.23
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
      --torch-backend auto sglang==0.5.23
    touch "$engine/.whole"
  fi
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
' "$weights" '' hf download zai-org/GLM-4.5V \
      --local-dir="$weights" \
      '--include=*.safetensors' \
      '--include=*.jinja' \
      '--include=*.json' \
      '--include=*.model' \
      '--include=*.txt'
    touch "$weights/".whole-main
  fi
}

serve() {
  PATH=${bin:+$bin:}$PATH
  if ! command -v python >/dev/null; then
    printf '%s is not here: prepare comes first, or ENGINE_BIN names the folder of it\n' python >&2
    exit 69
  fi
  export CUDA_DEVICE_ORDER=PCI_BUS_ID
  export GLOO_SOCKET_IFNAME=lo
  export HF_HUB_DISABLE_TELEMETRY=1
  export HF_HUB_OFFLINE=1
  export CUDA_VISIBLE_DEVICES=0,1,2,3
  set -- python -m sglang.launch_server \
    --model-path "$weights" \
    --served-model-name glm-4.5v \
    --host 127.0.0.1 \
    --port 8000 \
    --tp-size 4 \
    --context-length 65536 \
    --max-running-requests 512 \
    --chunked-prefill-size 8192 \
    --mem-fraction-static 0.825 \
    --tool-call-parser glm45 \
    --reasoning-parser glm45 \
    --random-seed 0
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
