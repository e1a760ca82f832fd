"""Every test begins with no replica known; models of less than a million weights gain nothing from a second core."""

import gc
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


@pytest.fixture
def small_heap() -> Iterator[None]:
    """transformers runs a full collection whenever a batch stops, which takes half a second of CPU with all of torch to
    look through. What was there before the test is left out."""
    gc.freeze()
    yield
    gc.unfreeze()
