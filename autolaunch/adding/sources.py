"""What a repository holds, a few bytes at a time: a hub's, over HTTP, or a folder of this machine.

A hub may be slow, wrong or hostile. What is read is asked for by its place and bounded by its length; an answer that is
not of that place is refused, one that goes on for ever is left, and a token goes to the hub itself and nobody else.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from selector.errors import DownloadError, HubUnreachable, UsageError
from selector.facts import Hub

_T = TypeVar("_T")

#: Of a listing, and of a file that is read whole.
LISTING_BYTES = 16 << 20
_MOST_FILES = 20_000
_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_CHUNK_BYTES = 1 << 16
_ENDPOINTS: dict[Hub, tuple[str, str]] = {
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
}


class File(NamedTuple):
    path: str
    size_bytes: int


class Source(Protocol):
    """A repository at one commit. ``repo`` is what a profile calls it, ``told`` where its facts are from."""

    @property
    def repo(self) -> str: ...
    @property
    def told(self) -> str: ...
    @property
    def files(self) -> tuple[File, ...]: ...

    def read(self, file: File, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``, fewer where the file ends.

        Raises:
            DownloadError: they cannot be had.
        """
        ...


class Folder:
    """A folder of this machine. Its absolute path is its name."""

    def __init__(self, path: Path) -> None:
        self._root = path.resolve()
        if not self._root.is_dir():
            raise UsageError(f"{path} is no folder", hint="ORG/REPO is a hub's; a folder is the one with config.json")
        self.repo = str(self._root)
        self.told = f"the files in {self._root}"
        self.files = tuple(
            File(path.relative_to(self._root).as_posix(), path.stat().st_size)
            for path in sorted(self._root.rglob("*"))[:_MOST_FILES]
            if path.is_file() and ".git" not in path.parts
        )

    def read(self, file: File, start: int, count: int) -> bytes:
        from autolaunch.headers import regular

        try:
            with regular(self._root / file.path) as opened:
                opened.seek(start)
                return opened.read(count)
        except OSError as error:
            raise DownloadError(f"{self._root / file.path} cannot be read: {error.strerror}") from error


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None


class _Model(msgspec.Struct):
    sha: str
    siblings: list[_Sibling]


class _Listed(msgspec.Struct):
    Path: str
    Size: int | None = None
    Type: str = "blob"


class _Data(msgspec.Struct):
    Files: list[_Listed] | None = None


class _Answer(msgspec.Struct):
    Data: _Data | None = None


