"""What the gateway answers itself, as its clients read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autolaunch.daemon.gateway.request import Header
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
        context = next((each.context_tokens for each in model.everywhere if each.context_tokens is not None), None)
        return cls(id=model.name, created=created, status=model.standing().condition, max_model_len=context)


class OwnEntry(Entry):
    """A model as other hosts' gateways are told of it: of the engines of this host alone, and what those have to do."""

    requests: int = 0
    engines: int = 0

    @classmethod
    def of(cls, model: Model, created: int) -> OwnEntry:
        mine = model.replicas
        return cls(
            id=model.name,
            created=created,
            status=model.standing(here=True).condition,
            max_model_len=next((each.context_tokens for each in mine if each.context_tokens is not None), None),
            requests=model.waiting + sum(each.traffic.under_way for each in mine),
            engines=sum(each.endpoint() is not None for each in mine),
        )


class Entries(msgspec.Struct):
    """All models."""

    data: tuple[Entry, ...]
    object: str = "list"


def listed(models: Mapping[str, Model], created: int, *, here: bool) -> Entries:
    """All models; ``here``: as another host's gateway is told of them."""
    if here:
        return Entries(data=tuple(OwnEntry.of(each, created) for each in models.values() if each.replicas))
    return Entries(data=tuple(Entry.of(each, created) for each in models.values()))


def readiness(models: Mapping[str, Model], *, asking: bool) -> tuple[Readiness, tuple[Header, ...]]:
    """Ready: every model that is wanted answers, or does so as soon as somebody asks.

    Models of other hosts that do not answer are waited for only where nothing else is served, or while hosts are asked
    (``asking``) for the first time: what is before several gateways would else leave them all for one host.
    """
    standings = {name: model.standing() for name, model in models.items()}
    waited = [each for each in standings.values() if each.condition in ("loading", "failed")]
    if not waited and all(each.condition == "unreachable" for each in standings.values()):
        waited = [*standings.values()]
    waiting = bool(waited) or asking
    document = Readiness(
        status="waiting" if waiting else "ready", models={name: each.condition for name, each in standings.items()}
    )
    retry = b"%d" % max(1, round(max((each.retry_seconds for each in waited), default=0.0)))
    return document, ((b"retry-after", retry),) if waiting else ()
