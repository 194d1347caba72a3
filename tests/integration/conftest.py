"""Where the environments of the real engines are kept between runs, and what all tests of engines share."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

#: Made once a machine: an environment of vLLM alone is 2.5 GB.
HOME = Path(os.environ.get("AUTOLAUNCH_TEST_HOME") or platformdirs.user_cache_dir("autolaunch-tests", appauthor=False))


@pytest.fixture(scope="session")
def engines_home() -> Path:
    """A home that all tests of real engines share."""
    return HOME