class OnHub:
    """A repository of a hub, at the commit that ``revision`` stands for now.

    Args:
        deadline_seconds: for every single answer, from the question to its last byte.
    """

    def __init__(
        self,
        repo: str,
        hub: Hub,
        revision: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        deadline_seconds: float = 60.0,
    ) -> None:
        environ = os.environ if environ is None else environ
        variable, usual = _ENDPOINTS[hub]
        self._endpoint = (environ.get(variable) or usual).rstrip("/")
        if urlsplit(self._endpoint).scheme not in ("http", "https") or not urlsplit(self._endpoint).hostname:
            raise UsageError(f"{variable} is no address of a hub")
        self.repo, self._hub, self._deadline_seconds = repo, hub, deadline_seconds
        self._token = _token(environ) if hub == "huggingface" else None
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        self._opener = opener
        self._revision = revision or ("main" if hub == "huggingface" else "master")
        self.files = self._listing()
        self.told = f"{self._endpoint}/{repo} at {self._revision}"

    def read(self, file: File, start: int, count: int) -> bytes:
        count = max(0, min(count, file.size_bytes - start))
        if not count:
            return b""
        path = quote(file.path)
        if self._hub == "huggingface":
            url = f"{self._endpoint}/{self.repo}/resolve/{quote(self._revision, safe='')}/{path}"
        else:
            url = (
                f"{self._endpoint}/api/v1/models/{self.repo}/repo"
                f"?Revision={quote(self._revision, safe='')}&FilePath={quote(file.path, safe='')}"
            )
        data = self._get(url, what=file.path, start=start, count=count, total=file.size_bytes)
        if len(data) != count:
            raise HubUnreachable(f"{file.path} of {self.repo} broke off", hint="try again")
        return data

    def _listing(self) -> tuple[File, ...]:
        revision = quote(self._revision, safe="")
        if self._hub == "huggingface":
            content = self._get(f"{self._endpoint}/api/models/{self.repo}/revision/{revision}?blobs=true")
            found = self._decoded(content, _Model)
            if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found.sha) is None:
                raise DownloadError(f"the hub names no commit of {self.repo}")
            self._revision = found.sha
            named = [(each.rfilename, each.size) for each in found.siblings]
        else:
            base = f"{self._endpoint}/api/v1/models/{self.repo}/repo/files"
            answer = self._decoded(self._get(f"{base}?Revision={revision}&Recursive=True"), _Answer)
            if answer.Data is None or answer.Data.Files is None:
                raise DownloadError(f"the hub has no {self.repo} at {self._revision}")
            named = [(each.Path, each.Size) for each in answer.Data.Files if each.Type != "tree"]
        for path, size in named:
            parts = PurePosixPath(path).parts
            if not path.isprintable() or len(path) > 300 or path.startswith("/") or ".." in parts:
                raise DownloadError(f"{self.repo} has a file that is called {path[:100]!a}")
            if size is not None and not 0 <= size < 1 << 50:
                raise DownloadError(f"{self.repo}: {path} cannot have {size} bytes")
        return tuple(File(path, size) for path, size in named[:_MOST_FILES] if size is not None)

    def _decoded(self, content: bytes, kind: type[_T]) -> _T:
        from selector.values import readable

        try:
            return msgspec.json.decode(content, type=readable(kind))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DownloadError(f"the hub's list of the files of {self.repo} cannot be read: {error}") from error

    def _get(
        self, url: str, *, what: str = "", start: int = 0, count: int = LISTING_BYTES, total: int | None = None
    ) -> bytes:
        """What is at ``url``: ``count`` bytes from ``start`` of a file of ``total``, or a whole small answer."""
        deadline = time.monotonic() + self._deadline_seconds
        named = f"{what} of {self.repo}" if what else self.repo
        try:
            for _ in range(_REDIRECTS + 1):
                headers = {"User-Agent": "autolaunch", "Accept-Encoding": "identity"}
                if self._token is not None and _origin(url) == _origin(self._endpoint):
                    headers["Authorization"] = f"Bearer {self._token}"
                if total is not None:
                    headers["Range"] = f"bytes={start}-{start + count - 1}"
                request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, checked
                with self._opener.open(request, timeout=max(0.1, deadline - time.monotonic())) as answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        url = self._followed(url, answer.headers.get("Location"), named)
                        continue
                    if answer.status >= 400:
                        raise self._refused(answer.status, named)
                    if total is not None:
                        _check_place(answer, start, count, total, named)
                    return _taken(
                        answer, count if total is not None else count + 1, deadline, named, whole=total is None
                    )
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise HubUnreachable(
                f"{named} could not be read: {str(reason)[:200]}",
                hint="is there a network? a mirror is taken from HF_ENDPOINT",
            ) from error
        raise DownloadError(f"{named}: the hub sends from one address to the next without end")

    def _followed(self, url: str, location: str | None, named: str) -> str:
        """Where an answer sends us: to a host that can be trusted to be the hub's, or over TLS to its store."""
        from urllib.parse import urljoin

        target = urljoin(url, location or "")
        parts, home = urlsplit(target), urlsplit(self._endpoint)
        same = parts.hostname == home.hostname or (_is_loopback(parts.hostname) and _is_loopback(home.hostname))
        secure = parts.scheme == "https" and (same or not _is_local(parts.hostname))
        if not secure and not (same and parts.scheme == home.scheme == "http"):
            raise DownloadError(f"{named}: the hub sends to {parts.scheme}://{parts.hostname}, where nothing is read")
        return target

    def _refused(self, status: int, named: str) -> DownloadError:
        if status in (401, 403):
            return DownloadError(
                f"the hub does not let this account read {self.repo}",
                hint="accept its terms on the hub, and set HF_TOKEN or run: hf auth login",
            )
        if status == 404:
            return DownloadError(f"the hub has no {named} at {self._revision}")
        return HubUnreachable(f"{named} could not be read: HTTP {status}", hint="try again later")


def _token(environ: Mapping[str, str]) -> str | None:
    """The user's token, from where the hub's client takes it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environ.get(name):
            return environ[name].strip()
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    path = Path(environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        with path.open(encoding="ascii") as file:
            found = file.read(1024).strip()
    except (OSError, ValueError):
        return None
    return found if found.isprintable() and found else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _is_loopback(host: str | None) -> bool:
    from autolaunch.given import is_loopback

    return host is not None and is_loopback(host)


def _is_local(host: str | None) -> bool:
    """Whether an address is of a network that is not everybody's: nothing on the way may send us there."""
    if host is None or _is_loopback(host):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _check_place(answer: http.client.HTTPResponse, start: int, count: int, total: int, named: str) -> None:
    """Holds that an answer is the part of the file that was asked for."""
    if answer.status == 200 and start == 0:
        return  # the whole file: its beginning is taken, and the rest left
    if answer.status != 206:
        raise DownloadError(f"{named}: the hub sends whole files where a part was asked for")
    told = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
    if (
        told is None
        or int(told[1]) != start
        or not start <= int(told[2]) <= start + count - 1
        or (told[3] != "*" and int(told[3]) != total)
    ):
        raise DownloadError(f"{named}: the hub sent another part than was asked for")


def _taken(answer: http.client.HTTPResponse, count: int, deadline: float, named: str, *, whole: bool) -> bytes:
    """At most ``count`` bytes; of a ``whole`` answer as many are already too many."""
    data = bytearray()
    while len(data) < count:
        if time.monotonic() > deadline:
            raise HubUnreachable(f"{named} comes too slowly", hint="try again later")
        piece = answer.read1(min(_CHUNK_BYTES, count - len(data)))
        if not piece:
            break
        data += piece
    if whole and len(data) >= count:
        raise DownloadError(f"{named}: the hub's answer is longer than any that makes sense")
    return bytes(data)
