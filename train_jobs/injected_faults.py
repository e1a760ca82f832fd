"""Faults that a job is given on purpose, to see that they are found and planned for."""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from control_plane.hardware.stage_model import StageWork
from train_jobs.file_part import FilePart


class _Lasting(FilePart):
    """Iterations ``from_iteration`` up to ``to_iteration``."""

    from_iteration: int = Field(ge=0)
    to_iteration: int = Field(ge=1)

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.to_iteration <= self.from_iteration:
            raise ValueError(f"to_iteration {self.to_iteration} is not after from_iteration {self.from_iteration}")
        return self

    def covers(self, iteration: int) -> bool:
        return self.from_iteration <= iteration < self.to_iteration


class StragglerSettings(_Lasting):
    """A data-parallel pipeline is slow for a while. Where the job runs only one, this is another that it waits for."""

    degree: float = Field(1.2, gt=1, le=10)
    """It takes this many times a healthy iteration at full clock: every GPU of it is so much slower."""
    pipeline: int = Field(1, ge=1)
    """Which one, counted from 0; the first is never it."""
    announced: bool = True
    """The planner is told, as by a GPU agent or an operator; otherwise it has to find out."""


class SlowGpuSettings(_Lasting):
    """A GPU of the job's own is slow for a while, at the same power, and nobody says so."""

    stage: int = Field(ge=0)
    pipeline: int = Field(0, ge=0)
    ratio: float = Field(1.3, gt=1, le=10)
    """Its computations take this many times as long."""


@dataclass(frozen=True, slots=True)
class InjectedFaults:
    """Which iterations are disturbed, and how, in a job of so many data-parallel pipelines."""

    straggler: StragglerSettings | None
    slow_gpu: SlowGpuSettings | None
    pipelines: int = 1

    def degree_at(self, iteration: int) -> float:
        """How many times a healthy iteration the slowest other pipeline takes."""
        straggler = self.straggler
        return straggler.degree if straggler is not None and straggler.covers(iteration) else 1.0

    def announced_at(self, iteration: int) -> float:
        """What the planner is told of it."""
        told = self.straggler is not None and self.straggler.announced
        return self.degree_at(iteration) if told else 1.0

    def waited_for_at(self, iteration: int) -> float:
        """The same for a pipeline that is not run, only waited for."""
        return self.degree_at(iteration) if self.pipelines == 1 else 1.0

    def slow_ratio_at(self, iteration: int) -> float:
        """How many times as long the slow GPU takes; 1 where none is slow."""
        slow = self.slow_gpu
        return slow.ratio if slow is not None and slow.covers(iteration) else 1.0

    def slowed(self, work: StageWork, stage: int, iteration: int, pipeline: int = 0) -> StageWork:
        """What a computation of a stage takes in this iteration."""
        ratio = 1.0
        if self.slow_gpu is not None and (self.slow_gpu.pipeline, self.slow_gpu.stage) == (pipeline, stage):
            ratio *= self.slow_ratio_at(iteration)
        if self.straggler is not None and self.pipelines > 1 and self.straggler.pipeline == pipeline:
            ratio *= self.degree_at(iteration)
        return StageWork(work.compute_s * ratio, work.memory_s * ratio, work.activity)
