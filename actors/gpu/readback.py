"""What a clock that was just set proves to be: success from the driver only means that the request was taken."""

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

from control_plane.ports import CAPS, ClockEvent, GpuSample


class Verdict(StrEnum):
    """What the clock that runs says about the lock that was asked for."""

    HELD = "held"
    CAPPED = "capped"
    """Below what was asked because heat or power hold it down."""
    STUCK = "stuck"
    """Above what was asked: the driver ignored it, or somebody else set it."""
    UNVERIFIABLE = "unverifiable"
    """The GPU idles below the lock or does not tell its clock, so that nothing can be seen."""


def verdict(target_mhz: int, step_mhz: int, seen: GpuSample, before_mhz: int | None = None) -> Verdict:
    """``step_mhz``: the distance between supported clocks. ``before_mhz``: the clock that ran before the lock; an idle
    GPU that came down from above to just this clock proves the lock, one that was below it anyway does not."""
    if seen.freq_mhz is None:
        return Verdict.UNVERIFIABLE
    if seen.freq_mhz > target_mhz + step_mhz:
        return Verdict.STUCK
    at_target = seen.freq_mhz >= target_mhz - step_mhz
    events = seen.events or frozenset()
    if ClockEvent.IDLE in events:
        came_down = before_mhz is not None and before_mhz > target_mhz + step_mhz
        return Verdict.HELD if at_target and came_down else Verdict.UNVERIFIABLE
    if not at_target and events & CAPS:
        return Verdict.CAPPED
    return Verdict.HELD


def step_of(clocks_mhz: Sequence[int]) -> int:
    """The largest distance between neighbouring supported clocks; 15 MHz where there is but one."""
    return max((high - low for low, high in pairwise(clocks_mhz)), default=15)
