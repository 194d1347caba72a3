"""What the gateway answers itself, as its clients read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.routing import Model


class Health(msgspec.Struct):
    """The gateway itself is up, whatever the models are."""

    status: str


class Readiness(msgspec.Struct):
    """How each model stands: ``ready`` when none that is wanted is waited for."""

    status: str
    models: dict[str, str]


class Entry(msgspec.Struct):
    """A model, as OpenAI lists it, and how it stands."""

    id: str
    created: int
    status: str
    object: str = "model"
    owned_by: str = "autolaunch"
    max_model_len: int | None = None

    @classmethod
    def of(cls, model: Model, created: int) -> Entry:
        context = next((each.context_tokens for each in model.replicas if each.context_tokens is not None), None)
        return cls(id=model.name, created=created, status=model.standing().condition, max_model_len=context)


class Entries(msgspec.Struct):
    """All models."""

    data: tuple[Entry, ...]
    object: str = "list"
