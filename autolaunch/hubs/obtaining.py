"""A checkpoint, wherever it is: what is here and whole is used, the rest is fetched by a process of its own."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from autolaunch.hubs import kept, places
from autolaunch.hubs.listing import Listing
from autolaunch.hubs.refusals import TITLES, error_of
from autolaunch.hubs.speed import Speed, Transfer, told
from autolaunch.hubs.wire import MOST_LINE_BYTES, Answer, Finished, Listed, Moved, Patience, Question, Refused, Said
from engines.leash import on_leash
from selector.errors import DownloadError, HubUnreachable, NoHubClient
from selector.facts import Hub
from selector.values import Value

#: What a person hears: a message, how much of it is done (0 to 1, or ``None``), and the figures of a download.
Progress = Callable[[str, float | None, Transfer | None], None]
_POLL_SECONDS = 0.25
_TAIL_BYTES = 4096
#: Made once, before there are threads to read with it (:func:`selector.values.readable`).
_ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)  # type: ignore[arg-type, unused-ignore] # a union


class Wanted(Value, frozen=True, kw_only=True):
    """A checkpoint as it may be named: by its id at Hugging Face, at ModelScope, or both; the first that answers.

    ``file_prefix`` names one quantization of a GGUF repository. Without ``revision`` it is the hub's main branch.
    """

    huggingface: str | None = None
    modelscope: str | None = None
    revision: str | None = None
    file_prefix: str | None = None

    @property
    def places(self) -> tuple[tuple[Hub, str], ...]:
        """Where it may be asked for, in that order."""
        named: tuple[tuple[Hub, str | None], ...] = (("huggingface", self.huggingface), ("modelscope", self.modelscope))
        return tuple((hub, repo) for hub, repo in named if repo is not None)


class Obtained(Value, frozen=True, kw_only=True):
    """A checkpoint that is whole in ``folder``: every file of ``listing`` is there with the hub's size and hash."""

    folder: Path
    listing: Listing
    fetched_bytes: int
    seconds: float


def obtain(
    wanted: Wanted,
    *,
    home: Path,
    offline: bool = False,
    on_progress: Progress = lambda _message, _fraction, _transfer: None,
    cancelled: threading.Event | None = None,
    patience: Patience | None = None,
) -> Obtained:
    """Has the checkpoint here, whole. Set ``cancelled`` and it ends within a second; what has come is kept.

    A hub is not asked where the revision is a commit and the checkpoint is here, nor with ``offline``. Where no hub
    answers, what is here is taken, and that is said.

    Raises:
        HubUnreachable: no hub answers, or it broke off; or it was cancelled.
        DownloadError: as the kinds of it say.
    """
    began = time.monotonic()
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    if offline or places.COMMIT.fullmatch(wanted.revision or ""):
        for hub, repo in wanted.places:
            if (found := _here(hub, repo, wanted, home)) is not None:
                return msgspec.structs.replace(found, seconds=time.monotonic() - began)
    failures: list[DownloadError] = []
    for hub, repo in wanted.places:
        question = _question(hub, repo, wanted, home, offline=offline, patience=patience)
        try:
            return _Conversation(question, on_progress, cancelled, began).outcome()
        except DownloadError as error:
            if cancelled is not None and cancelled.is_set():
                raise
            failures.append(error)
        if isinstance(failures[-1], NoHubClient) and len(failures) > 1:
            break  # what the first hub said is the cause; that the second could be asked is told beside it
        if not offline and not _may_be_elsewhere(failures[-1]):
            raise failures[-1]
        if not offline and (found := _here(hub, repo, wanted, home)) is not None:
            on_progress(f"{TITLES[hub]} does not answer: taking {repo} as it is here", None, None)
            return msgspec.structs.replace(found, seconds=time.monotonic() - began)
    if len(failures) > 1 and not offline:
        failures[0].message += f"; and from ModelScope: {failures[1].message}"
        failures[0].args = (failures[0].message,)
    raise failures[0]


def _may_be_elsewhere(error: DownloadError) -> bool:
    """Another hub is asked only where this one did not answer: what it refuses it refuses."""
    return isinstance(error, HubUnreachable)


def _question(hub: Hub, repo: str, wanted: Wanted, home: Path, *, offline: bool, patience: Patience | None) -> Question:
    return Question(
        repo=repo,
        hub=hub,
        revision=wanted.revision,
        file_prefix=wanted.file_prefix,
        home=str(home),
        cache=str(places.cache_of(hub, os.environ).absolute()),
        offline=offline,
        patience=patience or Patience(),
    )


