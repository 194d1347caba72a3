"""An engine that is killed while many streams run, as the ``openai`` client sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from engines.environments.store import without_secrets
from tests.clients import programs
from tests.fakes.engine import WORDS
from tests.fakes.served import Served, entry

#: The environment is made first where there is none.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

STREAMS = 32
SCRIPT = """
import asyncio, json, sys
import openai
hello = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
async def main():
    async with openai.AsyncOpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=30) as client:
        begun = 0
        async def one():
            nonlocal begun
            words = 0
            try:
                async for part in await client.chat.completions.create(**hello, stream=True):
                    words += bool(part.choices and part.choices[0].delta.content)
                    if words == 1:
                        begun += 1
                        if begun == int(sys.argv[2]):
                            print("all run", flush=True)
            except openai.APIError as error:
                return [type(error).__name__, error.code, words]
            return ["no error", None, words]
        ended = await asyncio.gather(*(one() for _ in range(int(sys.argv[2]))))
        refused = None
        try:
            await client.chat.completions.create(**hello)
        except openai.APIStatusError as error:
            refused = [error.status_code, error.response.headers.get("retry-after"), error.body["code"]]
        waiting = {"Prefer": "wait=60"}
        waited = await client.with_options(timeout=70).chat.completions.create(**hello, extra_headers=waiting)
        print(json.dumps({"ended": ended, "refused": refused, "waited": waited.choices[0].message.content}))
asyncio.run(main())
"""


def test_every_client_gets_a_well_formed_end_and_the_endpoint_serves_again(serve: Callable[..., Served]) -> None:
    """The second start is slow, so that somebody is refused while it lasts."""
    one = serve(FAKE_MODES="steady,slow")
    one.configure(entry("a", None))
    engine = one.begin()
    url = f"http://127.0.0.1:{one.gateway_port}/v1"
    argv = (str(programs("openai") / "python"), "-c", SCRIPT, url, str(STREAMS))
    environ = without_secrets(one.environ) | {"NO_PROXY": "127.0.0.1"}
    del environ["AUTOLAUNCH_HOME"]
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "all run\n"
            os.kill(engine, signal.SIGKILL)
            said, complained = client.communicate(timeout=120.0)
        finally:
            client.kill()
    assert client.returncode == 0, complained
    found = json.loads(said.splitlines()[-1])
    assert [each[:2] for each in found["ended"]] == [["APIError", "engine_error"]] * STREAMS
    assert all(words > 0 for _, _, words in found["ended"])
    status, after, code = found["refused"]
    assert (status, code) == (503, "model_loading")
    assert int(after) > 0
    assert found["waited"] == "".join(WORDS)
    assert len(one.told("engine.ready")) == 2
    assert one.stop() == 0
