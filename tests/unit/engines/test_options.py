"""Options behind the -- are passed on, but for those that are ours or dangerous, however they are spelled."""

from __future__ import annotations

import pytest

from engines.options import checked_extra, valued
from selector.errors import UsageError

OWNED = frozenset({"--host", "--port", "-c"})


@pytest.mark.parametrize(
    "token",
    ["--trust-remote-code", "--trust_remote_code", "--trust", "--trust-rem", "--trust_rem", "--tr", "--trust=true"],
)
@pytest.mark.parametrize("engine", ["mlx", "vllm", "sglang", "transformers", "llamacpp"])
def test_no_spelling_lets_a_checkpoints_code_run(token: str, engine: str) -> None:
    with pytest.raises(UsageError, match="code from the checkpoint"):
        checked_extra((token,), owned=OWNED, engine=engine)


@pytest.mark.parametrize("token", ["--host", "--hos", "--ho=0.0.0.0", "--port=1", "-c"])
def test_no_spelling_reaches_an_option_of_ours(token: str) -> None:
    with pytest.raises(UsageError, match="belongs to autolaunch"):
        checked_extra((token,), owned=OWNED, engine="mlx")


@pytest.mark.parametrize(
    ("engine", "token", "ours"),
    [
        ("vllm", "-tp", "--tensor-parallel"),
        ("vllm", "-tp=8", "--tensor-parallel"),
        ("vllm", "-t", "--tensor-parallel"),
        ("vllm", "--tensor_parallel_size=8", "--tensor-parallel"),
        ("vllm", "--max-model", "--context"),
        ("vllm", "--device-memory-utilization", "--memory-utilization"),
        ("vllm", "--no-enforce-eager", "--eager"),
        ("vllm", "--disable-expert-parallel", "--expert-parallel"),
        ("vllm", "--no-enable-expert", "--expert-parallel"),
        ("vllm", "--speculative-config.method", "--speculative"),
        ("vllm", "--speculative_config.num_speculative_tokens=3", "--speculative"),
        ("vllm", '--speculative-config={"method":"ngram"}', "--speculative"),
        ("vllm", "-sc.method", "--speculative"),
        ("vllm", "-qfp8", "--quantization"),
        ("vllm", "--hf-token", "HF_TOKEN"),
        ("sglang", "--ep", "--expert-parallel"),
        ("sglang", "--mem-frac=0.5", "--memory-utilization"),
        ("sglang", "--cuda-graph-backend-decode", "--eager"),
        ("mlx", "--max-num-seqs", "--max-sequences"),
        ("transformers", "--device", "--gpus"),
        ("llamacpp", "-c", "--context"),
        ("llamacpp", "-ngl", "--gpus"),
    ],
)
def test_a_refusal_names_our_own_option_of_that_meaning(engine: str, token: str, ours: str) -> None:
    with pytest.raises(UsageError, match="belongs to autolaunch") as refusal:
        checked_extra((token, "8"), engine=engine)
    assert ours in str(refusal.value.hint)


@pytest.mark.parametrize(
    ("engine", "token"),
    [
        ("vllm", "--config"),
        ("vllm", "--config=/tmp/x.yaml"),
        ("vllm", "--data-parallel-size"),
        ("vllm", "-n2"),
        ("vllm", "--uds"),
        ("vllm", "--root-path"),
        ("vllm", "--api-key"),
        ("vllm", "--headless"),
        ("sglang", "--conf"),
        ("sglang", "--admin-api-key"),
        ("sglang", "--ssl-keyfile-password"),
    ],
)
def test_what_the_plan_or_the_launch_decides_is_not_the_users(engine: str, token: str) -> None:
    with pytest.raises(UsageError, match="belongs to autolaunch"):
        checked_extra((token, "8"), engine=engine)


