"""Checkpoints that are made on the spot: the miniatures, and models cut down for a rehearsal."""

from engines.miniature.call import TOOL, TOOL_CALL
from engines.miniature.folder import (
    MANIFEST,
    FileEntry,
    Manifest,
    checkpoint_of,
    generate,
    generate_without_weights,
    size_bytes,
)

__all__ = [
    "MANIFEST",
    "TOOL",
    "TOOL_CALL",
    "FileEntry",
    "Manifest",
    "checkpoint_of",
    "generate",
    "generate_without_weights",
    "size_bytes",
]
