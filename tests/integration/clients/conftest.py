"""A daemon with real engines on the miniatures, for the clients of all these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from autolaunch.daemon.gateway.keys import key_of
from tests.fakes.behind import KEY
from tests.fakes.served import Served

#: A first start makes the environments of the engines.
START_SECONDS = 900.0
ENTRY = '[[deployments]]\nname = "{name}"\nmodel = "{name}"\npinned.engine = "mlx"\n'


class Real(NamedTuple):
    """Where the gateway answers with ``KEY``, and the daemon behind it."""

    base_url: str
    port: int
    daemon: Served


@pytest.fixture(scope="module")  # tests of others count the processes that there are
def real(engines_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """mlx-lm serves ``glm-tiny`` and mlx-vlm ``glm-tiny-v``. Environments and weights are those of the other tests."""
    folder = tmp_path_factory.mktemp("real")
    one = Served(folder, real=True)
    for shared in ("engines", "models", "wheels"):
        (engines_home / shared).mkdir(parents=True, exist_ok=True)
        (one.home / shared).symlink_to(engines_home / shared)
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{key_of('tests', KEY).line}\n")
    names = ("glm-tiny", "glm-tiny-v")
    one.configure(*(ENTRY.format(name=name) for name in names), keys_file=str(keys))
    try:
        one.start()
        one.until(lambda: all(one.told("engine.ready", name) for name in names), START_SECONDS)
        yield Real(f"http://127.0.0.1:{one.gateway_port}/v1", one.gateway_port, one)
        assert one.stop() == 0
    finally:
        one.close()
