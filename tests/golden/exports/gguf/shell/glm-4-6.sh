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
    uv tool run \
      --from 'huggingface_hub>=1,<2' hf download unsloth/GLM-4.6-GGUF \
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
