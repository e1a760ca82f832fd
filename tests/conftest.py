"""Shared fixtures: the real data where it is present, and one Ray for the whole session."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """Real traces and profiles; the test is skipped where they are absent."""
    if not DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    return DATA
