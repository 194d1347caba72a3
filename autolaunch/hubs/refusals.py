"""What a fetching process says went wrong, as an error with what to do about it."""

from __future__ import annotations

from autolaunch.hubs.wire import Kind, Question, Refused
from selector.errors import (
    DamagedDownload,
    DownloadError,
    Gated,
    HubBusy,
    HubRefuses,
    HubUnreachable,
    NoHubClient,
    NoRoomOnDisk,
    NotHere,
    NotOnHub,
    TokenRefused,
)
from selector.facts import Hub

TITLES: dict[Hub, str] = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
_TOKENS: dict[Hub, str] = {
    "huggingface": "set HF_TOKEN or run: hf auth login",
    "modelscope": "set MODELSCOPE_API_TOKEN or run: modelscope login",
}
_ENDPOINTS: dict[Hub, str] = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}
_CACHES: dict[Hub, str] = {"huggingface": "HF_HOME", "modelscope": "MODELSCOPE_CACHE"}
KEPT = "what has come is kept, and the next try goes on from there"


#: The error of each kind, what it says and what to do about it. ``{told}`` is what the hub or the system said.
_ERRORS: dict[Kind, tuple[type[DownloadError], str, str | None]] = {
    "gated": (
        Gated,
        "{title} does not let this account read {repo}",
        "accept its terms on the hub's page of it, and {token}",
    ),
    "token": (
        TokenRefused,
        "{title} gives {repo} to nobody without a valid token: it is private, or not there, or the token has expired",
        "{token}",
    ),
    "missing": (NotOnHub, "{title} has no {repo}{at}", "autolaunch models --verbose lists the checkpoints"),
    "revision": (NotOnHub, "{title} has no {repo}{at}", "--revision takes a commit, a tag or a branch of it"),
    "listing": (HubRefuses, "what {title} has of {repo}{at} is no checkpoint to serve: {told}", None),
    "refused": (HubRefuses, "{title} refuses {repo}: {told}", None),
    "damaged": (DamagedDownload, "{told}", "the copy at {title} is damaged, or what stands between it and here is"),
    "disk": (NoRoomOnDisk, "{told}", "free some room, or set {cache} to a folder on a larger disk"),
    "cache": (DownloadError, "{repo} cannot be kept: {told}", "{cache} names another folder"),
    "extra": (NoHubClient, "{told}", "pip install 'glm-autolaunch[modelscope]', or --hub huggingface"),
    "busy": (HubBusy, "{title} has too much to do ({told}), and {repo} did not come whole", f"try later; {KEPT}"),
    "tls": (
        HubUnreachable,
        "the connection to {title} is not to be trusted: {told}",
        "is the clock right? a company's own certificate is taken from SSL_CERT_FILE",
    ),
    "redirects": (HubUnreachable, "{title} sends in circles: {told}", "is {endpoint} the address of a hub?"),
    "endpoint": (HubUnreachable, "{title} sends nowhere: {told}", "is {endpoint} the address of a hub?"),
    "offline": (HubUnreachable, "{repo} was not fetched: {told}", "HF_HUB_OFFLINE forbids it"),
    "unreachable": (
        HubUnreachable,
        "{repo} could not be fetched: {told}",
        f"is there a network? a mirror is taken from {{endpoint}}; {KEPT}",
    ),
}
#: What, offline, only says that it is not here.
_NOT_HERE = frozenset({"offline", "listing", "damaged", "cache"})


def error_of(refused: Refused, question: Question) -> DownloadError:
    """The error for a person and for scripts (``code``)."""
    if question.offline and refused.kind in _NOT_HERE:
        return NotHere(
            f"{question.repo} is not on this machine, or not whole, and --offline forbids fetching it "
            f"({refused.message})",
            hint="launch once without --offline, or give a folder with --model-path",
        )
    kind, message, hint = _ERRORS[refused.kind]
    words = {
        "repo": question.repo,
        "at": f" at {question.revision}" if question.revision else "",
        "title": TITLES[question.hub],
        "token": _TOKENS[question.hub],
        "endpoint": _ENDPOINTS[question.hub],
        "cache": _CACHES[question.hub],
        "told": refused.message,
    }
    return kind(message.format_map(words), hint=None if hint is None else hint.format_map(words))
