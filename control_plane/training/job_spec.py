"""What a training job is to its planner: measured choices, an order, and what waiting costs."""

from dataclasses import dataclass, replace
from typing import NamedTuple, NewType

from control_plane.training.profile import Profile
from control_plane.training.schedules import Schedule
from control_plane.training.switch_rules import ANY_CLOCK_ANYWHERE, SwitchRules

PipelineId = NewType("PipelineId", str)

StageRatios = tuple[float, ...]
"""Per stage, how many times its profiled time a computation takes now; empty: as profiled."""


class ScheduledStep(NamedTuple):
    """One entry of a rank's clock schedule; a rank is a pipeline stage. A GPU without clock control is steered by
    ``power_limit_w``; its ``freq_mhz`` is then 0."""

    instruction: str
    microbatch: int
    freq_mhz: int
    chunk: int = 0
    power_limit_w: int = 0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One pipeline of a training job. Times and energies are of a whole stage; blocking power too."""

    profile: Profile
    schedule: Schedule
    blocking_power_w: float
    transfer_time_s: float = 0.0
    switch: SwitchRules = ANY_CLOCK_ANYWHERE
    """What the hardware can follow."""

    def __post_init__(self) -> None:
        if self.schedule.stages != self.profile.stages:
            raise ValueError(f"the schedule has {self.schedule.stages} stages, the profile {self.profile.stages}")

    def slowed(self, stage_ratios: StageRatios) -> "JobSpec":
        """The same job on a pipeline whose stages have become slower by these ratios."""
        return replace(self, profile=self.profile.slowed(stage_ratios)) if stage_ratios else self


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a pipeline's clocks depend on beside the job itself."""

    degree: float = 1.0
    """The slowest other pipeline that somebody announced takes this many times the healthy iteration time."""
    own: StageRatios = ()
    """Of the pipeline that is planned for."""
    others: frozenset[StageRatios] = frozenset()
    """Of pipelines that were detected to be slow."""
