"""Hugging Face's hub, and whatever speaks its API at ``HF_ENDPOINT``. Runs in the process that fetches.

Its client finds its way, holds the token and tells its refusals apart. The bytes are taken from the connection here,
because the client begins a file anew that was interrupted; and so is the listing, because the part of the client that
would parse it (``HfApi``) is the larger part of its import, at every start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined] # public, but found only when they are asked for
    WeakFileLock,
    XetFileData,
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

from autolaunch.hubs import places
from autolaunch.hubs.arriving import Arriving
from autolaunch.hubs.listing import HubFile, Listing, NotAListing, sound
from autolaunch.hubs.refused import Broken, Denied, of_status, retry_after, text
from autolaunch.hubs.wire import Question

try:  # the client's own: it moved from httpx to its successor with 2.0
    import httpx2 as httpx
except ImportError:  # pragma: no cover - with a client of the 1 series
    import httpx  # type: ignore[import-not-found, no-redef, unused-ignore]

#: A longer answer is no listing: that of the most files it may have is shorter.
LISTING_BYTES = 64 * 2**20


class _Lfs(msgspec.Struct):
    sha256: str


class _File(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str | None = msgspec.field(default=None, name="blobId")
    lfs: _Lfs | None = None


class _Repository(msgspec.Struct):
    sha: str | None = None
    siblings: list[_File] | None = None


#: Until it once did not.
_xet_works = True


class HuggingFace:
    """One repository of it."""

    def __init__(self, question: Question) -> None:
        self._repo, self._patience = question.repo, question.patience
        self._cache = Path(question.cache)
        self._place = places.repository("huggingface", self._cache, question.repo)
        self._headers = build_hf_headers(library_name="autolaunch")

    def listing(self, revision: str | None) -> Listing:
        """All files of the repository at the commit that ``revision`` stands for.

        Raises:
            Broken: it may come if it is tried again.
            Denied: it will not.
            NotAListing: what came is none.
        """
        at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
        with self._asked():
            validate_repo_id(self._repo)
            content = self._answer(f"{constants.ENDPOINT}/api/models/{self._repo}{at}?blobs=true")
        try:
            found = msgspec.json.decode(content, type=_Repository)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise NotAListing("what it answers is no description of a repository") from error
        if found.sha is None or not places.COMMIT.fullmatch(found.sha):
            raise NotAListing("it names no commit")
        files = []
        for each in found.siblings or ():
            if each.size is None:
                raise NotAListing(f"it does not say how long {each.rfilename[:100]!a} is")
            lfs = each.lfs
            files.append(
                HubFile(
                    path=each.rfilename,
                    size_bytes=each.size,
                    sha256=None if lfs is None else lfs.sha256,
                    git_sha1=None if lfs is not None else each.blob_id,
                )
            )
        return Listing(repo=self._repo, hub="huggingface", revision=found.sha, files=sound(files))

    def _answer(self, url: str) -> bytes:
        limits = httpx.Timeout(self._patience.answer_seconds)
        with get_session().stream("GET", url, headers=self._headers, timeout=limits, follow_redirects=True) as response:
            hf_raise_for_status(response)
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > LISTING_BYTES:
                    raise NotAListing(f"its description of {self._repo} has no end")
            return bytes(content)

    def target(self, file: HubFile, folder: Path) -> Path:
        """Where the content goes: by its hash, and by its name a link to it."""
        named = file.sha256 or file.git_sha1
        return folder / file.path if named is None else self._place / "blobs" / named

    def elsewhere(self, file: HubFile) -> tuple[Path, ...]:  # noqa: ARG002 - each content has one place
        return ()

    @contextlib.contextmanager
    def alone(self, file: HubFile) -> Iterator[None]:
        """Within it no other process that keeps to the hub's locks fetches the same content."""
        named = file.sha256 or file.git_sha1 or file.path.replace("/", "--")
        lock = self._cache / ".locks" / self._place.name / f"{named}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            yield

    def fetch(self, file: HubFile, commit: str, arriving: Arriving) -> None:
        """Has the rest of a file arrive.

        Raises:
            Broken, Denied, Stopped, OSError: as they say.
        """
        url = hf_hub_url(self._repo, file.path, revision=commit)
        with self._asked():
            known = get_hf_file_metadata(url, timeout=self._patience.answer_seconds, headers=dict(self._headers))
            if known.size is not None and known.size != file.size_bytes:
                raise Broken(f"the hub says {file.path} is {known.size} bytes long, and listed {file.size_bytes}")
            xet = known.xet_file_data
            if xet is not None and _fetched_by_xet(xet, file, self._headers, arriving):
                return
            headers = dict(self._headers) | arriving.asked
            if not _same_host(url, known.location):
                headers.pop("authorization", None)  # a signed address of a store is nobody to show the token to
            self._take(known.location, headers, arriving)
        if not arriving.whole:
            raise Broken(f"{file.path} broke off after {arriving.came_bytes} of {file.size_bytes} bytes")

    def _take(self, url: str, headers: dict[str, str], arriving: Arriving) -> None:
        session = get_session()
        limits = httpx.Timeout(self._patience.answer_seconds)
        with session.stream("GET", url, headers=headers, timeout=limits, follow_redirects=True) as response:
            arriving.answered(response.status_code, response.headers)
            hf_raise_for_status(response)
            arriving.take(response.iter_raw())

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """The client's errors as ours.

        Raises:
            Broken, Denied: as they say.
        """
        try:
            yield
        except GatedRepoError as error:
            raise Denied("gated", text(error)) from error
        except RevisionNotFoundError as error:
            raise Denied("revision", text(error)) from error
        except EntryNotFoundError as error:
            raise Denied("listing", "a file that it listed is not there") from error
        except RepositoryNotFoundError as error:
            # 401 is said of what is private, and to a token that is none.
            raise Denied("token" if error.response.status_code == 401 else "missing", text(error)) from error
        except HFValidationError as error:
            raise Denied("missing", text(error)) from error
        except OfflineModeIsEnabled as error:
            raise Denied("offline", text(error)) from error
        except HfHubHTTPError as error:
            response = error.response
            raise of_status(response.status_code, text(error), retry_after(response.headers)) from error
        except httpx.TooManyRedirects as error:
            raise Denied("redirects", text(error)) from error
        except httpx.HTTPError as error:
            raise _transport(error) from error
        except httpx.InvalidURL as error:
            raise Denied("endpoint", text(error)) from error


