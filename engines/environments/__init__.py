"""Environments of the engines: made by uv and locked, found where others made them, shared, and taken away."""

from engines.environments.store import (
    LOCK,
    MANIFEST,
    Environment,
    Environments,
    InstallProgress,
    Manifest,
    Stage,
    folder_name,
    python_request,
    read_manifest,
    without_engine_secrets,
    without_secrets,
)

__all__ = [
    "LOCK",
    "MANIFEST",
    "Environment",
    "Environments",
    "InstallProgress",
    "Manifest",
    "Stage",
    "folder_name",
    "python_request",
    "read_manifest",
    "without_engine_secrets",
    "without_secrets",
]
