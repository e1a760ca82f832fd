"""A simulated GPU in a time of the test's own: work is charged to the nanosecond and to the joule."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.gpu_model import H100_SXM
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.job import Job, JobError
from train_jobs.profile_sweep import blocking_power_w, sweep
from train_jobs.simulated_costs import SweepSettings

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
    work = JOB.costs.work(0, "forward")
    began = gpu.reading(clock())
    ended = gpu.compute(work, began.at_ns)
    assert (ended.at_ns - began.at_ns) * 1e-9 == pytest.approx(work.time_s(H100_SXM, 1200))
    assert ended.energy_j - began.energy_j == pytest.approx(work.energy_j(H100_SXM, 1200), rel=1e-6)
    assert clock() == ended.at_ns


def test_a_late_waker_delays_nothing_in_gpu_time(gpu: ChargedGpu, clock: Clock) -> None:
    began_ns = clock()
    first = gpu.compute(JOB.costs.work(0, "forward"), began_ns)
    clock.sleep(0.01)
    second = gpu.compute(JOB.costs.work(0, "forward"), first.at_ns)
    assert second.at_ns - first.at_ns == first.at_ns - began_ns


def test_looking_at_a_gpu_leaves_its_computation_alone(gpu: ChargedGpu, clock: Clock) -> None:
    """The lease's thread may look while the training thread computes."""
    work = JOB.costs.work(0, "forward")
    undisturbed = gpu.compute(work, clock()).energy_j - gpu.reading(clock()).energy_j
    began = gpu.reading(clock())
    ahead = gpu.compute(work, began.at_ns).energy_j - began.energy_j
    gpu.look()
    assert undisturbed == 0
    assert ahead == pytest.approx(work.energy_j(H100_SXM, 1980), rel=1e-6)


def test_the_sweep_measures_every_computation_at_every_clock(gpu: ChargedGpu) -> None:
    measured = sweep(JOB, 1, gpu)
    assert set(measured) == {"forward", "backward"}
    for instruction, choices in measured.items():
        assert tuple(c.freq_mhz for c in choices) == JOB.sweep.clocks_on(H100_SXM)
        for choice in choices:
            work = JOB.costs.work(1, instruction)
            assert choice.time_s == pytest.approx(work.time_s(H100_SXM, choice.freq_mhz), rel=1e-6)
            assert choice.energy_j == pytest.approx(work.energy_j(H100_SXM, choice.freq_mhz), rel=1e-6)
    assert gpu.target_mhz() == 1980


def test_blocking_power_is_what_a_waiting_gpu_with_a_context_draws(gpu: ChargedGpu) -> None:
    assert blocking_power_w(JOB, gpu) == pytest.approx(H100_SXM.context_w)


def test_a_gpu_without_the_jobs_clocks_is_told_before_it_is_measured(tmp_path: Path, clock: Clock) -> None:
    other = replace(H100_SXM, name="Other", freqs_mhz=(600, 1200, 1980))
    node = SimulatedNode.create(tmp_path / "gpus.bin", 1, other, clock)
    gpu = ChargedGpu(node, 0, clock, clock.sleep)
    asked = Job(sweep=SweepSettings(clocks_mhz=(1980, 945)))
    with pytest.raises(JobError, match=r"sweep\.clocks_mhz is not for the GPU .* a Other: it has no 945 MHz"):
        sweep(asked, 0, gpu)
    assert [choice.freq_mhz for choice in sweep(JOB, 0, gpu)["forward"]] == [1980, 1200, 600]
    node.close()
