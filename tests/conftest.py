"""Shared fixtures: the real data where it is present, and one Ray for the whole session."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from tests_support import DATA

hypothesis_settings.register_profile("shared-cores", deadline=None)
hypothesis_settings.load_profile("shared-cores")


@pytest.fixture(scope="session")
def data() -> Path:
    """Real traces and profiles; the test is skipped where they are absent."""
    if not DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    return DATA


@pytest.fixture(scope="session")
def own_temp() -> Iterator[Path]:
    """A temp folder of the session's own, for Ray too; its path is short because Ray's socket paths may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="wt-", dir="/tmp"))
    names = ("TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED")
    before = {name: os.environ.get(name) for name in names}
    os.environ["TMPDIR"] = os.environ["RAY_TMPDIR"] = str(folder)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "auth_token")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    tempfile.tempdir = None
    yield folder
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)
