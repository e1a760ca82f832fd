"""Two pipelines of two stages on simulated A100s in the shape of a profile: what the planner says, and what came.

    torchrun --nproc-per-node 4 -m benchmarks.training.grid --profile PROFILE.csv -o grid.json

The stages are real torch, trained by gloo on this machine; their computations are charged what the profile's first and
last stage take, times scaled by ``--scale``. The job measures itself as a user's does (20 iterations), then for every
degree the second pipeline's GPUs become so much slower, which nobody announces, and then well again. The same is run
once more with every clock at its highest. Figures are of the iterations in which the clocks had changed over.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from actors.gpu.simulated import SimulatedNode
from benchmarks.training.a100_profile import Shaped, shaped_like
from control_plane.hardware.stage_model import StageWork
from control_plane.training.schedules import Instruction
from train_jobs.attach import attach_schedule
from train_jobs.attached import AttachedTraining
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.local_planner import LocalPlanner
from train_jobs.planes import RankGpu
from train_jobs.schedule_lease import ScheduleLease

STAGES, PIPELINES, WIDTH = 2, 2, 16
DEGREES = (1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5)
CHANGE_OVER, MEASURED = 12, 5
"""Iterations until the clocks have changed over, and those that count."""


class Plane:
    """A simulated node that nobody else uses: clocks are set at the very moment they are asked for."""

    has_real_gpus = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def gpus(self, job: str, ranks: int) -> tuple[str, ...]:
        node = SimulatedNode(self._path)
        return tuple(node.uuid_of(index) for index in range(ranks))

    def open(self, job: str, uuid: str) -> RankGpu:
        node = SimulatedNode(self._path)
        charged = ChargedGpu(node, node.index_of(uuid))
        return RankGpu(uuid, charged, ScheduleLease(lambda _: True, 60.0), False, charged.close)

    def planner(self) -> "tuple[Callable[..., Future[Any]], Callable[[], None]]":
        planner = LocalPlanner()
        return planner.call, planner.close


class Rank:
    """One of the four."""

    def __init__(self, shaped: Shaped, folder: Path, microbatches: int) -> None:
        self.rank = dist.get_rank()
        self.pipeline, self.stage = divmod(self.rank, STAGES)
        groups = [dist.new_group([p * STAGES + s for s in range(STAGES)]) for p in range(PIPELINES)]
        self.group, self.shaped, self.plane = groups[self.pipeline], shaped, Plane(folder / "gpus.bin")
        self.microbatches, self.degree = microbatches, 1.0

    def work(self, stage: int, step: Instruction) -> StageWork:
        work = self.shaped.work[stage, step.name]
        ratio = self.degree if self.pipeline == 1 else 1.0
        return StageWork(work.compute_s * ratio, work.memory_s * ratio, work.activity)

    def run(self, policy: Any) -> list[dict[str, Any]]:
        """By degree: of this rank, the median iteration and what its schedule promised."""
        torch.manual_seed(self.stage)
        module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        stage = PipelineStage(module, self.stage, STAGES, torch.device("cpu"), group=self.group)
        schedule = Schedule1F1B(stage, self.microbatches, loss_fn=nn.functional.mse_loss)
        job = f"grid-{policy}"
        with attach_schedule(schedule, job, policy=policy, strict=True, work=self.work, plane=self.plane) as energy:
            for _ in range(22 + CHANGE_OVER):
                self.iterate(energy, schedule)
            return [self.at(degree, energy, schedule) for degree in DEGREES]

    def at(self, degree: float, energy: AttachedTraining, schedule: Any) -> dict[str, Any]:
        self.degree = degree
        for _ in range(CHANGE_OVER + MEASURED + 1):
            self.iterate(energy, schedule)
        seen, found = energy.iterations[-MEASURED:], energy.schedule
        told = {
            "pipeline": self.pipeline,
            "stage": self.stage,
            "time_s": median(one.time_s for one in seen),
            "energy_j": median(one.energy_j for one in seen),
            "plan_degree": found.degree,
            "planned_j": found.planned_energy_j,
            "planned_all_max_j": found.all_max_energy_until_j(found.deadline_s),
        }
        self.degree = 1.0
        for _ in range(CHANGE_OVER):
            self.iterate(energy, schedule)
        return told

    def iterate(self, energy: AttachedTraining, schedule: Any) -> None:
        inputs = torch.randn(self.microbatches, WIDTH)
        with energy.iteration():
            schedule.step(*([inputs] if self.stage == 0 else []), **({"target": inputs} if self.stage else {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--profile", type=Path, required=True, help="A stage profile (CSV).")
    parser.add_argument("--scale", type=float, default=0.3, help="Of its times, so that a run takes minutes.")
    parser.add_argument("--settle-s", type=float, default=0.02, help="What a clock change takes, before scaling.")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    shaped = shaped_like(options.profile, STAGES, options.scale, options.settle_s * options.scale)
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder, 0)
    if dist.get_rank() == 0:
        SimulatedNode.create(Path(folder[0]) / "gpus.bin", STAGES * PIPELINES, shaped.spec).close()
    dist.barrier()
    rank = Rank(shaped, Path(folder[0]), options.microbatches)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (rank.run("perseus"), rank.run("all-max")))
    if dist.get_rank() == 0:
        rows = [figures(number, everyone) for number in range(len(DEGREES))]
        about = {"profile": options.profile.name, "scale": options.scale, "misfit": shaped.worst_misfit}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1))
        for row in rows:
            print(
                f"straggler {row['degree']:<4} saved {row['saved']:6.2%} (planned {row['planned_saved']:6.2%}), "
                f"iteration {row['slowdown_ratio']:.4f} times all-max's"
            )
    dist.barrier()
    dist.destroy_process_group()
    os.sync()


def figures(number: int, everyone: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]) -> dict[str, Any]:
    """One degree, all ranks together."""
    under, full = [one[0][number] for one in everyone], [one[1][number] for one in everyone]
    leads = [one for one in under if one["stage"] == 0]
    return {
        "degree": DEGREES[number],
        "saved": 1 - sum(one["energy_j"] for one in under) / sum(one["energy_j"] for one in full),
        "planned_saved": 1 - sum(one["planned_j"] for one in leads) / sum(one["planned_all_max_j"] for one in leads),
        "slowdown_ratio": under[0]["time_s"] / full[0]["time_s"],
        "plan_degrees": [one["plan_degree"] for one in leads],
        "iteration_s": under[0]["time_s"],
    }


if __name__ == "__main__":
    main()
