import dataclasses

from control_plane.domain import ClassLoad, InputClass, Load, PoolName, ReplicaId, ReplicaState, ReplicaView, Shape
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.frequency_policy import FrequencyPolicy, least_power_freq
from control_plane.settings import FrequencySettings, Settings

PROFILE = RooflineProfile()
VIEW = ReplicaView(ReplicaId("r0"), 4, 1980, ReplicaState.READY)


def load(rps: float) -> Load:
    return Load({InputClass.LONG: ClassLoad(rps, 2000, 200)})


def policy(dwell_s: float = 4.0) -> FrequencyPolicy:
    settings = FrequencySettings(dwell_s=dwell_s)
    return FrequencyPolicy(PoolName("long"), (InputClass.LONG,), PROFILE, Settings().slo.slo(), settings)


def test_the_clock_is_the_cheapest_that_holds_the_slo() -> None:
    chosen = least_power_freq(PROFILE, 4, load(1.5))
    assert chosen is not None
    fitting = [freq for freq in PROFILE.freqs_mhz if PROFILE.meets_slo(Shape(4, freq), load(1.5))]
    assert chosen in fitting
    assert all(PROFILE.power_w(Shape(4, chosen), load(1.5)) <= PROFILE.power_w(Shape(4, f), load(1.5)) for f in fitting)


def test_more_load_never_lowers_the_clock_that_is_needed() -> None:
    lowest = []
    for rps in (0.5, 1.0, 2.0, 3.0):
        lowest.append(min(f for f in PROFILE.freqs_mhz if PROFILE.meets_slo(Shape(4, f), load(rps))))
    assert lowest == sorted(lowest)


def test_it_lowers_only_after_the_dwell() -> None:
    chooser = policy(dwell_s=4.0)
    assert chooser.choose(0.0, VIEW, load(0.2)).freq_mhz == 1980
    assert chooser.choose(3.9, VIEW, load(0.2)).freq_mhz == 1980
    assert chooser.choose(4.0, VIEW, load(0.2)).freq_mhz < 1980


def test_it_raises_at_once() -> None:
    low = dataclasses.replace(VIEW, freq_mhz=795)
    assert policy().choose(0.0, low, load(3.0)).freq_mhz > 795


def test_a_long_wait_means_full_clock_whatever_the_load() -> None:
    low = dataclasses.replace(VIEW, freq_mhz=795, oldest_wait_s=1.1)
    choice = policy().choose(0.0, low, load(0.1))
    assert choice.freq_mhz == 1980


def test_a_load_that_nothing_carries_means_full_clock() -> None:
    assert policy().choose(0.0, dataclasses.replace(VIEW, freq_mhz=795), load(50.0)).freq_mhz == 1980
