"""Clocks of a schedule, computation by computation, under a lease and through the hardware port."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from session_fakes import FULL_MHZ, PROGRAM, Control, Lease, steps

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.gpu_model import H100_SXM
from control_plane.ports import Gpu, GpuPermissionError
from control_plane.training.job_spec import ScheduledStep
from train_jobs.order import SessionError
from train_jobs.scheduled_clock import PortClock, ScheduledClock

STEPS = steps(1980, 1590, 1590, 1200)


def clock_of(control: Control, lease: Lease | None = None) -> ScheduledClock:
    return ScheduledClock(control, lease or Lease(), PROGRAM, FULL_MHZ)


def run(clock: ScheduledClock, from_ns: int = 0) -> None:
    for place in range(len(PROGRAM)):
        clock.want(place, from_ns + 10 * place)
        clock.want((place + 1) % len(PROGRAM), from_ns + 10 * place + 10)


def test_each_clock_is_asked_for_when_the_computation_before_it_ends() -> None:
    control = Control()
    clock = clock_of(control)
    clock.apply(STEPS, 0)
    run(clock)
    assert control.told == [(10, 1590), (30, 1200), (40, 1980)]


def test_without_a_schedule_the_clock_stays_full() -> None:
    control = Control()
    run(clock_of(control))
    assert control.told == []


def test_a_clock_that_somebody_reset_is_set_again() -> None:
    control = Control()
    clock = clock_of(control)
    clock.apply(STEPS, 0)
    clock.want(1, 10)
    control.mhz = FULL_MHZ
    clock.want(1, 12)
    assert control.told == [(10, 1590), (12, 1590)]


def test_a_lapsed_lease_means_full_clock() -> None:
    control, lease = Control(), Lease()
    clock = clock_of(control, lease)
    clock.apply(STEPS, 0)
    clock.want(1, 10)
    lease.live = False
    clock.want(2, 20)
    assert control.told[-1] == (20, FULL_MHZ)
    run(clock, 100)
    assert control.told[-1] == (20, FULL_MHZ)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (STEPS[:-1], "the schedule has 3 computations, this rank runs 4"),
        ((STEPS[1], STEPS[0], *STEPS[2:]), "computation 0 of the schedule is forward 1, of this rank forward 0"),
        ((STEPS[0], STEPS[1]._replace(chunk=1), *STEPS[2:]), "is forward 1 of chunk 1, of this rank forward 1"),
        ((ScheduledStep("forward", 0, 0, 0, 300), *STEPS[1:]), r"steers by power limit \(300 W\), this rank by clocks"),
    ],
)
def test_a_schedule_that_is_not_this_ranks_is_refused_and_the_last_one_stays(
    asked: tuple[ScheduledStep, ...], told: str
) -> None:
    control = Control()
    clock = clock_of(control)
    clock.apply(STEPS, 0)
    with pytest.raises(SessionError, match=told):
        clock.apply(asked, 5)
    run(clock)
    assert control.told == [(10, 1590), (30, 1200), (40, 1980)]


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    node = SimulatedNode.create(tmp_path / "gpus.bin", 1, H100_SXM)
    yield node.gpu(0)
    node.close()


def test_the_same_schedule_moves_a_gpu_behind_the_hardware_port(gpu: Gpu) -> None:
    control = PortClock(gpu)
    clock = ScheduledClock(control, Lease(), PROGRAM, control.full_clock_mhz)
    clock.apply(STEPS, 0)
    seen = []
    for place in range(len(PROGRAM)):
        clock.want(place, 0)
        seen.append(gpu.locked_mhz())
    assert seen == [1980, 1590, 1590, 1200]
    clock.full(0)
    assert gpu.locked_mhz() == FULL_MHZ


class Forbidding:
    """A GPU that may be read and not set, and that does not tell its lock (as NVML)."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.uuid, self.resets = gpu, gpu.uuid, 0

    def supported_freqs_mhz(self) -> tuple[int, ...]:
        return tuple(self._gpu.supported_freqs_mhz())

    def lock_freq(self, max_mhz: int) -> None:
        raise GpuPermissionError(f"{self.uuid}: no permission to set {max_mhz} MHz")

    def reset_freq(self) -> None:
        self.resets += 1

    def locked_mhz(self) -> None:
        return None


def test_a_gpu_that_takes_no_clock_is_brought_to_full_and_training_goes_on(
    gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    forbidding = Forbidding(gpu)
    clock = ScheduledClock(PortClock(forbidding), Lease(), PROGRAM, FULL_MHZ)  # type: ignore[arg-type]
    clock.apply(STEPS, 0)
    clock.want(1, 0)
    assert forbidding.resets == 1
    assert "does not take 1590 MHz, full clock" in caplog.text
