"""A load for tests of the profiler: longer for more tokens."""

import time
from collections.abc import Callable


def iteration(tokens: int) -> Callable[[], None]:
    return lambda: time.sleep(0.005 + tokens * 2e-5)
