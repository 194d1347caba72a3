"""What each engine is known to get wrong in its answers, beyond what any answer's bytes tell by themselves.

Every row was recorded from the engine (``tests/data/wire``, with its version) by ``scripts/record_wire``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from selector.facts import EngineName
from selector.values import Value


class Known(Value, frozen=True, kw_only=True):
    """A refusal that is known by its words (and by the status it comes with): what it is in truth.

    Attributes:
        message: what the client is told instead of the engine's words; ``{asked}`` is the model's name.
    """

    words: re.Pattern[str]
    status: int
    code: str
    with_status: int | None = None
    message: str | None = None


class Manners(Value, frozen=True, kw_only=True):
    """One engine.

    Attributes:
        idle_comment: comments of a stream that keep nothing alive: an event follows at once. Programs that read
            streams line by line without knowing of comments stumble over them for nothing.
        refusals: tried in order, before those that all engines share.
        own_codes: its refusals have codes of this gateway's own, which stand.
    """

    idle_comment: re.Pattern[bytes] | None = None
    refusals: tuple[Known, ...] = ()
    own_codes: bool = False


_NO_MODEL = "the model {asked!r} is not served here"

#: Refusals of whatever engine.
COMMON: tuple[Known, ...] = (
    Known(
        words=re.compile(
            r"context[ _](?:size|length|window|budget)|maximum (?:model|input|prompt) len|longer than the maximum",
            re.IGNORECASE,
        ),
        status=400,
        code="context_length_exceeded",
    ),
    Known(
        words=re.compile(
            r"^the model [\s\S]{0,300} does not exist|server is pinned to|this server serves", re.IGNORECASE
        ),
        status=404,
        code="model_not_found",
        message=_NO_MODEL,
    ),
    # The gateway asked whether the client may; a route that the engine has not is no fault of the request's form.
    Known(
        words=re.compile(r"^(?:file )?not found\.?$", re.IGNORECASE),
        with_status=404,
        status=404,
        code="not_supported",
        message="the engine that serves {asked!r} has no such route",
    ),
)

_BY_ENGINE: Mapping[EngineName, Manners] = {
    "mlx": Manners(
        # mlx-lm 0.32 opens each stream with how much of the prompt is done; when all of it is, the first token follows.
        idle_comment=re.compile(rb"^: keepalive (\d+)/\1[ \t]*$"),
        refusals=(
            # mlx-lm 0.32 answers 404 to whatever fails before the first token, be it a prompt that no template takes.
            *COMMON,
            # Both look for a model that they were not started with on the hub, and tell of its settings.
            Known(
                words=re.compile(r"^Failed to load model|cached snapshot folder"),
                status=404,
                code="model_not_found",
                message=_NO_MODEL,
            ),
            # mlx-lm 0.32: the thread that generates has ended, and with it everybody's answers: no fault of a request.
            Known(words=re.compile(r"generation thread"), status=503, code="engine_error"),
            Known(words=re.compile(r""), with_status=404, status=400, code="invalid_request"),
        ),
    ),
    "llamacpp": Manners(
        refusals=(
            # llama.cpp b11549: 500 for an image that the model cannot see, 501 for what it was not started with.
            Known(
                words=re.compile(r"(?:image|audio|video) input is not supported"),
                status=400,
                code="not_supported",
                message="{asked!r} takes no images, sound or video here",
            ),
            Known(
                words=re.compile(r"does not support (\w+)"),
                with_status=501,
                status=404,
                code="not_supported",
                message="the engine that serves {asked!r} has no such route",
            ),
        ),
    ),
}


def of(engine: EngineName | None) -> Manners:
    """The engine's manners, none of most; ``None``: those of another host's gateway."""
    return _GATEWAY if engine is None else _BY_ENGINE.get(engine, _NONE)


_NONE = Manners()
#: What it passes on is mended already.
_GATEWAY = Manners(own_codes=True)
