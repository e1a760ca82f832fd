import math

from hypothesis import given
from hypothesis import strategies as st

from actors.gpu.energy_meter import EnergyMeter, Source


def metered(*looks: tuple[float, float | None, float | None]) -> EnergyMeter:
    meter = EnergyMeter()
    for now_s, counter_j, power_w in looks:
        meter = meter.seen(now_s, counter_j, power_w)
    return meter


def test_energy_is_what_the_counter_moved_since_the_first_look() -> None:
    meter = metered((0, 5000, 100), (1, 5090, 100), (2, 5210, 100))
    assert (meter.total_j, meter.epoch, meter.source) == (210, 0, Source.COUNTER)
    assert meter.disagreement_ratio is not None
    assert math.isclose(meter.disagreement_ratio, 210 / 200 - 1)


def test_a_counter_that_fell_begins_a_new_epoch_and_energy_never_falls() -> None:
    meter = metered((0, 9000, 100), (1, 9100, 100), (2, 40, 100), (3, 140, 100))
    assert (meter.total_j, meter.epoch) == (240, 1)


def test_a_restarted_counter_adds_no_more_than_power_says() -> None:
    assert metered((0, 9000, 100), (1, 8000, 100)).total_j == 100


def test_a_frozen_counter_is_replaced_by_the_integral_of_power_and_says_so() -> None:
    meter = metered((0, 9000, 100), (1, 9000, 100), (2, 9000, 100), (3, 9000, 100))
    assert (meter.total_j, meter.source) == (300, Source.POWER)


def test_a_counter_that_stays_zero_is_no_energy_of_zero() -> None:
    meter = metered((0, 0, 80), (1, 0, 80), (2, 0, 80))
    assert (meter.total_j, meter.source) == (160, Source.POWER)


def test_a_counter_that_moves_again_is_believed_again_and_nothing_is_counted_twice() -> None:
    frozen = metered((0, 9000, 100), (1, 9000, 100), (2, 9000, 100), (3, 9000, 100))
    thawed = frozen.seen(4, 9400, 100).seen(5, 9500, 100)
    assert (thawed.total_j, thawed.source) == (500, Source.COUNTER)


def test_a_short_standstill_is_the_counters_grain_not_a_freeze() -> None:
    meter = metered((0, 9000, 100), (0.05, 9000, 100), (0.1, 9010, 100))
    assert (meter.total_j, meter.source) == (10, Source.COUNTER)


def test_a_look_that_fails_once_loses_nothing() -> None:
    assert metered((0, 9000, 100), (1, None, 100), (2, 9200, 100)).total_j == 200


def test_without_a_counter_power_is_integrated_and_without_both_nothing_is_claimed() -> None:
    meter = metered((0, None, 100), (1, None, 200))
    assert (meter.total_j, meter.source) == (150, Source.POWER)
    assert metered((0, None, None), (1, None, None)).source is Source.NONE


readings = st.none() | st.floats(0, 1e9)


@given(st.lists(st.tuples(st.floats(0, 10), readings, st.none() | st.floats(0, 2000)), min_size=2, max_size=30))
def test_energy_never_falls_whatever_is_read(steps: list[tuple[float, float | None, float | None]]) -> None:
    meter, now_s = EnergyMeter(), 0.0
    for elapsed_s, counter_j, power_w in steps:
        now_s += elapsed_s
        after = meter.seen(now_s, counter_j, power_w)
        assert after.total_j >= meter.total_j
        assert after.epoch >= meter.epoch
        meter = after


def test_power_is_compared_only_between_looks_that_are_close_together() -> None:
    """A load that begins a second before the second look was idle for most of the minute before it."""
    meter = metered((0, 0, 120), (60, 60 * 120 + 570, 690), (61, 60 * 120 + 570 + 690, 690))
    assert meter.total_j == 60 * 120 + 570 + 690
    assert meter.disagreement_ratio == 0
