import pytest

from actors.gpu.readback import Verdict, step_of, verdict
from control_plane.ports import ClockEvent, GpuSample

IDLE = frozenset({ClockEvent.IDLE})
CAPPED = frozenset({ClockEvent.POWER_CAP})
HOT = frozenset({ClockEvent.THERMAL})
NONE: frozenset[ClockEvent] = frozenset()


@pytest.mark.parametrize(
    ("runs_mhz", "events", "before_mhz", "expected"),
    [
        (1200, NONE, 1980, Verdict.HELD),
        (1215, NONE, 1980, Verdict.HELD),
        (1230, NONE, 1980, Verdict.STUCK),
        (1980, IDLE, 1980, Verdict.STUCK),
        (1980, CAPPED, 1980, Verdict.STUCK),
        (990, CAPPED, 1980, Verdict.CAPPED),
        (990, HOT, 1980, Verdict.CAPPED),
        (990, NONE, 1980, Verdict.HELD),
        (345, IDLE, 345, Verdict.UNVERIFIABLE),
        (345, IDLE, 1980, Verdict.UNVERIFIABLE),
        (1200, IDLE, 1980, Verdict.HELD),
        (1200, IDLE, 1200, Verdict.UNVERIFIABLE),
        (None, NONE, 1980, Verdict.UNVERIFIABLE),
        (1200, None, 1980, Verdict.HELD),
    ],
)
def test_the_clock_that_runs_says_what_became_of_a_lock_at_1200(
    runs_mhz: int | None, events: frozenset[ClockEvent] | None, before_mhz: int, expected: Verdict
) -> None:
    assert verdict(1200, 15, GpuSample(freq_mhz=runs_mhz, events=events), before_mhz) is expected


def test_a_step_is_the_largest_distance_of_neighbours() -> None:
    assert step_of((345, 360, 390)) == 30
    assert step_of((1980,)) == 15
