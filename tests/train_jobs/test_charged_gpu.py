"""A simulated GPU in a time of the test's own: work is charged to the nanosecond and to the joule."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.gpu_model import H100_SXM
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.job import Job
from train_jobs.profile_sweep import blocking_power_w, sweep

JOB = Job()


class Clock:
    now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gpu(tmp_path: Path, clock: Clock) -> Iterator[ChargedGpu]:
    node = SimulatedNode.create(tmp_path / "gpus.bin", 1, H100_SXM, clock)
    yield ChargedGpu(node, 0, clock, clock.sleep)
    node.close()


def test_a_computation_is_charged_time_and_energy_of_its_clock(gpu: ChargedGpu, clock: Clock) -> None:
    gpu.set_clock(1200, clock())
    gpu.settle()
    work = JOB.work(0, "forward")
    span = gpu.compute(work, clock())
    assert (span.end_ns - span.begin_ns) * 1e-9 == pytest.approx(work.time_s(H100_SXM, 1200))
    assert span.energy_j == pytest.approx(work.energy_j(H100_SXM, 1200), rel=1e-6)
    assert clock() == span.end_ns


def test_a_late_waker_delays_nothing_in_gpu_time(gpu: ChargedGpu, clock: Clock) -> None:
    began_ns = clock()
    first = gpu.compute(JOB.work(0, "forward"), began_ns)
    clock.sleep(0.01)
    second = gpu.compute(JOB.work(0, "forward"), first.end_ns)
    assert second.begin_ns == first.end_ns
    assert second.end_ns - first.end_ns == first.end_ns - began_ns


def test_the_sweep_measures_every_computation_at_every_clock(gpu: ChargedGpu) -> None:
    measured = sweep(JOB, 1, gpu)
    assert set(measured) == {"forward", "backward"}
    for instruction, choices in measured.items():
        assert tuple(c.freq_mhz for c in choices) == JOB.sweep.clocks_mhz
        for choice in choices:
            work = JOB.work(1, instruction)
            assert choice.time_s == pytest.approx(work.time_s(H100_SXM, choice.freq_mhz), rel=1e-6)
            assert choice.energy_j == pytest.approx(work.energy_j(H100_SXM, choice.freq_mhz), rel=1e-6)
    assert gpu.target_mhz() == 1980


def test_blocking_power_is_what_a_waiting_gpu_with_a_context_draws(gpu: ChargedGpu) -> None:
    assert blocking_power_w(JOB, gpu) == pytest.approx(H100_SXM.context_w)
