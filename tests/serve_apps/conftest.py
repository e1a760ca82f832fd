"""Every test begins with no replica known; models of less than a million weights gain nothing from a second core."""

import os
from collections.abc import Iterator

import pytest

from serve_apps import running_replicas

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_replicas() -> Iterator[None]:
    running_replicas._RUNNING.clear()
    running_replicas._changes += 1
    yield
    running_replicas._RUNNING.clear()
    running_replicas._changes += 1
