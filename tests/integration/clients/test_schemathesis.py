"""``schemathesis`` over the control API by its own document: whatever it thinks of, nothing is a fault of ours."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from autolaunch.client import Client
from engines.environments.store import without_secrets
from tests.clients import programs
from tests.fakes.served import Served, entry

#: The environment is made first where there is none.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

EXAMPLES, SECONDS = 20, 30
#: Answers that are followed have no end: what is asked for is their beginning. What is deployed is the miniature,
#: on the fake engine: a word that happens to be a model's name has nothing fetched.
HOOKS = """
import schemathesis
@schemathesis.hook
def before_call(context, case, kwargs):
    if case.query and case.query.get("follow") in (1, "1", [1], ["1"]):
        case.query["follow"] = 0
    body = case.body
    if isinstance(body, dict) and str(body.get("model", "")).lower() not in ("", "glm-tiny", "none"):
        body["model"] = "no-such-model"
"""
#: All that there are, but for those of keys, which a socket has none of; ``positive_data_acceptance``: a deployment
#: with a name that was made up is not there; and ``ensure_resource_availability``, which knows no way to take away what
#: was made but DELETE: here that is ``POST …/undeploy``.
LEFT_OUT = "ensure_resource_availability,ignored_auth,object_level_authorization,positive_data_acceptance"


@contextmanager
def relayed(path: Path) -> Iterator[int]:
    """A port of the loopback whose connections lead to the socket at ``path``: schemathesis speaks TCP alone."""
    listening = socket.create_server(("127.0.0.1", 0))

    def passed(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def connected(client: socket.socket) -> None:
        with closing(client), closing(socket.socket(socket.AF_UNIX)) as control:
            control.connect(str(path))
            back = threading.Thread(target=passed, args=(control, client))
            back.start()
            passed(client, control)
            back.join()

    threads = []

    def accepting() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                threads.append(threading.Thread(target=connected, args=(client,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accepting)
    acceptor.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def test_nothing_that_the_document_allows_or_forbids_is_a_fault_of_the_control_api(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    one = serve()
    one.configure(entry("a", one.port))
    one.begin()
    path = next(one.folder.rglob("control.sock"))
    (tmp_path / "following.py").write_text(HOOKS)
    bounds = ("--max-examples", str(EXAMPLES), "--max-time", str(SECONDS), "--request-timeout", "5", "--seed", "6")
    with relayed(path) as port:
        program = programs("schemathesis") / "schemathesis"
        url = f"http://127.0.0.1:{port}"
        done = subprocess.run(
            (str(program), "run", f"{url}/v1/openapi.json", "--url", url, "--exclude-checks", LEFT_OUT, *bounds),
            cwd=tmp_path,
            env={**without_secrets(one.environ), "NO_PROXY": "127.0.0.1", "SCHEMATHESIS_HOOKS": "following"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240.0,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
    tried = re.search(r"(\d+) generated", done.stdout)
    assert tried is not None, done.stdout[-3_000:]
    assert int(tried[1]) > 50
    assert one.process is not None
    assert one.process.poll() is None
    with Client(path) as client:
        assert "a" in [each.name for each in client.deployments()]
        for each in client.deployments():
            assert each.model == "glm-tiny"
            if each.name != "a":
                client.undeploy(each.name)
        assert [each.name for each in client.deployments()] == ["a"]
    assert one.stop() == 0
