"""The gateway over upstreams that are there already, as the daemon runs it: nothing but the engines is fake.

python -m tests.fakes.gateway --port N --upstream MODEL=PORT… [--keys FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from autolaunch.daemon.gateway.keys import Keys
from autolaunch.daemon.gateway.metrics import RequestMetrics, new_registry, render
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.gateway.routing import Endpoint, Standing, Traffic
from autolaunch.daemon.gateway.serve import Gateway
from autolaunch.daemon.loop import new_loop, settle
from autolaunch.daemon.ports import listening_socket


class There:
    """A replica that always serves."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.traffic = Traffic()
        self.context_tokens: int | None = None
        self._endpoint = Endpoint(run=1, engine="vllm", host="127.0.0.1", port=port, served_name=name)

    def endpoint(self) -> Endpoint:
        return self._endpoint

    def standing(self) -> Standing:
        return Standing(condition="serving", message="serves")

    def wake(self) -> None:
        pass


async def serve(port: int, replicas: list[There], keys: Keys | None) -> None:
    registry = new_registry()
    metrics = RequestMetrics(registry)

    async def page(accepted: str) -> tuple[bytes, str]:
        return await asyncio.get_running_loop().run_in_executor(None, render, registry, accepted)

    gateway = Gateway(GatewayOptions(port=port), keys=keys, metrics=metrics, metrics_page=page)
    gateway.route(replicas)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await gateway.start(listening_socket("127.0.0.1", port))
    settle()
    await ended.wait()
    await gateway.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", action="append", default=[], metavar="MODEL=PORT")
    parser.add_argument("--keys", type=Path)
    options = parser.parse_args()
    keys = None if options.keys is None else Keys.read(options.keys)
    named = (each.partition("=") for each in options.upstream)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(options.port, [There(name, int(port)) for name, _, port in named], keys))


if __name__ == "__main__":
    main()
