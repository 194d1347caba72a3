"""A profile from a real HTTP server that speaks the hubs' API, and from one that means harm."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from autolaunch.adding.profile import profile_of
from autolaunch.adding.sources import OnHub
from engines import miniature
from selector.architecture import stored_weights
from selector.catalog import Catalog
from selector.errors import DownloadError, HubUnreachable
from tests.fakes.small import small

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_SENTINEL0123456789"  # noqa: S105 - no real one
REPO = "someone/GLM-4.6-Mine"

#: Of every format whose files can be made.
SHIPPED = (
    ("glm-4.6", "zai-org/GLM-4.6"),
    ("glm-4.6", "zai-org/GLM-4.6-FP8"),
    ("glm-4.6", "QuantTrio/GLM-4.6-AWQ"),
    ("glm-4.6", "mlx-community/GLM-4.6-4bit"),
    ("glm-4.6", "mlx-community/GLM-4.6-5bit"),
    ("glm-4.6", "mlx-community/GLM-4.6-6bit"),
    ("glm-4.6", "mlx-community/GLM-4.6-8bit"),
    ("glm-4.5v", "zai-org/GLM-4.5V"),
    ("glm-4.5v", "zai-org/GLM-4.5V-FP8"),
    ("glm-4.5v", "mlx-community/GLM-4.5V-4bit"),
    ("glm-4.5-air", "zai-org/GLM-4.5-Air"),
    ("glm-tiny", "autolaunch/glm-tiny"),
    ("glm-tiny-v", "autolaunch/glm-tiny-v"),
)


class Server:
    """A hub with one repository, a folder. ``mode`` is how it misbehaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mode = ""
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.sent_bytes = 0
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def source(self, hub: Any = "huggingface", **more: Any) -> OnHub:
        environ = {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url, "HF_TOKEN": TOKEN}
        return OnHub(REPO, hub, environ=environ, **more)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Server

    def log_message(self, *_: object) -> None:
        """Nothing: ``asked`` has it."""

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self._answer()

    def _answer(self) -> None:
        hub = self.server_of
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        hub.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub.mode == "redirects" or (hub.mode == "elsewhere" and "/resolve/" in self.path):
            return self._redirect(self.path if hub.mode == "redirects" else "http://192.0.2.1/x")
        if hub.mode == "down":
            return self._json(503, {})
        if hub.mode == "gated":
            return self._json(403, {})
        if hub.mode == "endless list":
            return self._endless()
        files = {str(path.relative_to(hub.folder)): path.stat().st_size for path in hub.files()}
        if hub.mode == "path":
            files["../../etc/passwd"] = 1
        if url.path.startswith("/api/models/"):
            siblings = [{"rfilename": path, "size": size} for path, size in files.items()]
            return self._json(200, {"sha": COMMIT, "siblings": siblings})
        if url.path.endswith("/repo/files"):
            listed = [{"Path": path, "Size": size, "Type": "blob"} for path, size in files.items()]
            return self._json(200, {"Data": {"Files": listed}})
        if url.path.endswith("/repo"):
            return self._part(hub.folder / query["FilePath"])
        if "/resolve/" in url.path:
            path = unquote(url.path.partition(f"/resolve/{COMMIT}/")[2])
            if path.endswith(".safetensors"):  # as a store of large files: another host's name
                return self._redirect(f"{hub.url.replace('127.0.0.1', 'localhost')}/store/{path}?signature=x")
            return self._part(hub.folder / path)
        return self._part(hub.folder / unquote(url.path.removeprefix("/store/")))

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _part(self, path: Path) -> None:
        mode, size = self.server_of.mode, path.stat().st_size
        begins, _, ends = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(begins), min(int(ends or size - 1), size - 1)
        if mode == "ignores ranges":
            self._endless(path)
            return
        if mode == "other place":
            start += 1
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start + 1)
        self.send_response(206)
        told = {"no place": "", "other total": f"bytes {start}-{end}/7"}.get(mode, f"bytes {start}-{end}/{size}")
        if mode != "no place":
            self.send_header("Content-Range", told)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if mode == "breaks off":
            data = data[: len(data) // 2]
            self.close_connection = True
        if mode == "trickles":
            for place in range(len(data)):
                self.wfile.write(data[place : place + 1])
                time.sleep(0.05)  # slower than anybody would wait for
            return
        self.wfile.write(data)
        self.server_of.sent_bytes += len(data)

    def _endless(self, path: Path | None = None) -> None:
        self.send_response(200)
        self.end_headers()
        if path is not None:
            self.wfile.write(path.read_bytes())
        self.close_connection = True
        for _ in range(4096):
            self.wfile.write(bytes(1 << 20))

    def _json(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], Server]]:
    made: list[Server] = []

    def one(folder: Path) -> Server:
        made.append(Server(folder))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def tiny(catalog: Catalog, tmp_path: Path, serve: Callable[[Path], Server]) -> Server:
    return serve(miniature.generate(catalog.model("glm-tiny"), tmp_path / "tiny"))