def _here(hub: Hub, repo: str, wanted: Wanted, home: Path) -> Obtained | None:
    """What was held to be whole before, and has not changed."""
    cache = places.cache_of(hub, os.environ)
    commit = places.commit_of(hub, cache, repo, wanted.revision)
    found = None if commit is None else kept.load(home, hub, repo, commit, wanted.file_prefix)
    if commit is None or found is None or not found.whole:
        return None
    if Path(found.folder) != places.snapshot(hub, cache.absolute(), repo, commit):
        return None  # kept of another cache than the one that is in use
    return Obtained(folder=Path(found.folder), listing=found.listing, fetched_bytes=0, seconds=0.0)


class _Conversation:
    """One question to one hub, and what is answered to it."""

    def __init__(
        self, question: Question, on_progress: Progress, cancelled: threading.Event | None, began: float
    ) -> None:
        self._question, self._on_progress, self._cancelled, self._began = question, on_progress, cancelled, began
        self._speed, self._checking = Speed(), Speed()
        self._listing: Listing | None = None

    def outcome(self) -> Obtained:
        """
        Raises:
            DownloadError: what came of it instead.
        """
        question = self._question
        verb = "looking for" if question.offline else f"asking {TITLES[question.hub]} for"
        self._on_progress(f"{verb} {question.repo}", None, None)
        with _asked(question) as (answers, tail):
            while True:
                if self._cancelled is not None and self._cancelled.is_set():
                    raise HubUnreachable(f"fetching {question.repo} was cancelled")
                try:
                    answer = answers.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(answer, Finished) and self._listing is not None:
                    return Obtained(
                        folder=Path(answer.folder),
                        listing=self._listing,
                        fetched_bytes=answer.fetched_bytes,
                        seconds=time.monotonic() - self._began,
                    )
                if isinstance(answer, Refused):
                    raise error_of(answer, question)
                if answer is None or isinstance(answer, Finished):
                    said = tail()
                    raise HubUnreachable(
                        f"what fetches {question.repo} ended without a word" + (f": {said}" if said else ""),
                        hint="what has come is kept, and the next try goes on from there",
                    )
                self._hear(answer)

    def _hear(self, answer: Listed | Moved | Said) -> None:
        repo = self._question.repo
        if isinstance(answer, Said):
            self._on_progress(answer.message, None, None)
        elif isinstance(answer, Listed):
            self._listing = answer.listing
        elif self._listing is not None:
            now, total = time.monotonic(), self._listing.size_bytes
            transfer = self._speed.at(now, answer.here_bytes, total, answer.fetched_bytes)
            checking = self._checking.at(now, answer.checked_bytes, max(answer.to_check_bytes, 1))
            fraction = min(1.0, answer.here_bytes / total) if total else None
            if answer.checked_bytes < answer.to_check_bytes and not transfer.bytes_per_second:
                self._on_progress(f"checking {repo}: {told(checking)}", fraction, None)
            else:
                self._on_progress(f"fetching {repo}: {told(transfer)}", fraction, transfer)


@contextmanager
def _asked(question: Question) -> Iterator[tuple[queue.Queue[Answer | None], Callable[[], str]]]:
    """The process that answers; ended when this is left. ``None`` is the end of what it says."""
    argv = (sys.executable, "-P", "-m", "autolaunch.hubs.worker", msgspec.json.encode(question).decode())
    environment = dict(os.environ) | {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    answers: queue.Queue[Answer | None] = queue.Queue(maxsize=1000)
    tail = bytearray()
    ended = threading.Event()

    def listen(stream: IO[bytes]) -> None:
        # Closed while it is read: whoever asked has left. What is no answer ends the listening, too.
        with suppress(ValueError):
            while line := stream.readline(MOST_LINE_BYTES):
                _put(answers, _ANSWERS.decode(line), ended)
        _put(answers, None, ended)

    def drain(stream: IO[bytes]) -> None:
        with suppress(ValueError):  # as above
            while piece := os.read(stream.fileno(), 65536):
                tail.extend(piece)
                del tail[:-_TAIL_BYTES]

    with on_leash(argv, environment=environment, stdout=subprocess.PIPE) as process:
        if process.stdout is None or process.stderr is None:  # both were asked for
            raise OSError("no pipes")
        threads = [
            threading.Thread(target=listen, args=(process.stdout,), daemon=True),
            threading.Thread(target=drain, args=(process.stderr,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield answers, lambda: _last_line(bytes(tail))
            for thread in threads:  # it has said all it had to say, and ends
                thread.join()
        finally:
            ended.set()


def _put(answers: queue.Queue[Answer | None], answer: Answer | None, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            answers.put(answer, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return


def _last_line(tail: bytes) -> str:
    from autolaunch.hubs.refused import text

    lines = tail.decode(errors="replace").strip().splitlines()
    return text(lines[-1]) if lines else ""
