"""The base of every value that crosses a file or a module: frozen, keyword-only, strict."""

from __future__ import annotations

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value. Read from a file it refuses unknown keys and names their path."""
