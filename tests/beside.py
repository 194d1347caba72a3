"""What ``scripts/bench_gateway`` measures, as processes: the gateway, the upstreams, and what it is compared with."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.clients import ROOT, NotInstalled, programs

#: LiteLLM's proxy imports for a while.
START_SECONDS = 90.0
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; proxy_buffering off; keepalive_requests 100000000; client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxied; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream fake {{ server 127.0.0.1:{fake}; keepalive 64; keepalive_requests 100000000; }}
  upstream paced {{ server 127.0.0.1:{paced}; keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{kept};
    location / {{ proxy_pass http://fake; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
  server {{ listen 127.0.0.1:{streams};
    location / {{ proxy_pass http://paced; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
  server {{ listen 127.0.0.1:{plain}; location / {{ proxy_pass http://127.0.0.1:{fake}; }} }}
}}
"""
LITELLM = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "http://127.0.0.1:{fake}/v1", api_key: none}}
litellm_settings: {{telemetry: false, set_verbose: false, num_retries: 0}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""


class Target(NamedTuple):
    """Where something that is measured listens, by the model that is asked for."""

    name: str
    fake: int
    paced: int | None = None
    process: subprocess.Popen[bytes] | None = None


class Cores:
    """One core for what is measured and another for the rest; nothing where the machine has not two."""

    def __init__(self) -> None:
        self.usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.told = "a core each" if len(self.usable) > 1 else "not pinned to cores"

    def mine(self) -> None:
        self._take(1)

    def measured(self) -> None:
        self._take(0)

    def _take(self, place: int) -> None:
        if len(self.usable) > 1:
            os.sched_setaffinity(0, {self.usable[place]})


class Children:
    """Processes that are started here and ended by their ids."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self.folder, self.cores = folder, cores
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, argv: tuple[str, ...], port: int, *, measured: bool, **environ: str) -> subprocess.Popen[bytes]:
        """Starts one and waits until it listens on ``port``."""
        log = self.folder / f"{len(self.processes)}.log"
        (self.cores.measured if measured else self.cores.mine)()
        try:
            with log.open("wb") as said:
                process = subprocess.Popen(
                    argv, cwd=ROOT, env={**os.environ, **environ}, stdin=subprocess.DEVNULL, stdout=said, stderr=said
                )
        finally:
            self.cores.mine()
        self.processes.append(process)
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return process
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{argv[0]} does not listen:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


def targets(
    children: Children, *, events_a_second: float, nginx: bool, litellm: bool, told: Callable[[str], None]
) -> Iterator[Target]:
    """The upstream itself first, then the gateway, then what there is to compare it with."""
    python = sys.executable
    fake, paced, gateway, kept, streams, plain, lite = free_ports(7)
    upstream = (python, "-m", "tests.fakes.upstream", "--port")
    children.start((*upstream, str(fake)), fake, measured=False)
    children.start((*upstream, str(paced), "--every", str(1 / events_a_second)), paced, measured=False)
    yield Target("direct", fake, paced)
    over = ("--upstream", f"fake={fake}", "--upstream", f"paced={paced}")
    argv = (python, "-m", "tests.fakes.gateway", "--port", str(gateway), *over)
    yield Target("gateway", gateway, gateway, children.start(argv, gateway, measured=True))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if nginx and Path(program).exists():
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        places = {"fake": fake, "paced": paced, "kept": kept, "streams": streams, "plain": plain}
        written = children.folder / "nginx.conf"
        written.write_text(NGINX.format(folder=children.folder, user=user, **places))
        process = children.start((program, "-p", str(children.folder), "-c", str(written)), kept, measured=True)
        yield Target("nginx", kept, streams, process)
        yield Target("nginx, as it comes", plain, None, process)
    elif nginx:
        told("nginx is not here: left out")
    if litellm:
        try:
            installed = programs("litellm-proxy")
        except NotInstalled as error:
            told(f"LiteLLM's proxy cannot be installed: left out ({error})")
            return
        written = children.folder / "litellm.yaml"
        written.write_text(LITELLM.format(fake=fake))
        place = ("--host", "127.0.0.1", "--port", str(lite), "--num_workers", "1", "--telemetry", "False")
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        started = children.start(
            (str(installed / "litellm"), "--config", str(written), *place), lite, measured=True, **quiet
        )
        yield Target("litellm", lite, None, started)
