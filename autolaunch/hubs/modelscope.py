"""ModelScope's hub. Runs in the process that fetches; its client is an extra (``glm-autolaunch[modelscope]``).

The client knows the address, the account and where its cache is; what is asked for here is what it asks for, at the
commit that the branch stood for. Files lie in the cache as it lays them out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from autolaunch.hubs import places
from autolaunch.hubs.arriving import Arriving
from autolaunch.hubs.listing import HubFile, Listing, NotAListing, sound
from autolaunch.hubs.refused import Broken, Denied, of_status, retry_after, text
from autolaunch.hubs.wire import Question

CHUNK_BYTES = 2**20
LISTING_BYTES = 32 * 2**20


class _File(msgspec.Struct):
    Path: str
    Size: int | None = None
    Sha256: str | None = None
    Type: str = "blob"
    Revision: str | None = None


class _Committer(msgspec.Struct):
    Id: str | None = None
    ShortId: str | None = None


class _Data(msgspec.Struct):
    Files: list[_File] | None = None
    LatestCommitter: _Committer | None = None


class _Files(msgspec.Struct):
    Data: _Data | None = None
    Message: str | None = None


class ModelScope:
    """One repository of it.

    Raises:
        Denied: its client is not installed.
    """

    def __init__(self, question: Question) -> None:
        try:
            import requests
            from modelscope_hub import HubApi, HubConfig
        except ImportError as error:
            raise Denied("extra", f"the client of ModelScope is not installed, and {question.repo} is there") from error
        self._repo, self._patience = question.repo, question.patience
        self._cache = Path(question.cache)
        self._place = places.repository("modelscope", self._cache, question.repo)
        self._session, self._errors = requests.Session(), requests.exceptions
        # Its tokens travel as a cookie.
        token = HubConfig().token
        if token:
            self._session.cookies.set("m_session_id", token)
        self._api, self._url = HubApi(), ""

    def listing(self, revision: str | None) -> Listing:
        """All files of the repository at the commit that ``revision`` stands for.

        Raises:
            Broken: it may come if it is tried again.
            Denied: it will not.
            NotAListing: what came is none.
        """
        name = revision or "master"
        with self._asked():
            if not self._url:
                endpoint = self._api.resolve_endpoint_for_read(self._repo)
                self._url = f"{endpoint.rstrip('/')}/api/v1/models/{quote(self._repo)}/repo"
            asked = {"Revision": name, "Recursive": "True"}
            wait = self._patience.answer_seconds
            with self._session.get(f"{self._url}/files", params=asked, timeout=wait, stream=True) as response:
                self._refuse(response.status_code, response.headers, f"{self._repo} at {name}")
                content = response.raw.read(LISTING_BYTES + 1, decode_content=True)
        if len(content) > LISTING_BYTES:
            raise NotAListing("it is too long")
        try:
            found = msgspec.json.decode(content, type=_Files).Data
        except (msgspec.MsgspecError, RecursionError) as error:
            raise NotAListing(f"it cannot be read: {text(error)}") from error
        if found is None or found.Files is None:
            # An unknown revision is answered with success and no files.
            raise Denied("revision", f"nothing at {name}")
        files = sound(
            HubFile(path=each.Path, size_bytes=-1 if each.Size is None else each.Size, sha256=each.Sha256 or None)
            for each in found.Files
            if each.Type != "tree"
        )
        return Listing(repo=self._repo, hub="modelscope", revision=_commit(found, name), files=files)

    def target(self, file: HubFile, folder: Path) -> Path:
        """Where the content goes: under its name."""
        return folder / file.path

    def elsewhere(self, file: HubFile) -> tuple[Path, ...]:
        """Where its client has it by the branch's name, and where it had it before version 1.38."""
        if file.sha256 is None:
            return ()
        owner, _, name = self._repo.partition("/")
        older = self._cache / "hub" / "models" / owner / name.replace(".", "___")
        return self._place / "snapshots" / "master" / file.path, older / file.path

    @contextlib.contextmanager
    def alone(self, file: HubFile) -> Iterator[None]:
        """Within it no other process of ours fetches the same content."""
        place = self._cache / ".lock" / f"autolaunch-{self._place.name}-{file.path.replace('/', '--')[-100:]}.lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def fetch(self, file: HubFile, commit: str, arriving: Arriving) -> None:
        """Has the rest of a file arrive.

        Raises:
            Broken, Denied, Stopped, OSError: as they say.
        """
        asked = {"Revision": commit, "FilePath": file.path}
        wait = self._patience.answer_seconds
        with (
            self._asked(),
            self._session.get(self._url, params=asked, headers=arriving.asked, timeout=wait, stream=True) as response,
        ):
            arriving.answered(response.status_code, response.headers)
            self._refuse(response.status_code, response.headers, file.path)
            arriving.take(response.iter_content(CHUNK_BYTES))
        if not arriving.whole:
            raise Broken(f"{file.path} broke off after {arriving.came_bytes} of {file.size_bytes} bytes")

    def _refuse(self, status: int, headers: object, what: str) -> None:
        if status >= 400:
            raise of_status(status, what, retry_after(headers))  # type: ignore[arg-type] # it is a mapping

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """The client's errors as ours.

        Raises:
            Broken, Denied: as they say.
        """
        from modelscope_hub.errors import AuthenticationError, HubError, NotExistError, PermissionDeniedError

        errors = self._errors
        try:
            yield
        except NotExistError as error:
            raise Denied("missing", text(error)) from error
        except AuthenticationError as error:
            raise Denied("token", text(error)) from error
        except PermissionDeniedError as error:
            raise Denied("gated", text(error)) from error
        except errors.TooManyRedirects as error:
            raise Denied("redirects", text(error)) from error
        except errors.SSLError as error:
            raise Denied("tls", text(error)) from error
        except (errors.InvalidURL, errors.InvalidSchema, errors.MissingSchema) as error:
            raise Denied("endpoint", text(error)) from error
        except (errors.RequestException, HubError) as error:
            raise Broken(f"{type(error).__name__}: {text(error)}") from error


def _commit(found: _Data, name: str) -> str:
    """The commit of a listing: said in full, or by its beginning beside files that it changed.

    The name as it was asked for where neither is said: the hashes pin the content all the same.
    """
    latest = found.LatestCommitter or _Committer()
    if latest.Id and places.COMMIT.fullmatch(latest.Id):
        return latest.Id
    for each in found.Files or ():
        told = each.Revision or ""
        if latest.ShortId and told.startswith(latest.ShortId) and places.COMMIT.fullmatch(told):
            return told
    return name
