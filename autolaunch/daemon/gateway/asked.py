"""What the gateway reads of a request's body: which model, streamed or not, and what conversation it belongs to."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

#: Of the messages so many tell one conversation from another: the system's, and the user's first.
_FIRST_MESSAGES = 2


class _Body(msgspec.Struct):
    """Fields that are of no concern here are skipped unread, and passed on as they came."""

    model: Annotated[str, msgspec.Meta(max_length=300)] | None = None
    stream: bool | None = None


class _Conversation(msgspec.Struct):
    prompt_cache_key: str | None = None
    user: str | None = None
    system: msgspec.Raw = msgspec.Raw(b"")
    messages: list[msgspec.Raw] = msgspec.field(default_factory=list)
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


_BODY = msgspec.json.Decoder(_Body)
_CONVERSATION = msgspec.json.Decoder(_Conversation)
#: What of a prompt tells one from another.
_PROMPT_BYTES = 2048


class Unreadable(Exception):
    """The body is no request; the message is for its client."""


def read(body: bytes) -> tuple[str | None, bool]:
    """The model's name as the client gave it, and whether the answer is to be streamed.

    Raises:
        Unreadable: no JSON object, or one that nobody should have to read.
    """
    try:
        found = _BODY.decode(body)
    except msgspec.ValidationError as error:
        raise Unreadable(f"the body is not as it should be: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"the body is no JSON: {error}") from error
    except RecursionError as error:
        raise Unreadable("the body is nested too deeply") from error
    return found.model, bool(found.stream)


def conversation(body: bytes) -> bytes | None:
    """What tells the conversation of a request from others; ``None`` where nothing does."""
    try:
        found = _CONVERSATION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.prompt_cache_key or found.user:
        return f"{found.prompt_cache_key} {found.user}".encode()
    begun = [bytes(found.system), *(bytes(each) for each in found.messages[:_FIRST_MESSAGES])]
    begun += [bytes(each)[:_PROMPT_BYTES] for each in (found.prompt, found.input)]
    digest = hashlib.blake2b(digest_size=16)
    for each in begun:
        digest.update(each)
        digest.update(b"\0")
    return digest.digest() if any(begun) else None
