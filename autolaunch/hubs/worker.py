"""The process that fetches: ``python -P -m autolaunch.hubs.worker QUESTION``. Answers in JSON lines, and ends.

Apart from ours, so that an interrupt ends it at once (clients' threads would not), and so that the hub's token is in
no other process.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from autolaunch.hubs import places
from autolaunch.hubs.arriving import Arriving, Stopped
from autolaunch.hubs.fetching import Fetching, Source
from autolaunch.hubs.listing import HubFile, Listing, NotAListing
from autolaunch.hubs.refused import Broken, Denied, text
from autolaunch.hubs.speed import amount
from autolaunch.hubs.wire import Answer, Kind, Question, Refused

_speaking = threading.Lock()


def say(answer: Answer) -> None:
    """One line. Called from the threads that fetch, too."""
    line = msgspec.json.encode(answer) + b"\n"
    with _speaking:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


class OnlyHere:
    """What lies in a hub's cache, and nothing else."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def listing(self, revision: str | None) -> Listing:
        question, cache = self._question, Path(self._question.cache)
        commit = places.commit_of(question.hub, cache, question.repo, revision)
        found = None if commit is None else places.listed_here(question.hub, cache, question.repo, commit)
        if found is None:
            raise Denied("offline", "it is not on this machine")
        return found

    def target(self, file: HubFile, folder: Path) -> Path:
        return folder / file.path

    def elsewhere(self, file: HubFile) -> tuple[Path, ...]:  # noqa: ARG002 - each content has one place
        return ()

    def alone(self, file: HubFile) -> AbstractContextManager[None]:
        raise Denied("offline", f"{file.path} is not on this machine")

    def fetch(self, file: HubFile, commit: str, arriving: Arriving) -> None:  # noqa: ARG002 - nothing is fetched
        raise Denied("offline", f"{file.path} is not on this machine")


def source(question: Question) -> Source:
    """Who is asked.

    Raises:
        Denied: the client of that hub is not installed.
    """
    if question.offline:
        return OnlyHere(question)
    if question.hub == "huggingface":
        from autolaunch.hubs.huggingface import HuggingFace

        return HuggingFace(question)
    from autolaunch.hubs.modelscope import ModelScope

    return ModelScope(question)


def refusal(error: Exception, question: Question, missing_bytes: int | None) -> Refused:
    """Why it came to nothing."""
    kind: Kind
    if isinstance(error, Broken | Denied):
        kind, message = error.kind, error.message
    elif isinstance(error, NotAListing):
        kind, message = "listing", str(error)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        more = "" if missing_bytes is None else f"; {amount(missing_bytes)} have still to come"
        kind, message = "disk", f"the disk became full while {question.repo} was fetched{more}"
    else:
        where = getattr(error, "filename", None) or question.cache
        kind, message = "cache", f"{where}: {getattr(error, 'strerror', None) or text(error)}"
    return Refused(kind=kind, message=text(message) if kind not in ("disk", "cache") else message)


def main(argv: list[str]) -> int:
    """Answers the question in ``argv[1]``."""
    question = msgspec.json.decode(argv[1], type=Question)
    fetching: Fetching | None = None
    try:
        fetching = Fetching(question, source(question), say)
        fetching.run()
    except (Broken, Denied, NotAListing, Stopped, OSError) as error:
        say(refusal(error, question, None if fetching is None else fetching.missing_bytes))
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv)
    # At once: a thread may be waiting for a server that never answers. Everything is written when it is said.
    os._exit(code)
