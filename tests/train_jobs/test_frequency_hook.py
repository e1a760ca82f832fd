import pytest

from actors.training_messages import ClockStep
from train_jobs.frequency_hook import FrequencyHook

PROGRAM = [("forward", 0), ("forward", 1), ("backward", 0), ("backward", 1)]
STEPS = [ClockStep(*step, mhz) for step, mhz in zip(PROGRAM, (1980, 1590, 1590, 1200), strict=True)]


class Gpu:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.mhz, self.told = 1980, list[tuple[int, int]]()

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        self.mhz = freq_mhz
        self.told.append((at_ns, freq_mhz))

    def target_mhz(self) -> int:
        return self.mhz


class Lease:
    live = True

    def may_lower(self) -> bool:
        return self.live


def run(hook: FrequencyHook, from_ns: int = 0) -> None:
    for number, step in enumerate(PROGRAM):
        hook.begins(*step, from_ns + 10 * number)
        hook.ended(*step, from_ns + 10 * number + 10)


def test_each_clock_is_asked_for_when_the_computation_before_it_ends() -> None:
    gpu = Gpu()
    hook = FrequencyHook(gpu, Lease(), PROGRAM, 1980)
    hook.apply(STEPS, 0)
    run(hook)
    assert gpu.told == [(10, 1590), (30, 1200), (40, 1980)]


def test_without_a_schedule_the_clock_stays_full() -> None:
    gpu = Gpu()
    run(FrequencyHook(gpu, Lease(), PROGRAM, 1980))
    assert gpu.told == []


def test_a_clock_that_somebody_reset_is_set_again() -> None:
    gpu = Gpu()
    hook = FrequencyHook(gpu, Lease(), PROGRAM, 1980)
    hook.apply(STEPS, 0)
    hook.ended("forward", 0, 10)
    gpu.mhz = 1980
    hook.begins("forward", 1, 12)
    assert gpu.told == [(10, 1590), (12, 1590)]


def test_a_lapsed_lease_means_full_clock() -> None:
    gpu, lease = Gpu(), Lease()
    hook = FrequencyHook(gpu, lease, PROGRAM, 1980)
    hook.apply(STEPS, 0)
    hook.ended("forward", 0, 10)
    lease.live = False
    hook.ended("forward", 1, 20)
    assert gpu.told[-1] == (20, 1980)
    run(hook, 100)
    assert gpu.told[-1] == (20, 1980)


def test_a_schedule_for_another_program_is_refused() -> None:
    hook = FrequencyHook(Gpu(), Lease(), PROGRAM, 1980)
    with pytest.raises(ValueError, match="where this rank runs"):
        hook.apply(STEPS[:-1], 0)
