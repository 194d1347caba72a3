"""A figure that was predicted beside the one that was seen."""

from __future__ import annotations

from typing import Literal

from selector.values import Value


class Comparison(Value, frozen=True, kw_only=True):
    """One figure of a launch, predicted and measured, in ``unit``; ``bytes`` are the fullest device's."""

    name: str
    unit: Literal["bytes", "tokens", "tokens/s", "seconds"]
    predicted: float
    measured: float
