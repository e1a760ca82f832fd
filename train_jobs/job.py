"""A training job as a file: what it trains, in how many stages, what a layer takes, and which straggler is injected."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from control_plane.field_errors import explain
from control_plane.hardware.gpu_model import H100_SXM, Activity
from control_plane.hardware.stage_model import StageWork

JOB_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

STEPS = ("forward", "backward")


class JobError(ValueError):
    """The job cannot run as it is written; the message names the field, the value and the fix."""


class NoPlannerError(RuntimeError):
    """No planner can be reached; the message says how to start one."""

    def __init__(self, why: str) -> None:
        how = "start the control plane with `wattray up --config FILE`, where FILE holds `training: {gpus: 2}`"
        super().__init__(f"{why}; {how}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSettings(_Part):
    """The order of computations: one forward, one backward (PipeDream-Flush)."""

    name: Literal["1f1b"] = "1f1b"
    stages: int = Field(2, ge=2, le=16)
    microbatches: int = Field(6, ge=1, le=256)

    @model_validator(mode="after")
    def _enough_microbatches(self) -> "ScheduleSettings":
        if self.microbatches < self.stages:
            raise ValueError(f"{self.stages} stages need at least as many microbatches, got {self.microbatches}")
        return self


class StageSettings(_Part):
    """One stage of the pipeline, on one GPU."""

    layers: int = Field(ge=1, le=64)


class ModelSettings(_Part):
    """The network that is really trained: small, so that its arithmetic costs next to nothing."""

    width: int = Field(32, ge=2, le=1024)
    microbatch_size: int = Field(4, ge=1, le=256)
    learning_rate: float = Field(0.05, gt=0)
    seed: int = 7


class LayerCost(_Part):
    """What one layer is charged for one micro-batch on a simulated GPU, at the highest clock."""

    forward_s: float = Field(0.024, gt=0)
    backward_ratio: float = Field(2.0, gt=0)
    """A backward takes this many times the forward: gradients of inputs and of weights."""
    compute_share: float = Field(0.75, gt=0, le=1)
    """The part that stretches as the clock falls; the rest is memory traffic."""
    sm: float = Field(0.85, ge=0, le=1)
    mem: float = Field(0.45, ge=0, le=1)
    """Shares of SM and memory power while it runs: large matrix products keep the SMs busy."""


class SweepSettings(_Part):
    """Which clocks the job measures itself at."""

    clocks_mhz: tuple[int, ...] = Field((1980, 1845, 1710, 1590, 1470, 1365, 1260, 1155, 1050, 945), min_length=2)
    idle_s: float = Field(0.1, gt=0)
    """Blocking power is measured over this long."""

    @model_validator(mode="after")
    def _clocks_exist(self) -> "SweepSettings":
        unknown = sorted(set(self.clocks_mhz) - set(H100_SXM.freqs_mhz))
        if unknown:
            nearest = H100_SXM.supported_at_most(unknown[0])
            raise ValueError(f"{H100_SXM.name} has no clock of {unknown[0]} MHz; the nearest is {nearest}")
        if H100_SXM.max_freq_mhz not in self.clocks_mhz:
            raise ValueError(f"the highest clock, {H100_SXM.max_freq_mhz} MHz, must be measured")
        return self


class _Spell(_Part):
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


class StragglerSettings(_Spell):
    """Another data-parallel pipeline is slow for a while."""

    degree: float = Field(1.2, gt=1, le=10)
    """It takes this many times a healthy iteration at full clock."""


class SlowGpuSettings(_Spell):
    """A GPU of the job's own is slow for a while, at the same power, and nobody says so."""

    stage: int = Field(ge=0)
    ratio: float = Field(1.3, gt=1, le=10)
    """Its computations take this many times as long."""


class Job(_Part):
    """A whole job file."""

    name: str = Field("pipeline", pattern=JOB_NAME)
    iterations: int = Field(34, ge=2, le=100_000)
    warmup_iterations: int = Field(2, ge=1)
    """Iterations at full clock before the schedule is applied: what all-max clocks take is measured in them."""
    schedule: ScheduleSettings = ScheduleSettings()
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
    managed: bool = True
    """False runs at full clock all the time, without the planner."""
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
        return self

    def degree_at(self, iteration: int) -> float:
        """How many times a healthy iteration the slowest other pipeline takes."""
        straggler = self.straggler
        return straggler.degree if straggler is not None and straggler.covers(iteration) else 1.0

    def slow_ratio_at(self, iteration: int) -> float:
        """How many times as long the slow GPU of this pipeline takes; 1 where none is slow."""
        slow = self.slow_gpu
        return slow.ratio if slow is not None and slow.covers(iteration) else 1.0

    def work_at(self, iteration: int, stage: int, instruction: str) -> StageWork:
        """What a computation of a stage is charged in this iteration."""
        work = self.work(stage, instruction)
        if self.slow_gpu is None or self.slow_gpu.stage != stage:
            return work
        ratio = self.slow_ratio_at(iteration)
        return StageWork(work.compute_s * ratio, work.memory_s * ratio, work.activity)

    def work(self, stage: int, instruction: str) -> StageWork:
        """What a computation of a stage is charged on a healthy GPU."""
        layer = self.layer
        time_s = self.stages[stage].layers * layer.forward_s
        if instruction == "backward":
            time_s *= layer.backward_ratio
        compute_s = time_s * layer.compute_share
        return StageWork(compute_s, time_s - compute_s, Activity(layer.sm, layer.mem))

    @property
    def healthy_s(self) -> float:
        """GPU time of an iteration at full clock: every stage once, and the heaviest for the other micro-batches."""
        stages = range(self.schedule.stages)
        times_s = [sum(self.work(s, name).time_s(H100_SXM, H100_SXM.max_freq_mhz) for name in STEPS) for s in stages]
        return sum(times_s) + (self.schedule.microbatches - 1) * max(times_s)


def job_lasting(seconds: float, **fields: Any) -> Job:
    """The default pipeline for about so many seconds of GPU time (at least a dozen iterations), the straggler in the
    middle third. Worker start and self-measurement take another half minute."""
    iterations = max(12, round(seconds / (Job().healthy_s * (1 + 0.2 / 3))))
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
