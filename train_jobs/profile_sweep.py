"""A job measures itself: time and energy of every computation at every clock, on its own GPU, before it trains."""

from control_plane.training.profile import Choice
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.charged_pipeline import BACKWARD, FORWARD
from train_jobs.job import Job


def sweep(job: Job, stage: int, gpu: ChargedGpu) -> dict[str, tuple[Choice, ...]]:
    """Measure forward and backward of this stage at every clock, each at a settled clock."""
    measured: dict[str, list[Choice]] = {FORWARD: [], BACKWARD: []}
    for freq_mhz in job.sweep.clocks_mhz:
        gpu.set_clock(freq_mhz, gpu.now_ns())
        gpu.settle()
        for instruction, choices in measured.items():
            span = gpu.compute(job.work(stage, instruction), gpu.now_ns())
            choices.append(Choice(freq_mhz, (span.end_ns - span.begin_ns) * 1e-9, span.energy_j))
    gpu.set_clock(gpu.spec.max_freq_mhz, gpu.now_ns())
    gpu.settle()
    return {instruction: tuple(choices) for instruction, choices in measured.items()}


def blocking_power_w(job: Job, gpu: ChargedGpu) -> float:
    """What the GPU draws while it waits for others."""
    from_ns = gpu.now_ns()
    until_ns = from_ns + round(job.sweep.idle_s * 1e9)
    before_j = gpu.counter_j(from_ns)
    gpu.sleep_until(until_ns)
    return (gpu.counter_j(until_ns) - before_j) / job.sweep.idle_s
