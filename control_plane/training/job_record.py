"""A registered job as JSON: what the planner must know again after a restart, checked on the way back in."""

import math
from collections.abc import Sized
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from control_plane.training.job_spec import Circumstances, JobSpec, PipelineId, StageRatios
from control_plane.training.profile import Choice, profile_of
from control_plane.training.schedules import Instruction, user_order
from control_plane.training.switch_rules import SwitchRules

JOB_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""A job's name is also a file's."""
Policy = Literal["perseus", "zeus-global", "zeus-stage", "envpipe", "all-max"]
"""Who chooses a job's clocks: this planner, or one of ``control_plane.baselines.training``."""
PERSEUS: Policy = "perseus"
LARGEST_RATIO = 1000.0
"""A pipeline or stage that takes longer than this many times its healthy time has stopped rather than slowed down."""
MOST_PIPELINES = 4096
"""Slow ones that are remembered per job."""

Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    """JSON has no infinity: what is not finite would not come back."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MeasuredChoices(_Part):
    """One (stage, instruction): (MHz, seconds, joules, power limit in watts) for every setting measured."""

    stage: int = Field(ge=0)
    instruction: str
    choices: tuple[tuple[int, Positive, float, int], ...]


class Straggler(_Part):
    """A pipeline that takes ``degree`` times the healthy iteration time from ``start_unix_s`` on."""

    degree: float = Field(gt=1, le=LARGEST_RATIO)
    start_unix_s: float = 0.0
    end_unix_s: float | None = None
    """It has recovered by then; None: until somebody says so."""

    def lags_at(self, unix_s: float) -> bool:
        return self.start_unix_s <= unix_s and (self.end_unix_s is None or unix_s < self.end_unix_s)


class JobRecord(_Part):
    """One job: its profile, its pipeline schedule, and who lags by how much."""

    name: str = Field(pattern=JOB_NAME)
    profile: tuple[MeasuredChoices, ...]
    schedule_name: str
    order: tuple[tuple[tuple[str, int, int], ...], ...]
    """Per stage in execution order: (instruction, micro-batch, chunk)."""
    blocking_power_w: float = Field(ge=0)
    transfer_time_s: float = Field(0.0, ge=0)
    switch_time_s: float = Field(0.0, ge=0)
    min_hold_s: float = Field(0.0, ge=0)
    clocks_per_stage: int = Field(0, ge=0)
    policy: Policy = PERSEUS
    stragglers: dict[str, Straggler] = Field(default_factory=dict)
    """Announced ones, by pipeline."""
    slow_stages: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Detected ones: pipeline → per stage, how many times its profiled time a computation takes."""

    @classmethod
    def of(cls, name: str, spec: JobSpec, policy: Policy = PERSEUS) -> Self:
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
            switch_time_s=spec.switch.switch_time_s,
            min_hold_s=spec.switch.min_hold_s,
            clocks_per_stage=spec.switch.clocks_per_stage,
            policy=policy,
        )

    def spec(self) -> JobSpec:
        """Raises ValueError where profile or order cannot be trusted."""
        profile = profile_of({(m.stage, m.instruction): [Choice(*c) for c in m.choices] for m in self.profile})
        schedule = user_order([[Instruction(*step) for step in program] for program in self.order], self.schedule_name)
        switch = SwitchRules(self.switch_time_s, self.min_hold_s, self.clocks_per_stage)
        return JobSpec(profile, schedule, self.blocking_power_w, self.transfer_time_s, switch)

    def is_same_job(self, other: "JobRecord") -> bool:
        """The same but for who lags."""
        return self.model_copy(update={"stragglers": other.stragglers, "slow_stages": other.slow_stages}) == other

    @property
    def stages(self) -> int:
        return len(self.order)

    def circumstances(self, pipeline: PipelineId, now_unix_s: float) -> Circumstances:
        """What the clocks of this pipeline are to be chosen for. The slowest of the others sets the pace; a pipeline
        that is announced as slow itself takes so much longer for the same clocks."""
        degrees = {name: s.degree for name, s in self.stragglers.items() if s.lags_at(now_unix_s)}
        own_degree = degrees.pop(pipeline, 1.0)
        others = frozenset(ratios for name, ratios in self.slow_stages.items() if name != pipeline)
        pace = max(degrees.values(), default=1.0)
        return Circumstances(max(1.0, pace / own_degree), self.slow_stages.get(pipeline, ()), others)

    def with_straggler(
        self, pipeline: PipelineId, degree: float, start_unix_s: float = 0.0, end_unix_s: float | None = None
    ) -> "JobRecord":
        """A report about one pipeline; degree 1 says that it has recovered. Raises ValueError where the degree is not
        from 1 to LARGEST_RATIO or a moment is no finite number."""
        if not 1 <= degree <= LARGEST_RATIO:
            raise ValueError(
                f"job {self.name}: a straggler's degree is 1 or more, got {degree}; the largest is {LARGEST_RATIO}"
            )
        if not math.isfinite(start_unix_s):
            raise ValueError(f"job {self.name}: start_unix_s must be a finite number of seconds, got {start_unix_s}")
        if end_unix_s is not None and not (math.isfinite(end_unix_s) and end_unix_s > start_unix_s):
            raise ValueError(f"job {self.name}: end_unix_s must be finite and after the start, got {end_unix_s}")
        slow = {name: lag for name, lag in self.stragglers.items() if name != pipeline}
        if degree > 1:
            slow[pipeline] = Straggler(degree=degree, start_unix_s=start_unix_s, end_unix_s=end_unix_s)
        self._check_count(slow)
        return self.model_copy(update={"stragglers": slow})

    def with_slow_stages(self, pipeline: PipelineId, ratios: StageRatios) -> "JobRecord":
        """What was detected of one pipeline; none slow: it has recovered. Raises ValueError as check_ratios does."""
        self.check_ratios(ratios)
        slow = {name: known for name, known in self.slow_stages.items() if name != pipeline}
        if any(ratio > 1 for ratio in ratios):
            slow[pipeline] = ratios
        self._check_count(slow)
        return self.model_copy(update={"slow_stages": slow})

    def check_ratios(self, ratios: StageRatios) -> None:
        """Raises ValueError where these are not this job's stages' measured over profiled times, all of them positive
        and none above LARGEST_RATIO."""
        if len(ratios) != self.stages:
            raise ValueError(f"job {self.name} has {self.stages} stages, got {len(ratios)} ratios")
        for stage, ratio in enumerate(ratios):
            if not 0 < ratio <= LARGEST_RATIO:
                raise ValueError(
                    f"job {self.name}, stage {stage}: measured over profiled time must be above 0 and at most "
                    f"{LARGEST_RATIO}, got {ratio}"
                )

    def _check_count(self, slow: Sized) -> None:
        if len(slow) > MOST_PIPELINES:
            raise ValueError(f"job {self.name}: {len(slow)} slow pipelines, at most {MOST_PIPELINES} are remembered")
