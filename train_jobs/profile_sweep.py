"""A job measures itself: time and energy of every computation at every clock, on its own GPU, before it trains."""

from control_plane.training.profile import Choice
from control_plane.training.schedules import BACKWARD, FORWARD, Instruction
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.job import Job, JobError
from train_jobs.meter import between


def sweep(job: Job, stage: int, gpu: ChargedGpu) -> dict[str, tuple[Choice, ...]]:
    """Measure forward and backward of this stage at every clock, each at a settled clock. Raises JobError where this
    GPU has not the job's clocks."""
    try:
        clocks_mhz = job.sweep.clocks_on(gpu.spec)
    except ValueError as wrong:
        told = f"sweep.clocks_mhz is not for the GPU that job {job.name} runs on, a {gpu.spec.name}: {wrong}"
        raise JobError(told) from None
    measured: dict[str, list[Choice]] = {FORWARD: [], BACKWARD: []}
    for freq_mhz in clocks_mhz:
        gpu.set_clock(freq_mhz, gpu.now_ns())
        gpu.settle()
        for instruction, choices in measured.items():
            began = gpu.reading(gpu.now_ns())
            ended = gpu.compute(job.costs.work(stage, instruction), began.at_ns)
            step = between(Instruction(instruction, 0), began, ended)
            choices.append(Choice(freq_mhz, step.time_s, step.energy_j))
    gpu.set_clock(gpu.spec.max_freq_mhz, gpu.now_ns())
    gpu.settle()
    return {instruction: tuple(choices) for instruction, choices in measured.items()}


def blocking_power_w(job: Job, gpu: ChargedGpu) -> float:
    """What the GPU draws while it waits for others."""
    began = gpu.reading(gpu.now_ns())
    until_ns = began.at_ns + round(job.sweep.idle_s * 1e9)
    gpu.sleep_until(until_ns)
    return (gpu.reading(until_ns).energy_j - began.energy_j) / job.sweep.idle_s
