"""The profile that plans are made with follows what replicas measure."""

import pytest

from control_plane.domain import ClassLoad, InputClass, Load, ReplicaId, Shape
from control_plane.hardware.live_correction import LiveCorrection, ReplicaReading
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_correction import CorrectionRules, Phase
from control_plane.hardware.profiles import load_profile

SHAPE = Shape(1, 1980)
LOAD = Load({InputClass.MEDIUM: ClassLoad(8.0, 600, 200)})
RULES = CorrectionRules(half_life_s=300.0, warm_after_s=60.0, least_samples=5)


def looked(
    profile: MachineProfile, slower: float, thirstier: float, seconds: int, start_s: float = 0.0
) -> LiveCorrection:
    """Two replicas that take ``slower`` times as long and draw ``thirstier`` times as much above idle."""
    truth = load_profile(profile.name)
    point = truth.operating_point(SHAPE, LOAD.scaled(0.5))
    idle_w = truth.idle_power_w(1)
    correction = LiveCorrection(profile, RULES)
    for second in range(seconds):
        readings = [
            ReplicaReading(ReplicaId(name), SHAPE, point.tbt_s * slower, idle_w + (point.power_w - idle_w) * thirstier)
            for name in ("a", "b")
        ]
        correction.look(float(second), LOAD, readings)
    return correction


def test_a_slower_machine_is_given_less() -> None:
    profile, truth = load_profile("llama8b-h200"), load_profile("llama8b-h200")
    correction = looked(profile, 1.06, 1.0, 400)
    assert correction.factors.decode == pytest.approx(1.06, abs=0.005)
    assert profile.max_load(SHAPE, LOAD) < truth.max_load(SHAPE, LOAD)
    assert "corrected: decode x1.0" in profile.evidence.notes[-1]


def test_nothing_moves_before_replicas_are_warm() -> None:
    profile, truth = load_profile("llama8b-h200"), load_profile("llama8b-h200")
    looked(profile, 1.5, 1.5, 59)
    assert profile.max_load(SHAPE, LOAD) == truth.max_load(SHAPE, LOAD)


def test_power_follows_too() -> None:
    profile, truth = load_profile("llama8b-h200"), load_profile("llama8b-h200")
    looked(profile, 1.0, 1.2, 400)
    idle_w = truth.idle_power_w(1)
    above_w = truth.power_w(SHAPE, LOAD) - idle_w
    # The power limit cuts the highest of the raised powers.
    assert profile.power_w(SHAPE, LOAD) - idle_w == pytest.approx(1.2 * above_w, rel=0.05)
    assert profile.max_load(SHAPE, LOAD) == truth.max_load(SHAPE, LOAD)


def test_a_disagreement_beyond_the_stated_error_is_told_and_widens_headroom() -> None:
    profile, truth = load_profile("llama8b-h200"), load_profile("llama8b-h200")
    correction = looked(profile, 1.3, 1.0, 400)
    assert correction.disagreements() == {Phase.DECODE: pytest.approx(0.3, abs=0.01)}
    carried = profile.machine(SHAPE).iteration_s[64] / truth.machine(SHAPE).iteration_s[64]
    assert carried == pytest.approx(1.3 * 1.15, rel=0.02)


def test_an_object_adopts_only_a_profile_of_its_shapes() -> None:
    with pytest.raises(ValueError, match="has not"):
        load_profile("llama8b-h200").adopt(load_profile("llama2-70b-h100"))
