"""A training job as a file: what it trains, in how many stages and iterations.

What its computations cost on simulated GPUs (``simulated_costs``) and which faults are injected (``injected_faults``)
are parts of the file with modules of their own.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from control_plane.field_errors import explain
from control_plane.hardware.gpu_model import H100_SXM
from control_plane.training.job_record import JOB_NAME, PERSEUS, Policy
from control_plane.training.schedules import Schedule, schedule_named
from train_jobs.file_part import FilePart
from train_jobs.injected_faults import InjectedFaults, SlowGpuSettings, StragglerSettings
from train_jobs.simulated_costs import LayerCost, StageCosts, SweepSettings


class JobError(ValueError):
    """The job cannot run as it is written; the message names the field, the value and the fix."""


class NoPlannerError(RuntimeError):
    """No planner can be reached; the message says how to start one."""

    def __init__(self, why: str) -> None:
        how = "start the control plane with `wattray up --config FILE`, where FILE holds `training: {gpus: 2}`"
        super().__init__(f"{why}; {how}")


class ScheduleSettings(FilePart):
    """The order of computations: one forward, one backward (PipeDream-Flush)."""

    name: Literal["1f1b"] = "1f1b"
    stages: int = Field(2, ge=2, le=16)
    microbatches: int = Field(6, ge=1, le=256)

    @model_validator(mode="after")
    def _enough_microbatches(self) -> "ScheduleSettings":
        if self.microbatches < self.stages:
            raise ValueError(f"{self.stages} stages need at least as many microbatches, got {self.microbatches}")
        return self


class StageSettings(FilePart):
    """One stage of the pipeline, on one GPU."""

    layers: int = Field(ge=1, le=64)


class ModelSettings(FilePart):
    """The network that is really trained: small, so that its arithmetic costs next to nothing."""

    width: int = Field(32, ge=2, le=1024)
    microbatch_size: int = Field(4, ge=1, le=256)
    learning_rate: float = Field(0.05, gt=0)
    seed: int = 7


class Job(FilePart):
    """A whole job file."""

    name: str = Field("pipeline", pattern=JOB_NAME)
    policy: Policy = PERSEUS
    """Who chooses the clocks: this project's planner, what others do (control_plane/baselines), or nobody (all-max)."""
    iterations: int = Field(34, ge=2, le=100_000)
    warmup_iterations: int = Field(2, ge=1)
    """Iterations at full clock before the schedule is applied: what all-max clocks take is measured in them."""
    schedule: ScheduleSettings = ScheduleSettings()
    data_parallel: int = Field(1, ge=1, le=64)
    """Pipelines that train the same network on data of their own; gradients are averaged over them."""
    stages: tuple[StageSettings, ...] = (StageSettings(layers=3), StageSettings(layers=4))
    """The last stage is the heavier one, as with a language model's head."""
    model: ModelSettings = ModelSettings()
    layer: LayerCost = LayerCost()
    sweep: SweepSettings = SweepSettings()
    straggler: StragglerSettings | None = StragglerSettings(from_iteration=12, to_iteration=22)
    slow_gpu: SlowGpuSettings | None = None
    switch_time_s: float = Field(H100_SXM.settle_ns * 1e-9, ge=0, le=10)
    """No clock is held for less than this; by default what the GPU needs to settle at a new one."""
    checkpoint_every: int = Field(5, ge=1)
    max_failures: int = Field(3, ge=0)
    compare_losses: bool = False
    """Train once more at the end, unmanaged and uncharged, and keep those losses beside the run's own."""

    @model_validator(mode="after")
    def _stages_agree(self) -> "Job":
        if len(self.stages) != self.schedule.stages:
            raise ValueError(f"stages lists {len(self.stages)} stages, schedule.stages says {self.schedule.stages}")
        for name, trouble in (("straggler", self.straggler), ("slow_gpu", self.slow_gpu)):
            if trouble is not None and trouble.from_iteration < self.warmup_iterations:
                raise ValueError(
                    f"{name}.from_iteration {trouble.from_iteration} is in the {self.warmup_iterations} "
                    "warmup_iterations, which measure a healthy iteration"
                )
            if trouble is not None and trouble.to_iteration > self.iterations:
                raise ValueError(
                    f"{name}.to_iteration {trouble.to_iteration} is past the last of {self.iterations} iterations"
                )
        if self.slow_gpu is not None and self.slow_gpu.stage >= self.schedule.stages:
            last = self.schedule.stages - 1
            raise ValueError(f"slow_gpu.stage {self.slow_gpu.stage} is not there, the last of the stages is {last}")
        return self._pipelines_are_there()

    def _pipelines_are_there(self) -> "Job":
        pipelines, straggler = self.data_parallel, self.straggler
        if self.slow_gpu is not None and self.slow_gpu.pipeline >= pipelines:
            raise ValueError(
                f"slow_gpu.pipeline {self.slow_gpu.pipeline} is not there, data_parallel runs {pipelines}, from 0"
            )
        if straggler is not None and pipelines > 1 and straggler.pipeline >= pipelines:
            raise ValueError(
                f"straggler.pipeline {straggler.pipeline} is not there, data_parallel runs {pipelines}, from 0"
            )
        if straggler is not None and pipelines == 1 and not straggler.announced:
            raise ValueError(
                "straggler.announced false: a pipeline that is not run cannot be found; set data_parallel to 2 or more"
            )
        return self

    @property
    def ranks(self) -> int:
        """GPUs that it needs: one per stage and pipeline."""
        return self.data_parallel * self.schedule.stages

    @property
    def managed(self) -> bool:
        """Whether anybody chooses clocks."""
        return self.policy != "all-max"

    @property
    def order(self) -> Schedule:
        """What every stage runs in one iteration."""
        return schedule_named(self.schedule.name, self.schedule.stages, self.schedule.microbatches)

    @property
    def costs(self) -> StageCosts:
        """What its computations are charged on simulated GPUs."""
        return StageCosts(self.layer, tuple(stage.layers for stage in self.stages))

    @property
    def faults(self) -> InjectedFaults:
        return InjectedFaults(self.straggler, self.slow_gpu, self.data_parallel)


def job_lasting(seconds: float, **fields: Any) -> Job:
    """The default pipeline for about so many seconds of GPU time (at least a dozen iterations), the straggler in the
    middle third. Worker start and self-measurement take another half minute."""
    usual = Job()
    healthy_s = usual.costs.healthy_s(H100_SXM, usual.schedule.microbatches)
    iterations = max(12, round(seconds / (healthy_s * (1 + 0.2 / 3))))
    straggler = StragglerSettings(from_iteration=iterations // 3, to_iteration=2 * iterations // 3)
    return Job(iterations=iterations, straggler=straggler, **fields)


def parse_job(values: dict[str, Any], source: str = "job") -> Job:
    """A job from a mapping. Raises JobError naming ``source`` and every field at fault."""
    try:
        return Job.model_validate(values)
    except ValidationError as error:
        raise JobError("\n".join(explain(Job, source, dict(item), "field") for item in error.errors())) from None


def read_job(path: Path) -> Job:
    """A job from a YAML file. Raises JobError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise JobError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return parse_job(values, str(path))
