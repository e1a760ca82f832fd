"""The last word of the schedulers of this process's engine: written by vLLM's thread of statistics, read by the
replica's account. One engine a process, with an index for each of its data-parallel parts."""

from dataclasses import dataclass

FRESH_S = 5.0
"""An engine without work says nothing: an older word is none."""


@dataclass(frozen=True, slots=True)
class SchedulerView:
    at_s: float
    """Of ``time.monotonic()``."""
    waiting: int
    running: int
    kv_used_ratio: float


_last: dict[int, SchedulerView] = {}


def tell(engine_index: int, view: SchedulerView) -> None:
    _last[engine_index] = view


def seen(now_s: float) -> SchedulerView | None:
    """All engines together; None where none has said anything lately."""
    fresh = [view for view in _last.values() if now_s - view.at_s <= FRESH_S]
    if not fresh:
        return None
    return SchedulerView(
        min(view.at_s for view in fresh),
        sum(view.waiting for view in fresh),
        sum(view.running for view in fresh),
        max(view.kv_used_ratio for view in fresh),
    )
