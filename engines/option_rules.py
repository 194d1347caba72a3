"""Which of an engine's options autolaunch does not hand on, and why: data for :mod:`engines.options`.

*Owned* options carry out the plan: given twice they would make it a lie. Beside each stands autolaunch's own option of
that meaning, if there is one. *Dangerous* ones run code that the user did not install, open files or ports, or let a
web page in. Everything else is the user's good right. The names are those of the recorded parsers
(``profiles/flags``), aliases with them; a test holds that no alias was forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from selector.facts import EngineName
from selector.values import Value

_CODE = "it would run code that neither autolaunch nor the engine brought"
_PAGES = "it would let pages in a browser read answers"
_PORT = "it would open another port, which asks for no key"
_FILES = "it would let a request read files of this machine"
_TOOLS = "it would let a request run tools on this machine"


class Rules(Value, frozen=True, kw_only=True):
    """``owned`` maps to autolaunch's own option (``None``: none), ``dangerous`` to what would happen.

    ``nested`` are keys within an option's value that run code; ``free`` are the user's, although shortened owned ones
    could be spelled like them. ``joins_short`` engines read ``-t 8`` as ``-tp 8`` and ``-n4`` as ``-n 4``, as argparse
    does.
    """

    owned: Mapping[str, str | None] = msgspec.field(default_factory=dict)
    dangerous: Mapping[str, str] = msgspec.field(default_factory=dict)
    free: frozenset[str] = frozenset()
    nested: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    joins_short: bool = False


def _all(names: str, value: str | None) -> dict[str, str | None]:
    return dict.fromkeys(names.split(), value)


def _each(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


#: What no engine is given, whatever it calls itself.
EVERYWHERE = Rules(dangerous=_each("--trust-remote-code", "it would run code from the checkpoint"))

_VLLM = Rules(
    owned={
        **_all("--model", "MODEL or --repo"),
        **_all("--revision --code-revision --tokenizer-revision", "--revision"),
        **_all("--hf-token", "HF_TOKEN in the environment, which autolaunch fetches with"),
        **_all("--quantization -q --quantization-config", "--quantization"),
        **_all("--tensor-parallel-size -tp", "--tensor-parallel"),
        **_all("--pipeline-parallel-size -pp", "--pipeline-parallel"),
        **_all("--data-parallel-size -dp", "--data-parallel"),
        **_all("--enable-expert-parallel -ep", "--expert-parallel"),
        **_all("--max-model-len", "--context"),
        **_all("--max-num-seqs", "--max-sequences"),
        **_all("--gpu-memory-utilization --device-memory-utilization", "--memory-utilization"),
        **_all("--kv-cache-memory-bytes --num-gpu-blocks-override", "--memory-utilization"),
        **_all("--kv-cache-dtype", "--kv-cache-dtype"),
        **_all("--speculative-config -sc --spec-method --spec-model --spec-tokens", "--speculative"),
        **_all("--enforce-eager", "--eager"),
        **_all("--device-ids", "--gpus"),
        **_all("--host", "--host"),
        **_all("--port", "--port"),
        **_all(
            "--served-model-name --config --api-key --max-num-batched-tokens --dtype --distributed-executor-backend",
            None,
        ),
        **_all("--prefill-context-parallel-size -pcp --decode-context-parallel-size -dcp", None),
        **_all("--data-parallel-rank -dpn --data-parallel-start-rank -dpr --data-parallel-size-local -dpl", None),
        **_all("--data-parallel-address -dpa --data-parallel-rpc-port -dpp --data-parallel-backend -dpb", None),
        **_all("--data-parallel-hybrid-lb -dph --data-parallel-external-lb -dpe", None),
        **_all("--data-parallel-multi-port-external-lb -dpm --data-parallel-supervisor-port", None),
        **_all("--master-addr --master-port --nnodes -n --node-rank -r --headless", None),
        **_all("--uds --root-path --ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-cert-reqs --ssl-ciphers", None),
        **_all("--enable-ssl-refresh --hf-config-path", None),
    },
    dangerous={
        **_each("--middleware --tool-parser-plugin --reasoning-parser-plugin --logits-processors", _CODE),
        **_each("--io-processor-plugin --worker-cls --worker-extension-cls --scheduler-cls", _CODE),
        **_each("--model-class-overrides --logging-config --log-config-file", _CODE),
        **_each("--kv-transfer-config --ec-transfer-config", _CODE),
        **_each(
            "--trust-request-chat-template --enable-prompt-embeds --disable-prompt-embeds",
            "it would run or read what a request brings",
        ),
        **_each("--load-format --model-loader-extra-config", "the plan's checkpoint is in safetensors"),
        **_each("--allowed-local-media-path", _FILES),
        **_each("--tool-server", _TOOLS),
        **_each("--kv-events-config --weight-transfer-config --grpc --grpc-port", _PORT),
        **_each("--allowed-origins --allowed-methods --allowed-headers --allow-credentials", _PAGES),
    },
    free=frozenset({"--tokenizer", "--reasoning-parser", "-dc"}),
    nested={
        "--structured-outputs-config": ("reasoning_parser_plugin",),
        "--compilation-config": ("backend", "inductor_compile_config", "inductor_passes", "splitting_ops"),
        "-cc": ("backend", "inductor_compile_config", "inductor_passes", "splitting_ops"),
        "--hf-overrides": ("auto_map", "architectures", "model_type", "quantization_config"),
    },
    joins_short=True,
)

_SGLANG = Rules(
    owned={
        **_all("--model-path --model", "MODEL or --repo"),
        **_all("--revision", "--revision"),
        **_all("--quantization", "--quantization"),
        **_all("--tp-size --tensor-parallel-size", "--tensor-parallel"),
        **_all("--pp-size --pipeline-parallel-size", "--pipeline-parallel"),
        **_all("--dp-size --data-parallel-size", "--data-parallel"),
        **_all("--ep-size --expert-parallel-size --ep", "--expert-parallel"),
        **_all("--context-length", "--context"),
        **_all("--max-running-requests", "--max-sequences"),
        **_all("--mem-fraction-static --max-total-tokens", "--memory-utilization"),
        **_all("--kv-cache-dtype", "--kv-cache-dtype"),
        **_all("--speculative-algorithm --speculative-draft-model-path --speculative-draft-model", "--speculative"),
        **_all("--speculative-draft-model-revision --speculative-draft-load-format", "--speculative"),
        **_all("--speculative-num-steps --speculative-eagle-topk --speculative-num-draft-tokens", "--speculative"),
        **_all("--disable-cuda-graph --cuda-graph-config --cuda-graph-backend-decode", "--eager"),
        **_all("--cuda-graph-backend-prefill --disable-decode-cuda-graph --disable-prefill-cuda-graph", "--eager"),
        **_all("--base-gpu-id --gpu-id-step", "--gpus"),
        **_all("--host", "--host"),
        **_all("--port", "--port"),
        **_all("--served-model-name --config --api-key --admin-api-key --chunked-prefill-size --dtype --device", None),
        **_all("--attn-dp-size --attention-data-parallel-size --attn-cp-size --attention-context-parallel-size", None),
        **_all("--moe-dp-size --moe-data-parallel-size --dcp-size --decode-context-parallel-size --dwdp-size", None),
        **_all("--enable-dp-attention --enable-prefill-cp --use-ray --nnodes --node-rank", None),
        **_all("--dist-init-addr --nccl-init-addr --fastapi-root-path --encoder-only", None),
        **_all("--ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-keyfile-password --enable-ssl-refresh", None),
        **_all("--delete-ckpt-after-loading", None),
    },
    dangerous={
        **_each(
            "--custom-weight-loader --forward-hooks --enable-custom-logit-processor --sidecar --sidecar-args", _CODE
        ),
        **_each("--warmups --lmcache-config-file --hicache-storage-backend-extra-config", _CODE),
        **_each("--tool-server", _TOOLS),
        **_each("--grpc-port --grpc-mode --smg-grpc-mode --grpc-http-sidecar-port --smg-http-sidecar-port", _PORT),
        **_each("--engine-info-bootstrap-port --disaggregation-bootstrap-port --kv-events-config", _PORT),
        **_each("--load-publish-endpoint --decoupled-spec-bind-endpoint", _PORT),
        **_each("--gated-launch-port --encoder-bootstrap-port --nccl-port --disaggregation-mode", _PORT),
        **_each("--remote-instance-weight-loader-send-weights-group-ports", _PORT),
        **_each("--modelopt-checkpoint-restore-path --load-format", "the plan's checkpoint is in safetensors"),
        **_each("--remote-instance-weight-loader-start-seed-via-transfer-engine", _PORT),
    },
    free=frozenset({"--hicache-storage-backend"}),
)

_MLX = Rules(
    owned={
        **_all("--model --model-dir", "MODEL or --repo"),
        **_all("--image-model --tts-model --stt-model --embedding-model --decision-model --reranker-model", None),
        **_all("--host", "--host"),
        **_all("--port", "--port"),
        **_all("--max-num-seqs --decode-concurrency --prompt-concurrency", "--max-sequences"),
        **_all("--kv-bits --kv-key-bits --kv-value-bits --kv-key-scheme --kv-value-scheme --kv-quant-scheme", None),
        **_all("--max-tokens --prompt-cache-bytes --api-key --reload --pipeline", None),
    },
    dangerous=_each("--allowed-origins", _PAGES),
)

_TRANSFORMERS = Rules(
    owned={
        **_all("--host", "--host"),
        **_all("--port", "--port"),
        **_all("--device", "--gpus"),
        **_all("--quantization", "--quantization"),
        **_all("--dtype --model-timeout --non-blocking", None),
    },
    dangerous=_each("--enable-cors", _PAGES),
)

_LLAMACPP = Rules(
    owned={
        **_all("--model -m --hf-repo -hf -hfr --hf-file -hff --model-url -mu --docker-repo -dr", "MODEL or --repo"),
        **_all("--models-dir --models-preset --models-max --models-autoload", None),
        **_all("--gpt-oss-20b-default --gpt-oss-120b-default", "MODEL or --repo"),
        **_all("--hf-token -hft", "HF_TOKEN in the environment, which autolaunch fetches with"),
        **_all("--host", "--host"),
        **_all("--port", "--port"),
        **_all("--ctx-size -c", "--context"),
        **_all("--parallel -np", "--max-sequences"),
        **_all("--n-gpu-layers --gpu-layers -ngl --device -dev --tensor-split -ts --main-gpu -mg", "--gpus"),
        **_all("--split-mode -sm --n-cpu-moe -ncmoe --cpu-moe -cmoe --override-tensor -ot --ubatch-size -ub", None),
        **_all("--kv-unified -kvu --no-kv-unified -no-kvu", None),
        **_all("--alias -a --api-key --api-key-file --api-prefix --ssl-key-file --ssl-cert-file --reuse-port", None),
    },
    dangerous={
        **_each("--tools --tools-runtime --agent -ag --mcp-servers-config --mcp-servers-json", _TOOLS),
        **_each("--ui-mcp-proxy --webui-mcp-proxy", _TOOLS),
        **_each("--media-path --path --slot-save-path", _FILES),
        **_each("--log-file --log-prompts-dir", "prompts would be written to a file that others may read"),
        **_each("--props", "it would let a request change the server's settings"),
        **_each("--cors-origins --cors-methods --cors-headers --cors-credentials", _PAGES),
        **_each("--rpc", _PORT),
    },
    free=frozenset({"--no-host", "--ui", "--webui"}),
)

RULES: Mapping[EngineName, Rules] = {
    "vllm": _VLLM,
    "sglang": _SGLANG,
    "mlx": _MLX,
    "transformers": _TRANSFORMERS,
    "llamacpp": _LLAMACPP,
}
