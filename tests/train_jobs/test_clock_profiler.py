"""Profiling while training: few clocks, those between interpolated, constants found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.hardware.gpu_model import H100_SXM, Activity
from control_plane.hardware.stage_model import StageWork
from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from train_jobs.clock_profiler import MOST_ITERATIONS, ClockProfiler, Waiting, clocks_to_measure
from train_jobs.meter import MeasuredStep

CLOCKS = H100_SXM.freqs_mhz


def measured(name: str, work: StageWork, mhz: int, noise: float = 0.0, settled: bool = True) -> MeasuredStep:
    time_s = work.time_s(H100_SXM, mhz) * (1 + noise)
    energy_j = H100_SXM.power_w(mhz, 1, work.activity) * time_s
    return MeasuredStep(Instruction(name, 0), 0, round(time_s * 1e9), energy_j, mhz, settled)


def profiled(kinds: dict[str, StageWork], chunks: int = 1) -> tuple[ClockProfiler, int]:
    profiler, iteration = ClockProfiler(CLOCKS), 0
    while (mhz := profiler.clock_of(iteration)) is not None:
        profiler.add(measured(name, work, mhz) for name, work in kinds.items() for _ in range(4))
        iteration += 1
    return profiler, iteration


@given(st.floats(0.002, 0.2), st.floats(0.3, 1.0), st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_clocks_between_are_within_the_stated_error(time_s: float, share: float, sm: float, mem: float) -> None:
    work = StageWork(time_s * share, time_s * (1 - share), Activity(sm, mem))
    profiler, iterations = profiled({"forward": work})
    assert iterations + 2 <= MOST_ITERATIONS
    profile = profiler.profile()
    choices = profile.choices["forward"]
    assert len(choices) > 2 * len(profile.measured_mhz)
    assert [c.freq_mhz for c in choices] == sorted({c.freq_mhz for c in choices}, reverse=True)
    for choice in choices:
        assert choice.time_s == pytest.approx(work.time_s(H100_SXM, choice.freq_mhz), rel=1e-6)
        allowed = max(0.005, profile.interpolation_error_ratio)
        assert choice.energy_j == pytest.approx(work.energy_j(H100_SXM, choice.freq_mhz), rel=allowed)


def test_what_does_not_follow_the_clock_is_found() -> None:
    bound, free = StageWork(0.03, 0.01, Activity(0.9, 0.4)), StageWork(0.0001, 0.02, Activity(0.2, 0.9))
    profile = profiled({"forward": bound, "backward": free})[0].profile()
    assert profile.constant == ("backward",)
    assert len({choice.time_s for choice in profile.choices["backward"]}) == 1
    assert profile.choices["backward"][-1].energy_j < profile.choices["backward"][0].energy_j


def test_computations_at_a_settling_clock_do_not_count() -> None:
    work = StageWork(0.03, 0.01, Activity(0.9, 0.4))
    profiler = ClockProfiler(CLOCKS)
    profiler.add([measured("forward", work, 1980), measured("forward", work, 990, 0.5, settled=False)])
    assert profiler.profile().measured_mhz == (1980,)
    with pytest.raises(ValueError, match="no computation was measured at a settled clock"):
        ClockProfiler(CLOCKS).profile()


def test_several_chunks_of_a_rank_are_one_choice_together() -> None:
    work = StageWork(0.03, 0.01, Activity(0.9, 0.4))
    one, two = (profiled({"forward": work})[0].profile(chunks).choices["forward"][0] for chunks in (1, 2))
    assert (two.time_s, two.energy_j) == (2 * one.time_s, 2 * one.energy_j)


def test_repeatability_is_told() -> None:
    work = StageWork(0.03, 0.01, Activity(0.9, 0.4))
    profiler = ClockProfiler(CLOCKS)
    profiler.add(measured("forward", work, 1980, noise) for noise in (-0.02, 0.0, 0.02))
    assert profiler.profile().noise_ratio == pytest.approx(0.02)


def test_a_budget_that_is_exceeded_is_told() -> None:
    with pytest.raises(ValueError, match="exceed 30 iterations; measure fewer clocks"):
        ClockProfiler(CLOCKS, iterations_a_clock=4)


@given(st.lists(st.integers(200, 3000), min_size=1, unique=True).map(sorted), st.integers(2, 12))
def test_the_highest_clock_is_first_and_none_is_measured_twice(supported: list[int], count: int) -> None:
    asked = clocks_to_measure(supported, count)
    assert asked[0] == supported[-1]
    assert list(asked) == sorted(set(asked), reverse=True)
    assert set(asked) <= set(supported)
    assert len(asked) <= count


def test_what_waiting_does_not_explain_is_computing() -> None:
    """Samples that lag show 640 W everywhere; the GPU computes at 700 W and waits at 500 W for a third of the time."""
    profiler = ClockProfiler((1980,), iterations_a_clock=2)
    profiler.add([MeasuredStep(Instruction(name, 0), 0, 100_000_000, 64.0, 1980, True) for name in (FORWARD, BACKWARD)])
    waiting = Waiting(500.0, 800.0, {1980: [(0.3, 0.2 * 700 + 0.1 * 500)] * 2}, {FORWARD: 1, BACKWARD: 1})
    choices = profiler.profile(waiting=waiting).choices
    assert choices[FORWARD][0].energy_j == pytest.approx(70)
    assert choices[BACKWARD][0].energy_j == pytest.approx(70)


def test_computing_takes_no_less_power_than_waiting() -> None:
    profiler = ClockProfiler((1980,), iterations_a_clock=2)
    profiler.add([MeasuredStep(Instruction(FORWARD, 0), 0, 100_000_000, 30.0, 1980, True)])
    waiting = Waiting(500.0, 800.0, {1980: [(0.3, 60.0)]}, {FORWARD: 1})
    assert profiler.profile(waiting=waiting).choices[FORWARD][0].energy_j == pytest.approx(50)


def test_what_a_gpu_used_beyond_its_power_limit_was_drawn_by_waiting() -> None:
    """As on two H200s: 165 ms of computing in 250 ms, 160 J, a limit of 700 W, and 116 W in a bare collective."""
    profiler = ClockProfiler((1980,), iterations_a_clock=2)
    profiler.add([MeasuredStep(Instruction(FORWARD, 0), 0, 165_000_000, 100.0, 1980, True)])
    profile = profiler.profile(waiting=Waiting(116.0, 700.0, {1980: [(0.25, 160.0)]}, {FORWARD: 1}))
    assert profile.waiting_w == pytest.approx((160 - 0.165 * 700) / 0.085)
    assert profile.choices[FORWARD][0].energy_j == pytest.approx(0.165 * 700)