@pytest.mark.parametrize(("model_id", "repo"), SHIPPED)
@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_every_format_that_can_be_made_is_added_with_the_bytes_of_its_files(
    catalog: Catalog, tmp_path: Path, serve: Callable[[Path], Server], model_id: str, repo: str, hub: str
) -> None:
    known = catalog.model(model_id)
    model, checkpoint = small(known, next(each for each in known.checkpoints if each.repo == repo))
    server = serve(miniature.generate(model, tmp_path / "made", checkpoint))
    found = profile_of(server.source(hub), catalog, name="mine")
    (read,) = found.checkpoints
    assert (read.repo, read.format, read.quantization) == (REPO, checkpoint.format, checkpoint.quantization)
    assert read.storage == checkpoint.storage
    files = sum(path.stat().st_size for path in server.folder.glob("*.safetensors"))
    assert read.download_bytes == files
    stored = stored_weights(found.architecture, read)
    assert stored.total == pytest.approx(files)
    assert stored.scale == pytest.approx(1, abs=0.02), "the layout is that of the files, but for their headers"
    assert server.sent_bytes < files / 2 + (2 << 20), "headers alone were sent"
    if hub == "huggingface":
        assert all((token is not None) == (not path.startswith("/store/")) for path, _, token in server.asked), (
            "the token goes to the hub, and to nobody else"
        )
        assert COMMIT in read.source
    assert TOKEN not in repr(found)


def test_a_repository_is_added_planned_and_listed(tmp_path: Path, tiny: Server) -> None:
    environ = {**os.environ, "AUTOLAUNCH_HOME": str(tmp_path / "home"), "HF_ENDPOINT": tiny.url, "HF_TOKEN": TOKEN}

    def autolaunch(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "autolaunch", *arguments)
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)

    added = autolaunch("models", "add", REPO)
    assert added.returncode == 0, added.stderr
    assert "is known from now on as glm-4.6-mine" in added.stdout
    assert max(map(len, added.stdout.replace(str(tmp_path), "").splitlines())) <= 100
    planned = autolaunch("plan", "glm-4.6-mine", "--hardware", "8xh100", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["chosen"]["checkpoint"]["repo"] == REPO
    assert REPO in autolaunch("models", "--verbose").stdout
    again = autolaunch("models", "add", REPO, "--json")
    assert again.returncode == 2
    assert "is known already" in json.loads(again.stdout)["error"]["message"]
    named = autolaunch("models", "add", str(tiny.folder), "--name", "here", "--json")
    assert named.returncode == 0, named.stdout
    assert json.loads(named.stdout)["model"] == "here"
    assert json.loads(named.stdout)["schema"] == 1
    assert TOKEN not in added.stdout + added.stderr + planned.stdout + named.stdout
    assert TOKEN not in "".join(path.read_text() for path in (tmp_path / "home").rglob("*.toml"))


def test_a_folder_that_was_added_is_launched_from_where_it_lies(
    tmp_path: Path, tiny: Server, engines_home: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "engines").symlink_to(engines_home / "engines")
    environ = {**os.environ, "AUTOLAUNCH_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home)}
    python = (sys.executable, "-m", "autolaunch")
    add = (*python, "models", "add", str(tiny.folder), "--name", "here")
    subprocess.run(add, cwd=ROOT, env=environ, capture_output=True, timeout=60, check=True)
    launch = (*python, "here", "--engine", "mlx", "--port", "0", "--json")
    with subprocess.Popen(launch, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "}\n"))
        process.send_signal(signal.SIGINT)
        process.wait(30)
    document = json.loads("".join((*lines, "}")))
    assert document["served_name"] == "here"
    assert document["plan"]["checkpoint"]["repo"] == str(tiny.folder)


@pytest.mark.parametrize(
    ("mode", "error", "said"),
    [
        ("redirects", DownloadError, "from one address to the next"),
        ("elsewhere", DownloadError, "where nothing is read"),
        ("down", HubUnreachable, "HTTP 503"),
        ("gated", DownloadError, "does not let this account"),
        ("endless list", DownloadError, "longer than any"),
        ("path", DownloadError, "has a file that is called"),
        ("other place", DownloadError, "another part"),
        ("other total", DownloadError, "another part"),
        ("no place", DownloadError, "another part"),
        ("breaks off", HubUnreachable, "broke off|could not be read"),
        ("trickles", HubUnreachable, "too slowly|could not be read"),
    ],
)
def test_a_hub_that_means_harm_ends_in_an_error_soon(
    catalog: Catalog, tiny: Server, mode: str, error: type[DownloadError], said: str
) -> None:
    tiny.mode = mode
    began = time.monotonic()
    with pytest.raises(error, match=said) as caught:
        profile_of(tiny.source(deadline_seconds=1.5), catalog)
    assert time.monotonic() - began < 10
    assert TOKEN not in caught.value.message


def test_a_hub_that_ignores_ranges_and_never_ends_costs_neither_memory_nor_time(catalog: Catalog, tiny: Server) -> None:
    tiny.mode = "ignores ranges"
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = profile_of(tiny.source(deadline_seconds=5), catalog)
    assert found.checkpoints[0].format == "fp32", "what was asked for came first, and the rest was left"
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_million_tensors_are_refused_in_bounded_memory(catalog: Catalog, tiny: Server) -> None:
    for path in (*tiny.folder.glob("*.safetensors"), tiny.folder / "model.safetensors.index.json"):
        path.unlink()
    text = (
        "{" + ",".join(f'"{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(10**6)) + "}"
    ).encode()
    (tiny.folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(DownloadError, match="longer than any"):
        profile_of(tiny.source(), catalog)


def test_nobody_there_is_told(catalog: Catalog) -> None:
    with pytest.raises(HubUnreachable, match="could not be read"):
        OnHub(REPO, "huggingface", environ={"HF_ENDPOINT": "http://127.0.0.1:9"})
