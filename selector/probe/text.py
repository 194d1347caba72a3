"""What others wrote, made safe to keep: bounded, printable, or ``None``."""

from __future__ import annotations

from pathlib import Path

#: A kernel file that we read is at most a few KiB; more is not what we asked for.
FILE_LIMIT_BYTES = 1 << 16
#: The longest device name on record has 47 characters.
NAME_LIMIT_CHARACTERS = 120


def printable(text: str | None, limit: int = NAME_LIMIT_CHARACTERS) -> str | None:
    """The text without control characters and surrogates, spaces run together, cut at ``limit`` characters.

    Names end up in terminals and files: an escape sequence in one must not be played back.
    """
    if text is None:
        return None
    # Twice the limit is looked at, so that a name of megabytes costs nothing.
    kept = "".join(character if character.isprintable() else " " for character in text[: 2 * limit])
    words = " ".join(kept.split())
    return (words if len(words) <= limit else words[: limit - 1] + "…") or None


def read_text(path: Path, limit_bytes: int = FILE_LIMIT_BYTES) -> str | None:
    """The start of a small file, or ``None`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes).decode("utf-8", "replace")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """A file that holds one whole number, or ``None`` (``max`` and junk are ``None`` too)."""
    return whole_number(read_text(path))


def whole_number(text: str | None) -> int | None:
    """A whole number of at most 19 digits, or ``None``."""
    stripped = "" if text is None else text.strip()
    digits = stripped.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        return None
    return int(stripped)
