from itertools import pairwise

from actors.gpu.dwell import Dwell
from control_plane.leases import Hold


def asked(dwell: Dwell, mhz: int | None, now_s: float, owner: str = "pool") -> int | None:
    return dwell.steadied(owner, {"g": Hold(mhz)}, now_s)["g"].freq_mhz


def test_a_clock_is_raised_at_once_and_lowered_after_the_dwell() -> None:
    dwell = Dwell(dwell_s=0.4)
    assert asked(dwell, 1200, 0.0) == 1200
    assert asked(dwell, 1600, 0.1) == 1600
    assert asked(dwell, 1000, 0.2) == 1600
    assert asked(dwell, 900, 0.4) == 1600
    assert asked(dwell, 900, 0.6) == 900


def test_an_oscillating_wish_changes_the_clock_at_most_twice_in_a_dwell() -> None:
    dwell = Dwell(dwell_s=0.4)
    clocks = [asked(dwell, 1200 if number % 2 else 1500, number * 0.01) for number in range(1000)]
    changes = sum(before != after for before, after in pairwise(clocks))
    assert changes <= 2 * 10 / 0.4


def test_a_single_step_down_is_not_worth_a_change_and_a_single_step_up_is() -> None:
    dwell = Dwell()
    assert asked(dwell, 1200, 0.0) == 1200
    assert asked(dwell, 1185, 10.0) == 1200
    assert asked(dwell, 1170, 20.0) == 1170
    assert asked(dwell, 1185, 30.0) == 1185


def test_full_clock_and_another_owner_wait_for_nothing() -> None:
    dwell = Dwell()
    asked(dwell, 1200, 0.0)
    assert asked(dwell, None, 0.01) is None
    asked(dwell, 1500, 0.02)
    assert asked(dwell, 900, 0.03, owner="job") == 900
    dwell.forget("job")
    assert asked(dwell, 800, 0.04, owner="job") == 800