@pytest.mark.parametrize(
    ("engine", "token", "why"),
    [
        ("vllm", "--middleware", "run code"),
        ("vllm", "--tool-parser-plug=x.py", "run code"),
        ("vllm", "--worker_cls", "run code"),
        ("vllm", "--kv-transfer-config.kv_connector_module_path", "run code"),
        ("vllm", "--logging-config", "run code"),
        ("vllm", "--allowed-local-media-path", "read files"),
        ("vllm", "--tool-server", "run tools"),
        ("vllm", "--allowed-origins", "browser"),
        ("vllm", "--grpc-port", "port"),
        ("sglang", "--custom-weight-loader", "run code"),
        ("sglang", "--forward-hooks", "run code"),
        ("mlx", "--allowed-origins", "browser"),
        ("transformers", "--enable-cors", "browser"),
        ("llamacpp", "--tools", "run tools"),
        ("llamacpp", "--media-path", "read files"),
        ("llamacpp", "--cors-origins", "browser"),
    ],
)
def test_what_is_dangerous_is_refused_with_what_would_happen(engine: str, token: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"is not passed on to {engine}: .*{why}"):
        checked_extra((token, "x"), engine=engine)


@pytest.mark.parametrize(
    ("engine", "extra"),
    [
        ("vllm", ("--enable-prefix-caching", "--chat-template", "/x.jinja", "--tokenizer", "/t", "-O3", "--seed", "7")),
        ("vllm", ("--reasoning-parser", "glm45", "--hf-overrides", '{"rope_scaling": null}', "--no-trust-remote-code")),
        ("sglang", ("--schedule-policy", "lpm", "--log-level", "debug", "--random-seed", "7")),
        ("llamacpp", ("-ctk", "q8_0", "-n", "-1", "--no-host", "--ui")),
        ("mlx", ("--log-level", "DEBUG", "--temp", "-1", "-", "trust", "--hosts-file=x")),
    ],
)
def test_other_options_and_their_values_pass_as_they_are(engine: str, extra: tuple[str, ...]) -> None:
    assert checked_extra(extra, owned=frozenset(), engine=engine) == extra


def test_what_stands_behind_a_second_end_of_options_is_not_read_as_a_model() -> None:
    with pytest.raises(UsageError, match="second --"):
        checked_extra(("--log-level", "DEBUG", "--", "other/model"), engine="vllm")


def test_a_value_that_looks_like_an_option_is_written_with_it() -> None:
    assert valued("--revision", "main") == ("--revision", "main")
    assert valued("--revision", "--host") == ("--revision=--host",)


@pytest.mark.parametrize(
    "extra",
    [
        ("--structured-outputs-config.reasoning_parser_plugin", "/x/evil.py"),
        ("--structured-outputs-config.reasoning-parser-plugin=/x/evil.py",),
        ("--structured_outputs_config", '{"reasoning_parser_plugin": "/x/evil.py"}'),
        ('--structured-outputs-config={"a": [{"reasoning_parser_plugin": "/x"}]}',),
        ("--structured-out", '{"reasoning_parser_plugin": "/x/evil.py"}'),
        ("--compilation-config.backend", "a.b"),
        ("-cc.backend", "a.b"),
        ("-cc", '{"backend": "a.b"}'),
        ("--hf-overrides", '{"text_config": {"auto_map": {}}}'),
    ],
)
def test_a_key_that_runs_code_is_refused_behind_a_dot_and_in_json(extra: tuple[str, ...]) -> None:
    """Seen: vLLM imported a file that stood behind --structured-outputs-config.reasoning_parser_plugin."""
    with pytest.raises(UsageError, match="is not passed on to vllm"):
        checked_extra(extra, engine="vllm")


def test_other_keys_of_such_options_are_the_users() -> None:
    extra = ("--structured-outputs-config.backend", "xgrammar", "-cc.mode", "3", "--hf-overrides", '{"rope_theta": 1}')
    assert checked_extra(extra, engine="vllm") == extra
    assert checked_extra(("--structured-outputs-config", "{broken"), engine="vllm")
