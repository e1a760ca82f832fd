"""What wattray's hooks cost a training step: blocks of iterations with and without them, in turn.

    python -m benchmarks.training.hooks [--pairs 30] [--computation-ms 5]

A stage whose computations take so long (the thread launches small torch operations until then, as one that gives a GPU
work), 8 micro-batches forward and backward, under a plan: order check, timing, clock changes by a thread, sampled
power, reports and planner as in real training on an NVIDIA GPU, whose driver and CUDA events alone are left out. Where
others use the machine the pairs scatter; what passes inside the hooks is told beside them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.gpu_model import H100_SXM, Activity
from control_plane.training.schedules import Instruction
from train_jobs.attached import AttachedTraining, RankParts
from train_jobs.board import Board
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.correspondence import Correspondence
from train_jobs.lead import JobShape
from train_jobs.local_planner import LocalPlanner
from train_jobs.meter import Meter, Reading
from train_jobs.power_sampler import PowerSampler
from train_jobs.schedule_lease import ScheduleLease
from train_jobs.stage_hooks import watch
from train_jobs.threaded_clock import ThreadedClock

MICROBATCHES, BLOCK = 8, 4


class Memory:
    """A store of one process."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def check(self, keys: list[str]) -> bool:
        return all(key in self._kept for key in keys)

    def get(self, key: str) -> bytes:
        return self._kept[key]

    def set(self, key: str, value: Any) -> None:
        self._kept[key] = value


class Stage:
    """Launches small operations for as long as a computation takes."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._part = seconds, torch.randn(48, 48)

    def forward_one_chunk(self, microbatch: int) -> None:
        self._compute(1.0)

    def backward_one_chunk(self, microbatch: int, full_backward: bool = True) -> None:
        self._compute(1.0)

    def backward_weight_one_chunk(self, microbatch: int) -> None:
        self._compute(1.0)

    def iterate(self) -> None:
        for microbatch in range(MICROBATCHES):
            self.forward_one_chunk(microbatch)
        for microbatch in range(MICROBATCHES):
            self.backward_one_chunk(microbatch)

    def _compute(self, size: float) -> None:
        until_s = time.perf_counter() + self._seconds * size
        while time.perf_counter() < until_s:
            torch.mm(self._part, self._part)


class Timed:
    """Passes on what a stage says, and notes how long that takes."""

    def __init__(self, attached: AttachedTraining) -> None:
        self._attached, self.inside_s = attached, list[float]()

    def begins(self, step: Instruction) -> None:
        began_s = time.perf_counter()
        self._attached.begins(step)
        self._begin_s = time.perf_counter() - began_s

    def ended(self, step: Instruction) -> None:
        began_s = time.perf_counter()
        self._attached.ended(step)
        self.inside_s.append(self._begin_s + time.perf_counter() - began_s)


class Conductor:
    """Real time, as on a CUDA rank."""

    def __init__(self, attached: AttachedTraining, sampler: PowerSampler) -> None:
        self._attached, self._sampler = attached, sampler

    def start(self) -> tuple[Reading, Reading]:
        now = self._sampler.now()
        return now, now

    def begins(self, step: Instruction) -> None:
        self._attached.begin(step, self._sampler.now())

    def ended(self, step: Instruction) -> None:
        self._attached.end(step, self._sampler.now())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--computation-ms", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        node = SimulatedNode.create(Path(folder) / "gpus.bin", 1, H100_SXM)
        gpu = ChargedGpu(node, 0)
        node.set_activity([0], Activity(0.85, 0.45))
        sampler = PowerSampler(node.gpu(0))
        lease = ScheduleLease(lambda _: True, 15.0)
        clock = ThreadedClock(gpu, H100_SXM.max_freq_mhz)
        planner = LocalPlanner()
        parts = RankParts(0, 0, 1, Meter(sampler.now), clock, lease, H100_SXM.freqs_mhz, True)
        shape = JobShape("hooks", 0, ((0,),), 0.0)
        correspondence = Correspondence(shape, Board(Memory(), "hooks"), lambda: (planner.call, planner.close))
        attached = AttachedTraining(parts, correspondence, strict=True)
        attached.conductor = Conductor(attached, sampler)
        stage = Stage(options.computation_ms / 1000)

        timed = Timed(attached)

        def block_s(hooked: bool) -> float:
            """Seconds of an iteration."""
            stop = watch(stage, 0, timed) if hooked else None
            began_s = time.perf_counter()
            for _ in range(BLOCK):
                if hooked:
                    with attached.iteration():
                        stage.iterate()
                else:
                    stage.iterate()
            lasted_s = time.perf_counter() - began_s
            if stop is not None:
                stop()
            return lasted_s / BLOCK

        for _ in range(12):
            block_s(True)
        pairs = [(block_s(True), block_s(False)) for _ in range(options.pairs)]
        ratios = sorted(hooked / plain - 1 for hooked, plain in pairs)
        inside_s = statistics.median(timed.inside_s)
        plain_ms = 1000 * statistics.median(plain for _, plain in pairs)
        quarter = len(ratios) // 4
        print(
            f"phase {attached.summary()['phase']}; {2 * MICROBATCHES} computations of {options.computation_ms:g} ms, "
            f"{plain_ms:.2f} ms an iteration; {options.pairs} pairs of blocks of {BLOCK}\n"
            f"hooks cost {statistics.median(ratios):.3%} of an iteration (quartiles {ratios[quarter]:.3%} and "
            f"{ratios[-quarter - 1]:.3%});\ninside the hooks pass {inside_s * 1e6:.0f} µs a computation (median), "
            f"{inside_s / options.computation_ms * 1000:.3%} of it"
        )
        attached.close()
        correspondence.close()
        clock.close()
        lease.end()
        sampler.close()


if __name__ == "__main__":
    main()
