import math
import random

import pytest

from control_plane.hardware.steady_measurement import estimate, integral_j, phase_shifts_s, steady_from


def test_an_estimate_has_students_interval() -> None:
    found = estimate([10.0, 12.0, 14.0])
    assert (found.mean, found.count) == (12.0, 3)
    assert found.half_width == pytest.approx(4.30 * 2 / math.sqrt(3), rel=1e-3)
    assert estimate([5.0]).half_width == math.inf
    with pytest.raises(ValueError, match="nothing was measured"):
        estimate([])


def test_the_interval_covers_the_mean_nineteen_times_in_twenty() -> None:
    chance = random.Random(3)
    covered = 0
    for _ in range(1000):
        found = estimate([chance.gauss(400, 20) for _ in range(5)])
        covered += abs(found.mean - 400) <= found.half_width
    assert 930 <= covered <= 970


def test_a_warm_up_is_left_out_and_noise_is_steady() -> None:
    chance = random.Random(1)
    warming = [100 + 10 * number for number in range(30)]
    held = [400 + chance.gauss(0, 5) for _ in range(30)]
    start = steady_from(warming + held)
    assert start is not None
    assert start >= 20
    assert steady_from(held) == 0


def test_what_drifts_on_is_not_steady() -> None:
    assert steady_from([100 * 1.05**number for number in range(40)]) is None
    assert steady_from([400.0] * 3) is None


def test_phases_are_spread_over_the_sensors_period() -> None:
    shifts = sorted(phase_shifts_s(8))
    gaps = [later - earlier for earlier, later in zip(shifts, [*shifts[1:], shifts[0] + 0.1], strict=True)]
    assert max(gaps) < 2.7 * 0.1 / 8


def test_energy_is_the_area_under_the_samples() -> None:
    assert integral_j([0.0, 1.0, 3.0], [100.0, 200.0, 200.0]) == 550.0
