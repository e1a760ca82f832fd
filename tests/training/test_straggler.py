"""Slow stages are found by a sequential test whose errors are counted."""

import math
import pickle

import numpy as np
import pytest
from training.profiles_for_tests import synthetic_profile

from benchmarks.frontier.detection import drift, false_alarms, spell
from control_plane.training.computation import Choice
from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import JobSpec, PipelineId, StageRatios
from control_plane.training.schedules import one_f_one_b
from control_plane.training.straggler import Detector, DetectorSettings, MeasuredComputation, stage_ratios

HEALTHY: StageRatios = (1.0,) * 4


def settled(noise: float, seed: int, reports: int = 100) -> Detector:
    detector = Detector()
    for row in np.exp(noise * np.random.default_rng(seed).standard_normal((reports, 4))).tolist():
        detector, news = detector.observe(tuple(row), HEALTHY)
        assert news is None
    return detector


def test_a_lag_of_two_stages_counts_after_two_reports_and_ends_after_one() -> None:
    detector, news = Detector().observe((1.0, 1.25, 1.3, 1.0), ())
    assert news is None
    detector, news = detector.observe((1.0, 1.27, 1.28, 1.0), ())
    assert news == (1.0, 1.26, 1.29, 1.0)
    detector, again = detector.observe((1.0, 1.25, 1.3, 1.0), news)
    assert again is None
    detector, news = detector.observe((1.0, 1.01, 1.0, 1.0), news)
    assert news == HEALTHY


def test_a_detector_that_restarted_keeps_a_lag_and_still_ends_it() -> None:
    known: StageRatios = (1.0, 1.25, 1.0, 1.0)
    detector, news = Detector().observe(known, known)
    assert news is None
    assert detector.observe(HEALTHY, known)[1] == HEALTHY


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_one_checkpoint_is_no_straggler(noise: float) -> None:
    detector, news = settled(noise, seed=4).observe((1.0, 5.0, 1.0, 1.0), HEALTHY)
    assert news is None
    for _ in range(20):
        detector, news = detector.observe(HEALTHY, HEALTHY)
        assert news is None


def test_a_stage_that_is_never_worth_another_plan_raises_none() -> None:
    detector = Detector()
    for _ in range(500):
        detector, news = detector.observe((1.02, 1.0, 0.9, 1.0), HEALTHY)
        assert news is None


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_healthy_iterations_raise_no_alarm(noise: float) -> None:
    assert false_alarms(noise, stages=4, iterations=5_000, seed=8) == 0


def test_a_tenth_is_found_in_five_reports_and_three_tenths_in_two_at_three_percent_noise() -> None:
    tenths = [spell(0.03, 1.1, 2, seed) for seed in range(40)]
    assert sum(s.found_after is not None and s.found_after <= 5 for s in tenths) >= 0.93 * len(tenths)
    assert np.mean([s.plan_changes for s in tenths]) <= 4
    heavy = [spell(0.03, 1.3, 2, seed) for seed in range(40)]
    assert all(s.found_after == 2 for s in heavy)


@pytest.mark.parametrize(("noise", "reports"), [(0.01, 1), (0.05, 3)])
def test_a_recovery_is_known_within_a_report_or_three(noise: float, reports: int) -> None:
    spells = [spell(noise, 1.3, 2, seed) for seed in range(40)]
    assert sum(s.recovered_after is not None and s.recovered_after <= reports for s in spells) >= 0.95 * len(spells)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 0.0, -1.2])
def test_a_ratio_that_is_none_is_refused_and_the_detector_stays_as_it_was(bad: float) -> None:
    detector = settled(0.01, seed=1)
    before = pickle.dumps(detector)
    with pytest.raises(ValueError, match="stage 2: a ratio must be positive and finite"):
        detector.observe((1.0, 1.0, bad, 1.0), HEALTHY)
    assert pickle.dumps(detector) == before


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.5, -1.0])
def test_an_announced_degree_that_is_none_is_refused(bad: float) -> None:
    record = JobRecord.of("llm", JobSpec(synthetic_profile(2), one_f_one_b(2, 4), 60.0))
    with pytest.raises(ValueError, match="1 or more"):
        record.with_straggler(PipelineId("p1"), bad)


def test_a_power_limited_gpu_is_compared_with_its_limit_whatever_clock_came_about() -> None:
    profile = {(0, "forward"): (Choice(0, 1.0, 300.0, 300), Choice(0, 1.5, 250.0, 200))}
    measured = [MeasuredComputation(0, "forward", mhz, 1.8, power_limit_w=200) for mhz in (905, 911, 1204)]
    assert stage_ratios(profile, 1, measured) == (pytest.approx(1.2),)


@pytest.mark.parametrize("field", ["margin_ratio", "fast_threshold", "least_sigma"])
def test_settings_that_no_test_can_use_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        DetectorSettings(**{field: 0.0})


def test_a_stage_that_goes_on_becoming_slower_is_told_from_one_that_took_a_step() -> None:
    drifts = [drift(0.01, 0.005, 2, seed) for seed in range(20)]
    assert all(d.told_at is not None and d.told_at < 1.15 for d in drifts)
    assert max(d.plan_changes for d in drifts) <= 8  # thirty percent, five at a time
    steps = [drift(noise, 0.3, 2, seed) for noise in (0.0, 0.01, 0.03, 0.05) for seed in range(20)]
    assert all(d.told_at is None for d in steps)


def test_a_drift_that_ends_is_over() -> None:
    detector, known = settled(0.01, seed=3), HEALTHY
    for percent in range(1, 21):
        detector, news = detector.observe((1 + percent / 100, 1.0, 1.0, 1.0), known)
        known = news or known
    assert detector.drifting == (0,)
    assert known[0] == pytest.approx(1.2, abs=0.051)
    assert known[0] in (1.15, 1.2, 1.25)
    for _ in range(3):
        detector, news = detector.observe(HEALTHY, known)
        known = news or known
    assert (known, detector.drifting) == (HEALTHY, ())
