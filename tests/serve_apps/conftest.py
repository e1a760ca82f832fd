"""Every test begins with no replica known."""

from collections.abc import Iterator

import pytest

from serve_apps import running_replicas


@pytest.fixture(autouse=True)
def no_replicas() -> Iterator[None]:
    running_replicas._RUNNING.clear()
    running_replicas._changes += 1
    yield
    running_replicas._RUNNING.clear()
    running_replicas._changes += 1