def _transport(error: Exception) -> Broken | Denied:
    told = f"{type(error).__name__}: {text(error)}"
    if isinstance(error, httpx.ProxyError):
        return Denied("unreachable", f"the proxy: {told}")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.TooManyRedirects):
        return Denied("endpoint", told)
    if "CERTIFICATE" in told.upper() or "SSL" in told.upper():
        return Denied("tls", told)
    return Broken(told)


def _same_host(one: str, other: str) -> bool:
    return httpx.URL(one).netloc == httpx.URL(other).netloc


def _fetched_by_xet(known: XetFileData, file: HubFile, headers: dict[str, str], arriving: Arriving) -> bool:
    """Takes the rest by Xet's own protocol, from where it is; whether all of it came so.

    Over plain HTTP it comes as well (the hub does so up to 50 GB a file), so whatever is wrong with Xet is no reason
    to give up: what is missing then comes that way.
    """
    global _xet_works  # noqa: PLW0603 - one process fetches one checkpoint
    if not _xet_works:
        return False
    try:
        from huggingface_hub.utils._runtime import is_xet_available

        if not is_xet_available():  # not installed, or HF_HUB_DISABLE_XET
            return False
        from hf_xet import XetFileInfo  # type: ignore[import-untyped] # it publishes no types
        from huggingface_hub.utils._xet import (
            get_xet_session,
            refresh_xet_connection_info,
            xet_headers_without_auth,
        )

        connection = refresh_xet_connection_info(file_data=known, headers=headers)
        session = get_xet_session()  # type: ignore[no-untyped-call] # as above
        with session.new_download_stream_group(
            endpoint=connection.endpoint,
            token=connection.access_token,
            token_expiry_unix_secs=connection.expiration_unix_epoch,
            token_refresh_url=known.refresh_route,
            token_refresh_headers=headers,
            custom_headers=xet_headers_without_auth(headers),
        ) as group:
            arriving.take(group.download_stream(XetFileInfo(known.file_hash, file.size_bytes), arriving.came_bytes))
    except (ImportError, AttributeError, TypeError):  # another client: its parts for Xet are not promised to anybody
        _xet_works = False
    except (RuntimeError, ConnectionError, TimeoutError, ValueError, PermissionError, httpx.HTTPError):
        _xet_works = False
    return arriving.whole
