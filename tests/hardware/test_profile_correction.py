"""A profile kept true: factors, results of load generators, and the planner's own slow correction."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import ClassLoad, InputClass, Load, Shape
from control_plane.hardware.bench_results import BenchRun, read_runs
from control_plane.hardware.profile_correction import (
    LEAST,
    MOST,
    CorrectionRules,
    Factors,
    Phase,
    SlowCorrection,
    compare,
    corrected,
    corrected_seconds,
    fitted,
)
from control_plane.hardware.profile_export import exported
from control_plane.hardware.profile_file import ProfileError, dump_profile, parse_profile
from control_plane.hardware.profiles import load_profile

SMALL = load_profile("llama8b-h200")
RUN = BenchRun("run", "vllm bench", 8.0, 500.0, 60.0, 0.1, 0.01, 40)
VLLM = {
    "completed": 50, "total_input_tokens": 25_600, "total_output_tokens": 6_400, "duration": 53.05,
    "mean_ttft_ms": 28.5, "mean_tpot_ms": 8.07, "max_concurrency": 1,
}  # fmt: skip


def truth(factors: Factors) -> list[BenchRun]:
    """What a machine that is off by these factors would measure."""
    runs = [replace(RUN, concurrency=float(count)) for count in (1, 8, 24)]
    played = compare(corrected(SMALL, factors), 1, 1980, runs)
    return [replace(one.run, ttft_s=one.ttft_s, tpot_s=one.tpot_s) for one in played]


def test_a_machine_that_is_off_is_found_by_its_own_measurements() -> None:
    factors = fitted(SMALL, 1, 1980, truth(Factors(1.15, 0.9)))
    assert factors.decode == pytest.approx(1.15, rel=0.03)
    assert factors.prefill == pytest.approx(0.9, rel=0.05)


def test_factors_are_bounded() -> None:
    assert Factors(9.0, 0.01, 1.0).bounded() == Factors(MOST, LEAST, 1.0)
    assert fitted(SMALL, 1, 1980, [replace(one, tpot_s=one.tpot_s * 50) for one in truth(Factors())]).decode == MOST


def test_corrected_power_and_times_are_in_the_closed_forms() -> None:
    shape, load = Shape(1, 1980), Load({InputClass.MEDIUM: ClassLoad(5.0, 600, 200)})
    slower = corrected(SMALL, Factors(1.2, 1.2, 1.0))
    assert slower.max_load(shape, load) < SMALL.max_load(shape, load)
    thirstier = corrected(SMALL, Factors(1.0, 1.0, 1.1))
    idle_w = SMALL.idle_power_w(1)
    above_w = SMALL.power_w(shape, load) - idle_w
    assert thirstier.power_w(shape, load) - idle_w == pytest.approx(1.1 * above_w, rel=0.02)
    assert corrected(SMALL, Factors()) is SMALL


@given(st.floats(LEAST, MOST), st.floats(LEAST, MOST))
def test_corrected_tables_still_rise(decode: float, prefill: float) -> None:
    table = np.array(SMALL.times(1).alpha_ps(1980), dtype=np.float64)
    assert np.all(np.diff(corrected_seconds(table, Factors(decode, prefill))) >= 0)


@pytest.mark.parametrize("name", ["llama2-70b-h100", "llama2-70b-h100-2023", "llama8b-h200"])
def test_an_exported_profile_is_the_same_machine(name: str) -> None:
    profile = load_profile(name)
    file = exported(profile, "a copy", {"time": 0.05})
    again = parse_profile(dump_profile(file))
    assert again.evidence.errors["time"] == 0.05
    assert again.slo == profile.slo
    for tp in profile.tps:
        for freq in (profile.freqs_mhz[0], profile.freqs_mhz[-1]):
            mine, theirs = profile.machine(Shape(tp, freq)), again.machine(Shape(tp, freq))
            for tokens in (1, 7, 64, 300, 2048):
                assert theirs.iteration_s[tokens] == pytest.approx(mine.iteration_s[tokens], rel=0.005)
                assert theirs.power_w[tokens] == pytest.approx(mine.power_w[tokens], rel=0.02)
            assert theirs.context_s == pytest.approx(mine.context_s)


def test_three_tools_tell_the_same_run() -> None:
    guide = {
        "benchmarks": [
            {
                "request_totals": {"successful": 50},
                "metrics": {
                    key: {"successful": {"mean": value}}
                    for key, value in (
                        ("request_concurrency", 1.0),
                        ("prompt_token_count", 512.0),
                        ("output_token_count", 128.0),
                        ("time_to_first_token_ms", 28.5),
                        ("inter_token_latency_ms", 8.07),
                    )
                },
            }
        ]
    }
    aiperf = {
        "time_to_first_token": {"unit": "ms", "avg": 28.5},
        "inter_token_latency": {"unit": "s", "avg": 0.00807},
        "input_sequence_length": {"avg": 512},
        "output_sequence_length": {"avg": 128},
        "request_throughput": {"avg": 0.94},
        "request_count": {"avg": 50},
        "input_config": {"loadgen": {"concurrency": 1}},
    }
    runs = [read_runs("x", json.dumps(content))[0] for content in (VLLM, guide, aiperf)]
    assert [run.tool for run in runs] == ["vllm bench", "GuideLLM", "AIPerf"]
    for run in runs:
        assert (run.concurrency, run.prompt_tokens, run.answer_tokens, run.requests) == (1, 512, 128, 50)
        assert run.ttft_s == pytest.approx(0.0285)
        assert run.tpot_s == pytest.approx(0.00807)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "a JSON object"),
        ('{"avg_latency": 3}', "neither vllm bench serve"),
        (json.dumps(VLLM | {"max_concurrency": "inf"}), "max_concurrency: a number is expected, got 'inf'"),
        (json.dumps(VLLM | {"mean_ttft_ms": 0}), "mean_ttft_ms: 0 must be above 0"),
        ('{"benchmarks": [{}]}', "benchmarks.0.metrics is missing"),
        ('{"time_to_first_token": {"avg": 1, "unit": "parsec"}}', "unit is 'parsec'"),
    ],
)
def test_a_result_that_cannot_be_used_names_its_field(content: str, told: str) -> None:
    with pytest.raises(ProfileError, match=told.replace("(", r"\(")):
        read_runs("x.json", content)


RULES = CorrectionRules(half_life_s=100.0, warm_after_s=60.0, step=0.02, least_samples=10)


def seen(correction: SlowCorrection, ratio: float, count: int, start_s: float = 0.0, ready_for_s: float = 1e3) -> None:
    for number in range(count):
        correction.see(Phase.DECODE, start_s + number, 0.010, 0.010 * ratio, ready_for_s)


def test_the_correction_follows_slowly_and_within_bounds() -> None:
    correction = SlowCorrection(RULES, {})
    seen(correction, 1.2, 9)
    assert correction.factors() == Factors()
    seen(correction, 1.2, 1, 9.0)
    assert correction.factors().decode == pytest.approx(1.2)
    seen(correction, 1.0, 1, 110.0)
    assert correction.factors().decode == pytest.approx(math.exp(math.log(1.2) / 2), rel=0.01)
    seen(correction, 30.0, 5000, 200.0)
    assert correction.factors().decode == MOST


def test_cold_starts_and_meaningless_readings_are_left_out() -> None:
    correction = SlowCorrection(RULES, {})
    seen(correction, 3.0, 50, ready_for_s=59.0)
    for measured in (0.0, -1.0, math.inf, math.nan):
        correction.see(Phase.POWER, 0.0, 100.0, measured, 1e3)
    correction.see(Phase.POWER, 0.0, 0.0, 100.0, 1e3)
    assert correction.factors() == Factors()
    assert correction.disagreements() == {}


def test_small_wobbles_change_no_plan() -> None:
    correction = SlowCorrection(RULES, {})
    seen(correction, 1.01, 50)
    assert correction.factors() == Factors()


def test_a_profile_that_disagrees_by_more_than_it_states_asks_for_headroom() -> None:
    correction = SlowCorrection(RULES, {Phase.DECODE: 0.05})
    seen(correction, 1.04, 50)
    assert correction.disagreements() == {}
    assert correction.headroom_factor() == 1.0
    seen(correction, 1.3, 2000, 100.0)
    assert correction.disagreements()[Phase.DECODE] == pytest.approx(0.3, abs=0.01)
    assert correction.headroom_factor() == pytest.approx(1.15, abs=0.01)
