"""One stage's network as it is really trained: torch's pipeline, its optimizer, and the average over pipelines."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from train_jobs.collectives import average_gradients
from train_jobs.job import Job
from train_jobs.pipeline_model import batch, build_stage, loss_fn


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands: which stage of which data-parallel pipeline, and the groups of both."""

    rank: int
    stage: int
    pipeline: int
    ranks: tuple[int, ...]
    """Of its pipeline, stage by stage."""
    pipeline_group: dist.ProcessGroup
    moments_group: dist.ProcessGroup
    """Its ranks once more: moments would be mistaken for activations."""
    stage_group: dist.ProcessGroup | None
    """The same stage of every pipeline; None where there is one."""

    @property
    def leads(self) -> bool:
        """Talks to the planner for its pipeline."""
        return self.stage == 0


def place_of(job: Job, rank: int) -> Place:
    """Collective: every rank makes every group."""
    stages, pipelines = job.schedule.stages, job.data_parallel
    pipeline, stage = divmod(rank, stages)
    members = [tuple(range(p * stages, (p + 1) * stages)) for p in range(pipelines)]
    groups = [[dist.new_group(list(ranks), backend="gloo") for ranks in members] for _ in range(2)]
    of_stage = [dist.new_group(list(range(s, pipelines * stages, stages)), backend="gloo") for s in range(stages)]
    shared = of_stage[stage] if pipelines > 1 else None
    return Place(rank, stage, pipeline, members[pipeline], groups[0][pipeline], groups[1][pipeline], shared)


class TrainedStage:
    """The network of one stage and what steps it."""

    def __init__(self, job: Job, place: Place) -> None:
        self._job, self._place = job, place
        self.module = build_stage(job.model, tuple(stage.layers for stage in job.stages), place.stage)
        self.optimizer = torch.optim.SGD(self.module.parameters(), job.model.learning_rate, momentum=0.9)
        stages, group = job.schedule.stages, place.pipeline_group
        self.stage = PipelineStage(self.module, place.stage, stages, torch.device("cpu"), group=group)
        self._pipeline = Schedule1F1B(self.stage, job.schedule.microbatches, loss_fn)

    def step(self, iteration: int) -> float:
        """Forward, backward, average and update on one batch; the loss is known on the last stage."""
        job, place = self._job, self._place
        inputs, targets = batch(job.model, job.schedule.microbatches, iteration, place.pipeline)
        losses: list[torch.Tensor] = []
        if place.stage == 0:
            self._pipeline.step(inputs)
        elif place.stage == job.schedule.stages - 1:
            self._pipeline.step(target=targets, losses=losses)
        else:
            self._pipeline.step()
        return float(torch.stack(losses).mean().detach()) if losses else 0.0

    def update(self) -> None:
        """The collective of data parallelism, and the optimizer's step."""
        if self._place.stage_group is not None:
            average_gradients(self.module, self._place.stage_group)
        self.optimizer.step()
        self.optimizer.zero_grad()
