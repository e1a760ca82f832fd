"""What a training run leaves behind, as a value; ``log_file`` is how it is written."""

from dataclasses import asdict, dataclass, replace

from pydantic import BaseModel, ConfigDict

from actors.training_messages import PlanFigures
from control_plane.training.profile import Choice, ComputationKey


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpanRecord(_Part):
    """One computation, in seconds since its iteration began, in GPU time."""

    stage: int
    pipeline: int = 0
    instruction: str
    microbatch: int
    begin_s: float
    end_s: float
    freq_mhz: int


class IterationRecord(_Part):
    """One iteration, in GPU time; energy is the sum of the GPUs' counters over it, waiting included."""

    iteration: int
    loss: float
    time_s: float
    own_time_s: float
    """Of the first pipeline, without the wait for a slower one."""
    energy_j: float
    degree: float
    """The slowest other pipeline takes this many times a healthy iteration at full clock."""
    straggler_time_s: float
    """How long that pipeline took; 0 where none lags, or where it is one of those that are run."""
    planned_degree: float
    """The straggler that the clocks in force were chosen for; 0 at full clock, before or without a schedule."""
    slow_ratio: float = 1.0
    """A GPU took this many times as long, unannounced."""
    spans: tuple[SpanRecord, ...]
    """Of the first iteration after a change; none for those like it."""

    @property
    def kind(self) -> tuple[float, float, float]:
        """Iterations of one kind run alike: same straggler, same schedule."""
        return self.degree, self.planned_degree, self.slow_ratio


class MeasuredChoice(_Part):
    """A row of the job's own profile."""

    stage: int
    instruction: str
    freq_mhz: int
    time_s: float
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord(PlanFigures):
    """A clock schedule that was in force, and where it lies on the frontier."""

    first_iteration: int

    @classmethod
    def of(cls, figures: PlanFigures, first_iteration: int) -> "ScheduleRecord":
        return cls(**asdict(figures), first_iteration=first_iteration)


class RunLog(_Part):
    """Everything so far."""

    starts: int = 0
    """How often the workers were started: 1 without a failure."""
    profile: tuple[MeasuredChoice, ...] = ()
    profile_energy_j: float = 0.0
    blocking_power_w: float = 0.0
    schedules: tuple[ScheduleRecord, ...] = ()
    iterations: tuple[IterationRecord, ...] = ()
    unmanaged_losses: tuple[float, ...] = ()
    """The same training without charging, clocks or planner, where the job asks for it."""

    def choices(self) -> dict[ComputationKey, tuple[Choice, ...]]:
        found: dict[ComputationKey, list[Choice]] = {}
        for row in self.profile:
            choice = Choice(row.freq_mhz, row.time_s, row.energy_j)
            found.setdefault((row.stage, row.instruction), []).append(choice)
        return {key: tuple(measured) for key, measured in found.items()}


def with_schedule(known: tuple[ScheduleRecord, ...], new: ScheduleRecord) -> tuple[ScheduleRecord, ...]:
    """A better plan for the same straggler takes the place of the first one, from the same iteration on."""
    place = {(record.degree, record.stage_ratios): number for number, record in enumerate(known)}
    number = place.get((new.degree, new.stage_ratios))
    if number is None:
        return (*known, new)
    better = replace(new, first_iteration=known[number].first_iteration)
    return (*known[:number], better, *known[number + 1 :])
