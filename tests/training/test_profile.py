"""Profiles are read whole or refused with row and column."""

import pytest
from training.profiles_for_tests import measured_csv

from control_plane.training.computation import Choice, computation_of, constant, profile_of, read_profile
from control_plane.training.profile import StageProfileError

HEADER = "stage,instruction,frequency,time,energy\n"
GOOD = HEADER + "0,forward,1400,1.0,300\n0,forward,1200,1.2,280\n0,backward,1400,2.0,600\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "row 1"),
        ("stage,instruction,frequency,time\n0,forward,1400,1", "row 1: column energy is missing"),
        (HEADER, "row 2"),
        (GOOD + "0,backward,1200,nan,500\n", "row 5, column time: must be finite, got 'nan'"),
        (GOOD + "0,backward,1200,2.4,inf\n", "row 5, column energy: must be finite"),
        (GOOD + "0,backward,1200,-2.4,500\n", "row 5, column time: must not be negative, got '-2.4'"),
        (GOOD + "0,backward,1200,2.4,-1\n", "row 5, column energy: must not be negative"),
        (GOOD + "0,backward,1200,0,1\n", "row 5, column time: must be positive"),
        (GOOD + "0,sideways,1200,2.4,1\n", "row 5, column instruction: unknown instruction 'sideways'"),
        (GOOD + "0.5,backward,1200,2.4,1\n", "row 5, column stage: expected a whole number"),
        (GOOD + "0,backward,fast,2.4,1\n", "row 5, column frequency: not a number: 'fast'"),
        (GOOD + "0,backward,1200,2.4\n", "row 5: 4 fields where the header has 5"),
        (GOOD + "2,forward,1400,1,1\n2,backward,1400,1,1\n", "stage 1 is missing"),
        (GOOD + "1,forward,1400,1,1\n", "stage 1 has no 'backward'"),
    ],
)
def test_bad_profile_is_refused_with_row_and_column(text: str, said: str) -> None:
    with pytest.raises(StageProfileError) as refusal:
        read_profile(text)
    assert said in str(refusal.value)


def test_repeated_rows_are_noise_and_their_median_counts() -> None:
    text = GOOD + "0,forward,1400,1.1,330\n0,forward,1400,9.0,310\n"
    assert read_profile(text).choices[(0, "forward")][0] == Choice(1400, 1.1, 310)


def test_power_limits_are_the_choices_of_a_gpu_without_clock_control() -> None:
    profile = read_profile(GOOD.replace("frequency", "power_limit").replace("1400", "300"))
    assert profile.choices[(0, "backward")] == (Choice(0, 2.0, 600, 300),)


def test_scale_multiplies_energy_by_the_gpus_of_a_stage() -> None:
    profile = read_profile(GOOD).scaled(10, 10, 8)
    assert profile.choices[(0, "backward")] == (Choice(1400, 20.0, 600 * 80),)


def test_resampled_stages_take_the_nearest_of_the_profile() -> None:
    stages = {(s, "forward"): [Choice(1400, 1.0 + s, 1.0)] for s in range(4)}
    deeper = profile_of(stages).resampled(8)
    assert [deeper.choices[(s, "forward")][0].time_s for s in range(8)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_effective_cost_subtracts_blocking_power_before_dominated_points_go() -> None:
    choices = [Choice(1400, 1.0, 300), Choice(1200, 1.2, 310), Choice(900, 1.6, 340)]
    assert [c.freq_mhz for c in computation_of(choices).choices] == [1400]
    assert [c.freq_mhz for c in computation_of(choices, 80.0).choices] == [1400, 1200, 900]


def test_the_fastest_clock_need_not_be_the_highest() -> None:
    computation = computation_of([Choice(1740, 1.01, 400), Choice(1700, 1.0, 380), Choice(1500, 1.1, 350)])
    assert computation.fastest.freq_mhz == 1700
    assert computation.all_max.freq_mhz == 1740


def test_hull_keeps_the_points_that_no_mixture_beats() -> None:
    choices = [Choice(4, 1.0, 100), Choice(3, 2.0, 90), Choice(2, 3.0, 20), Choice(1, 4.0, 15)]
    computation = computation_of(choices)
    assert [computation.choices[i].freq_mhz for i in computation.hull] == [4, 2, 1]
    assert [c.freq_mhz for c in computation.choices] == [4, 3, 2, 1]


def test_a_constant_has_one_choice_and_no_blocking_power() -> None:
    transfer = constant(0.01)
    assert transfer.choices == (Choice(0, 0.01, 0.0),)
    assert transfer.effective_j(transfer.fastest) == 0.0


@pytest.mark.parametrize("name", ["gpt3-175b+a100_sxm_bf16", "bloom+a100_sxm_bf16", "gpt3-175b+a40_bf16"])
def test_measured_profiles_are_read_whole(name: str) -> None:
    profile = read_profile(measured_csv(name).read_text())
    assert profile.stages == 8
    assert {len(choices) for choices in profile.choices.values()} == {38 if "a100" in name else 60}
