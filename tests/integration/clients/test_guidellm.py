"""guidellm's load on a real engine behind the gateway, for seconds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engines.environments.store import without_secrets
from tests.clients import programs
from tests.fakes.behind import KEY
from tests.integration.clients.conftest import Real

#: The environment is made first where there is none.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS, MOST = 4, 32, 16, 24


def test_a_load_of_several_streams_is_answered_without_an_error(real: Real, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    weights = next(path for path in (real.daemon.home / "models").iterdir() if path.name == "glm-tiny")
    data = json.dumps({"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS, "samples": MOST})
    what = ("--target", real.base_url.removesuffix("/v1"), "--model", "glm-tiny", "--processor", str(weights))
    load = ("--rate-type", "concurrent", "--rate", str(STREAMS), "--max-requests", str(MOST), "--max-seconds", "20")
    shown = ("--disable-console-outputs", "--disable-progress", "--output-path", str(report))
    done = subprocess.run(
        (str(programs("guidellm") / "guidellm"), "benchmark", "run", *what, "--data", data, *load, *shown),
        cwd=tmp_path,
        env={
            **without_secrets(real.daemon.environ),
            "GUIDELLM__OPENAI__API_KEY": KEY,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hub"),
            "NO_PROXY": "127.0.0.1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240.0,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (found,) = json.loads(report.read_text())["benchmarks"]
    requests: dict[str, list[dict[str, Any]]] = found["requests"]
    assert requests["errored"] == []
    assert len(requests["successful"]) >= STREAMS
    assert {one["output_tokens"] for one in requests["successful"]} == {OUTPUT_TOKENS}
    assert all(one["time_to_first_token_ms"] > 0 for one in requests["successful"])
