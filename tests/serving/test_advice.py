"""What control would have saved: nothing where the wish runs, else the profile's ratio of what was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import ClassLoad, InputClass, Load, Shape
from control_plane.hardware.profiles import load_profile
from control_plane.serving.advice import LONGEST_GAP_S, Advice, AdviceLog, Running

PROFILE = load_profile("llama2-70b-h100")
FULL = PROFILE.max_freq_mhz
LOW = PROFILE.freqs_mhz[0]
LOAD = Load({InputClass.MEDIUM: ClassLoad(1.0, 600, 150)})


def watched(running: list[Running], wished: dict[int, int], looks: int = 11, load: Load = LOAD) -> Advice:
    log = AdviceLog(PROFILE)
    for look in range(looks):
        log.look(5.0 * look, load, running, wished)
    return log.advice()


@given(st.integers(1, 4), st.sampled_from(PROFILE.freqs_mhz), st.one_of(st.none(), st.floats(500, 2500)))
def test_where_what_is_wished_runs_nothing_would_be_saved(count: int, mhz: int, watts: float | None) -> None:
    told = watched([Running(Shape(4, mhz), watts, mhz)] * count, {4: count})
    assert told.saved_j == pytest.approx(0, abs=1e-6 * told.used_j)
    assert told.saved_by_clocks_j == pytest.approx(0, abs=1e-6 * told.used_j)
    assert told.watched_s == 50


def test_a_lower_clock_saves_the_profiles_share_of_what_was_measured() -> None:
    high, low = (PROFILE.power_w(Shape(4, mhz), LOAD) for mhz in (FULL, LOW))
    told = watched([Running(Shape(4, FULL), 1.3 * high, LOW)], {})
    assert told.used_j == pytest.approx(1.3 * high * 50)
    assert told.saved_j == told.saved_by_clocks_j == pytest.approx(1.3 * (high - low) * 50)
    assert told.measured_s == told.replica_s == 50
    # The profile is 23 % off what was measured: the band is at least as wide.
    assert told.error_j >= (1 - 1 / 1.3) * (told.used_j - told.saved_j) * (1 - 1e-9)


def test_replicas_that_are_not_wished_are_saved_too() -> None:
    idle_enough = Load({InputClass.MEDIUM: ClassLoad(0.2, 600, 150)})
    running = [Running(Shape(4, FULL), None, FULL)] * 3
    told = watched(running, {4: 1}, load=idle_enough)
    assert told.saved_by_clocks_j == pytest.approx(0, abs=1e-6)
    assert 0.3 < told.saved_j / told.used_j < 0.7
    assert told.measured_s == 0


def test_a_fleet_that_cannot_carry_the_load_saves_nothing() -> None:
    heavy = Load({InputClass.LONG: ClassLoad(40.0, 4000, 400)})
    told = watched([Running(Shape(8, FULL), 4000.0, FULL)] * 40, {8: 1}, load=heavy)
    assert told.overloaded_s == told.watched_s == 50
    assert told.saved_j == 0


def test_a_gap_in_looking_is_not_counted() -> None:
    log = AdviceLog(PROFILE)
    for now_s in (0.0, 5.0, 5.0 + LONGEST_GAP_S + 1, 10.0 + LONGEST_GAP_S + 1):
        log.look(now_s, LOAD, [Running(Shape(4, FULL), 1000.0, LOW)], {})
    assert log.advice().watched_s == 10
