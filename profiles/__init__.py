"""Facts only: models, accelerators and engines as TOML, each figure with its source."""

from pathlib import Path

#: The folder that holds ``models/``, ``accelerators/`` and ``engines/``.
DIRECTORY = Path(__file__).parent
