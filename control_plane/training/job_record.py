"""A registered job as JSON: what the planner must know again after a restart, checked on the way back in."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from control_plane.training.pipeline import Instruction, user_order
from control_plane.training.planner import JobSpec
from control_plane.training.profile import Choice, profile_of

JOB_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""A job's name is also a file's."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredChoices(_Part):
    """One (stage, instruction): (MHz, seconds, joules, power limit in watts) for every setting measured."""

    stage: int = Field(ge=0)
    instruction: str
    choices: tuple[tuple[int, float, float, int], ...]


class JobRecord(_Part):
    """One job: its profile, its pipeline schedule, and who lags by how much."""

    name: str = Field(pattern=JOB_NAME)
    profile: tuple[MeasuredChoices, ...]
    schedule_name: str
    order: tuple[tuple[tuple[str, int, int], ...], ...]
    """Per stage in execution order: (instruction, micro-batch, chunk)."""
    blocking_power_w: float = Field(ge=0)
    transfer_time_s: float = Field(0.0, ge=0)
    stragglers: dict[str, float] = Field(default_factory=dict)
    """Pipeline → how many times the healthy iteration time it takes."""

    @classmethod
    def of(cls, name: str, spec: JobSpec) -> Self:
        profile = tuple(
            MeasuredChoices(
                stage=stage,
                instruction=instruction,
                choices=tuple((c.freq_mhz, c.time_s, c.energy_j, c.power_limit_w) for c in choices),
            )
            for (stage, instruction), choices in spec.profile.choices.items()
        )
        order = tuple(tuple((i.name, i.microbatch, i.chunk) for i in program) for program in spec.schedule.order)
        return cls(
            name=name,
            profile=profile,
            schedule_name=spec.schedule.name,
            order=order,
            blocking_power_w=spec.blocking_power_w,
            transfer_time_s=spec.transfer_time_s,
        )

    def spec(self) -> JobSpec:
        """Raises ValueError where profile or order cannot be trusted."""
        profile = profile_of({(m.stage, m.instruction): [Choice(*c) for c in m.choices] for m in self.profile})
        schedule = user_order([[Instruction(*step) for step in program] for program in self.order], self.schedule_name)
        return JobSpec(profile, schedule, self.blocking_power_w, self.transfer_time_s)

    @property
    def degree(self) -> float:
        """The slowest pipeline sets the pace; 1 where none lags."""
        return max(self.stragglers.values(), default=1.0)

    def with_straggler(self, pipeline: str, degree: float) -> "JobRecord":
        """A report about one pipeline; degree 1 says that it has recovered. Raises ValueError below 1."""
        if not degree >= 1:
            raise ValueError(f"a straggler's degree is 1 or more, got {degree}")
        slow = {name: lag for name, lag in self.stragglers.items() if name != pipeline}
        if degree > 1:
            slow[pipeline] = degree
        return self.model_copy(update={"stragglers": slow})
