import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuState
from control_plane.hardware.stage_model import StageWork, finish_ns

WORK = StageWork(compute_s=0.075, memory_s=0.025, activity=Activity(0.85, 0.45))
TOP = H100_SXM.max_freq_mhz


def state(target_mhz: int, settles_at_ns: int) -> GpuState:
    return GpuState(0, TOP, target_mhz, settles_at_ns, contexts=1)


def test_only_the_compute_share_stretches() -> None:
    assert WORK.time_s(H100_SXM, TOP) == pytest.approx(0.1)
    assert WORK.time_s(H100_SXM, 990) == pytest.approx(0.175)


def test_a_slower_clock_takes_longer_and_less_energy_until_the_knee() -> None:
    assert WORK.time_s(H100_SXM, 1200) > WORK.time_s(H100_SXM, 1590)
    assert WORK.energy_j(H100_SXM, 1200) < WORK.energy_j(H100_SXM, 1590) < WORK.energy_j(H100_SXM, TOP)


def test_work_at_a_settled_clock_ends_after_its_time() -> None:
    assert finish_ns(H100_SXM, state(TOP, 0), WORK) == pytest.approx(100_000_000, abs=1)


def test_a_clock_that_settles_late_does_not_touch_work_that_is_done_by_then() -> None:
    assert finish_ns(H100_SXM, state(990, 200_000_000), WORK) == pytest.approx(100_000_000, abs=1)


def test_the_rest_runs_at_the_new_clock() -> None:
    """Half is done at the old clock in 50 ms, the other half takes half of 175 ms."""
    assert finish_ns(H100_SXM, state(990, 50_000_000), WORK) == pytest.approx(137_500_000, abs=2)


@given(st.sampled_from(H100_SXM.freqs_mhz), st.integers(0, 300_000_000))
def test_the_end_lies_between_those_of_the_two_clocks(target_mhz: int, settles_at_ns: int) -> None:
    end_ns = finish_ns(H100_SXM, state(target_mhz, settles_at_ns), WORK)
    fast_ns, slow_ns = (round(WORK.time_s(H100_SXM, mhz) * 1e9) for mhz in (TOP, target_mhz))
    assert fast_ns - 2 <= end_ns <= slow_ns + 2
