"""What requests are told they used adds up to what the GPUs metered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.serving.energy_shares import EnergyShares, prompt_token_work

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 5)),
        st.tuples(st.just("work"), st.integers(0, 5), st.floats(0.1, 500)),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("look"), st.floats(0.01, 3), st.floats(50, 5000)),
    ),
    max_size=60,
)


@given(STEPS)
def test_shares_and_idle_energy_are_the_meters(steps: list[tuple]) -> None:
    """All but what is still to be split: that of the last stretch without progress."""
    shares, now_s, meter_j, told_j = EnergyShares(100.0), 0.0, 100.0, 0.0
    shares.looked(0.0, 100.0)
    present: set[str] = set()
    for step in steps:
        name = f"r{step[1]}"
        if step[0] == "begin" and name not in present:
            present.add(name)
            shares.began(name)
        elif step[0] == "work":
            shares.worked(name, step[2])
        elif step[0] == "end":
            present.discard(name)
            told = shares.ended(name, now_s)
            assert told >= 0
            told_j += told
        elif step[0] == "look":
            now_s += step[1]
            meter_j += step[1] * step[2]
            shares.looked(now_s, meter_j)
    for name in present:
        shares.worked(name, 1.0)
    shares.looked(now_s + 1e6, meter_j + 5e9)  # whoever is there shares what is left
    left_j = sum(shares.ended(name, now_s + 1e6) for name in sorted(present))
    assert told_j + left_j + shares.idle_j == pytest.approx(meter_j + 5e9 - 100.0, rel=1e-9)


def test_a_long_prompt_pays_for_its_pass_and_a_waiting_request_for_nothing() -> None:
    shares = EnergyShares(0.0)
    shares.looked(0.0, 0.0)
    for name in ("long", "decoding", "waiting"):
        shares.began(name)
    shares.worked("long", 2048 * 0.25)
    shares.worked("decoding", 1.0)
    shares.looked(1.0, 513.0)
    assert shares.ended("waiting", 1.0) == 0
    assert shares.ended("long", 1.0) == pytest.approx(512)
    assert shares.ended("decoding", 1.0) == pytest.approx(1)


def test_energy_without_progress_belongs_to_the_next_progress() -> None:
    shares = EnergyShares(0.0)
    shares.looked(0.0, 0.0)
    shares.began("a")
    shares.looked(1.0, 400.0)
    shares.worked("a", 1.0)
    shares.looked(2.0, 900.0)
    assert (shares.ended("a", 2.0), shares.idle_j) == (900.0, 0.0)


def test_what_ends_between_two_looks_is_told_at_the_power_of_before_and_made_up_for() -> None:
    shares = EnergyShares(0.0)
    shares.looked(0.0, 0.0)
    for name in ("first", "second"):
        shares.began(name)
        shares.worked(name, 1.0)
    shares.looked(1.0, 600.0)
    shares.worked("first", 1.0)
    shares.worked("second", 1.0)
    assert shares.ended("first", 1.5) == pytest.approx(300 + 150)
    shares.looked(2.0, 1000.0)
    assert shares.ended("second", 2.0) == pytest.approx(300 + 400 - 150)


@given(st.integers(1, 64), st.floats(0.0, 0.1))
def test_requests_that_end_together_are_not_told_the_same_energy_twice(count: int, since_s: float) -> None:
    shares = EnergyShares(0.0)
    shares.looked(0.0, 0.0)
    names = [f"r{number}" for number in range(count)]
    for name in names:
        shares.began(name)
        shares.worked(name, 1.0)
    shares.looked(1.0, 700.0)
    for name in names:
        shares.worked(name, 1.0)
    told_j = sum(shares.ended(name, 1.0 + since_s) for name in names)
    assert told_j == pytest.approx(700.0 * (1.0 + since_s))


def test_a_prompt_token_is_a_fraction_of_a_generated_one() -> None:
    profile = load_profile(DEFAULT_PROFILE)
    for tp in profile.tps:
        assert 0.02 < prompt_token_work(profile.times(tp).alpha_ps(profile.max_freq_mhz)) < 0.5
