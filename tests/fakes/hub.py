"""A hub on loopback: Hugging Face's API and ModelScope's, as their own clients call them, with faults to switch on.

A real HTTP server in a process's threads. Files are made from a seed while they are sent, so that hundreds of megabytes
cost neither memory nor disk here.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "76543210fedcba9876543210fedcba9876543210"
BLOCK_BYTES = 2**20
TOKEN = "hf_" + "sentinel" * 4

Fault = Literal[
    "busy",
    "cut",
    "damaged",
    "down",
    "expired",
    "gated",
    "ignores ranges",
    "many requests",
    "redirects",
    "slow",
]


class Content:
    """A file of a hub: given whole, or (``size_bytes``) made of blocks that depend on the seed."""

    def __init__(self, *, data: bytes | None = None, size_bytes: int = 0, seed: int = 0, head: bytes = b"") -> None:
        self.head = head if data is None else data
        self.size_bytes = size_bytes if data is None else len(data)
        self._block = random.Random(seed).randbytes(BLOCK_BYTES) if data is None else b""  # noqa: S311 - content
        self.lfs = data is None
        whole, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        for piece in self.pieces(0):
            whole.update(piece)
            if not self.lfs:
                git.update(piece)
        self.sha256, self.git_sha1 = whole.hexdigest(), git.hexdigest()

    @classmethod
    def of(cls, path: Path) -> Content:
        return cls(data=path.read_bytes())

    def pieces(self, start: int) -> Iterator[bytes]:
        """The content from ``start`` on."""
        while start < self.size_bytes:
            if start < len(self.head):
                piece = self.head[start : start + BLOCK_BYTES]
            else:
                offset = (start - len(self.head)) % BLOCK_BYTES
                piece = self._block[offset:]
            piece = piece[: self.size_bytes - start]
            yield piece
            start += len(piece)


def shard(tensors: int, size_bytes: int, seed: int, stem: str = "t") -> tuple[Content, list[str]]:
    """A safetensors file of about this length, and the names of its tensors."""
    each = size_bytes // tensors // 2
    header = {
        f"{stem}.{number}": {
            "dtype": "BF16",
            "shape": [each],
            "data_offsets": [number * each * 2, (number + 1) * each * 2],
        }
        for number in range(tensors)
    }
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text
    return Content(size_bytes=len(head) + tensors * each * 2, seed=seed, head=head), list(header)


def checkpoint(shards: int = 4, shard_bytes: int = 8 * 2**20, seed: int = 0) -> dict[str, Content]:
    """A repository whose weights are in shards with an index, with files beside them that nobody needs."""
    files: dict[str, Content] = {}
    places: dict[str, str] = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        files[name], tensors = shard(4, shard_bytes, seed + number, f"layers.{number}")
        places |= dict.fromkeys(tensors, name)
    beside = {
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": places}),
        "config.json": json.dumps({"model_type": "glm4_moe", "seed": seed}),
        "generation_config.json": "{}",
        "tokenizer.json": json.dumps({"version": "1.0", "seed": seed}),
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "README.md": "not needed",
        "modeling.py": "raise SystemExit('code of the repository was run')",
        "pytorch_model.bin": "a pickle",
        "consolidated.safetensors": "not of the index",
    }
    return files | {name: Content(data=text.encode()) for name, text in beside.items()}


@dataclass
class Hub:
    """What the server has and does. Everything may be changed while it runs.

    ``faults`` counts down where a number is given: so often it happens, then no more.
    """

    files: dict[str, dict[str, Content]] = field(default_factory=dict)
    faults: dict[Fault, int | None] = field(default_factory=dict)
    token: str | None = None
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "master": COMMIT, "v1": OLDER})
    retry_after: str = "0"
    bytes_per_second: float = 20e6
    latest: dict[str, str] = field(default_factory=lambda: {"Id": "", "ShortId": COMMIT[:8]})
    url: str = ""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def happens(self, fault: Fault) -> bool:
        """Whether a fault is on; one that was counted is one less then."""
        with self.lock:
            if fault not in self.faults:
                return False
            left = self.faults[fault]
            if left is not None:
                if left == 0:
                    return False
                self.faults[fault] = left - 1
            return True

    def environment(self, folder: Path, token: str | None = None) -> dict[str, str]:
        """What makes the clients ask here and keep things in ``folder``."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_CACHE": str(folder / "hf" / "hub"),
            "MODELSCOPE_ENDPOINT": self.url,
            "MODELSCOPE_CACHE": str(folder / "ms"),
            "MODELSCOPE_HOME": str(folder / "ms-home"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        } | ({} if token is None else {"HF_TOKEN": token})


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, listening, at ``hub.url``."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing: ``Hub.asked`` has it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        with self.hub.lock:
            self.hub.asked.append(f"{self.command} {self.path}")
        with suppress(ConnectionError):
            self._routed()

    def _routed(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.hub.happens("down"):
            return self._json(500, {"error": "down"})
        if self.hub.happens("busy"):
            return self._json(503, {"error": "busy"}, {"Retry-After": self.hub.retry_after})
        if self.hub.happens("many requests"):
            return self._json(429, {"error": "slow down"}, {"Retry-After": self.hub.retry_after})
        if self.hub.happens("redirects"):
            return self._json(307, {}, {"Location": self.path})
        if parts[:3] == ["api", "v1", "models"]:
            return self._modelscope(parts[3:], query)
        if parts[0] == "api":
            return self._info(parts[2:])
        if parts[0] == "store":
            return self._send("/".join(parts[1:3]), "/".join(parts[3:]))
        return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    # --- Hugging Face ---------------------------------------------------------------------------------

    def _allowed(self) -> bool:
        if self.hub.happens("expired"):
            self._json(
                401,
                {"error": "Invalid credentials in Authorization header"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
            return False
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _info(self, parts: list[str]) -> None:
        repo, name = "/".join(parts[:2]), "/".join(parts[3:]) or "main"
        if not self._allowed():
            return None
        if repo not in self.hub.files:
            return self._json(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        commit = name if name in self.hub.revisions.values() else self.hub.revisions.get(name)
        if commit is None:
            return self._json(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
        siblings: list[dict[str, Any]] = []
        tree: list[dict[str, Any]] = []
        for path, content in self.hub.files[repo].items():
            one: dict[str, Any] = {"rfilename": path, "size": content.size_bytes, "blobId": content.git_sha1}
            leaf: dict[str, Any] = {"type": "file", "path": path, "size": content.size_bytes, "oid": content.git_sha1}
            if content.lfs:
                one["lfs"] = {"sha256": content.sha256, "size": content.size_bytes, "pointerSize": 134}
                leaf["lfs"] = {"oid": content.sha256, "size": content.size_bytes, "pointerSize": 134}
            siblings.append(one)
            tree.append(leaf)
        if parts[2:3] == ["tree"]:
            return self._json(200, tree)
        return self._json(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []})

    def _resolve(self, repo: str, commit: str, path: str) -> None:
        if not self._allowed():
            return None
        if self.hub.happens("gated"):
            return self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        content = self.hub.files.get(repo, {}).get(path)
        if content is None:
            return self._json(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{content.git_sha1}"'}
        if content.lfs:
            headers |= {
                "X-Linked-Size": str(content.size_bytes),
                "X-Linked-ETag": f'"{content.sha256}"',
                # As a store of large files: another address, signed.
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/store/{repo}/{path}?signature=secret",
            }
            return self._json(302, {}, headers)
        return self._send(repo, path, headers)

    # --- ModelScope -----------------------------------------------------------------------------------

    def _modelscope(self, parts: list[str], query: dict[str, str]) -> None:
        repo = "/".join(parts[:2])
        files = self.hub.files.get(repo)
        if self.hub.happens("gated"):
            return self._json(403, {"Code": 403, "Message": "no"})
        if files is None:
            return self._json(404, {"Code": 10010205001, "Message": "not found", "Success": False})
        if parts[2:] == ["repo"]:
            return self._send(repo, query["FilePath"])
        name = query.get("Revision", "master")
        known = name in self.hub.revisions or name in self.hub.revisions.values()
        listed = [
            {
                "Name": path.rpartition("/")[2],
                "Path": path,
                "Type": "blob",
                "Size": content.size_bytes,
                "Sha256": content.sha256,
                "IsLFS": content.lfs,
                "Revision": COMMIT if path == "config.json" else OLDER,
            }
            for path, content in files.items()
        ]
        data = {"Files": listed if known else None, "LatestCommitter": self.hub.latest if known else None}
        return self._json(200, {"Code": 200, "Data": data, "Success": True})

    # --- contents -------------------------------------------------------------------------------------

    def _send(self, repo: str, path: str, headers: dict[str, str] | None = None) -> None:
        content = self.hub.files[repo][path]
        start, status = 0, 200
        asked = self.headers.get("Range")
        if asked is not None and not self.hub.happens("ignores ranges"):
            start, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
        if start >= content.size_bytes > 0:
            return self._json(416, {}, {"Content-Range": f"bytes */{content.size_bytes}"})
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{content.size_bytes - 1}/{content.size_bytes}")
        self.send_header("Content-Length", str(content.size_bytes - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = content.lfs and self.hub.happens("cut")
        damaged = content.lfs and self.hub.happens("damaged")
        slow = "slow" in self.hub.faults
        half = start + (content.size_bytes - start) // 2
        for piece in content.pieces(start):
            sent = piece
            if damaged:
                sent, damaged = bytes([piece[0] ^ 1]) + piece[1:], False
            self.wfile.write(sent)
            with self.hub.lock:
                self.hub.sent_bytes[path] += len(piece)
            start += len(piece)
            if slow:
                time.sleep(len(piece) / self.hub.bytes_per_second)  # a slow line is the point
            if cut and start >= half:
                self.close_connection = True
                return None
        return None

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, told in (headers or {}).items():
            self.send_header(name, told)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
